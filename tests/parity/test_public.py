"""The golden files of the public implementations say where they come from."""

from __future__ import annotations

import pytest

from tests.parity import public


@pytest.mark.parametrize(
    "path", sorted(public.GOLDEN.glob("*.npz")), ids=lambda path: path.stem
)
def test_says_where_it_comes_from(path):
    _, arrays, about = public.load(path.stem)
    assert about["repository"].startswith("https://github.com/")
    assert len(about["commit"]) >= 8
    assert {"torch", "numpy"} < about.keys()
    assert arrays
    assert path.stat().st_size < 40_000
