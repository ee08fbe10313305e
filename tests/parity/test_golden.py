"""`daasr_jax` against arrays from PyTorch, without PyTorch; see `generate_golden`."""

from __future__ import annotations

import numpy as np
import pytest

from tests.parity.cases import CASES, assert_close, inputs_of, jax_results
from tests.parity.generate_golden import GOLDEN
from tests.parity.weights import fingerprint

NAMES = [name for name, case in CASES.items() if case.golden]


def load(name):
    with np.load(GOLDEN / f"{name}.npz", allow_pickle=False) as file:
        return {key: file[key] for key in file.files}


# Of the whole networks `make test` takes x4, `make test-all` every scale.
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(n, marks=[pytest.mark.full] * n.endswith(("_x2", "_x3")))
        for n in NAMES
    ],
)
def test_outputs_and_gradients(name):
    expected = load(name)
    inputs = inputs_of(name)
    # A difference here is one of the rebuilt weights, not of the model.
    np.testing.assert_allclose(
        fingerprint(inputs.variables, inputs.arrays),
        expected.pop("fingerprint"),
        rtol=1e-9,
    )
    assert_close(name, jax_results(name), expected)


def test_no_stray_files():
    assert {path.stem for path in GOLDEN.iterdir()} == set(NAMES)


def test_golden_files_are_small():
    assert sum(path.stat().st_size for path in GOLDEN.iterdir()) < 750_000
