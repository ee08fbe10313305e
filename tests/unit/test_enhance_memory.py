"""What the arrays of whole volumes take, and what is said where it is too much."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

from daasr_jax.enhance import main
from daasr_jax.enhancement import Engine, footprint
from daasr_jax.enhancement.references import same_image
from daasr_jax.runtime import memory
from tests.unit.test_enhance_scan import AFFINE, volume, write
from tests.weights import write_weights

SHAPE = (48, 44, 170)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scans")
    write_weights(folder / "x2.safetensors")
    fine = AFFINE.copy()
    fine[:3, :2] /= 1.5
    write(folder / "T2.nii", volume(0, SHAPE))
    for i in (1, 2):
        write(folder / f"T1_{i}.nii", volume(i, (72, 66, 170)), fine)
    return folder


def call(folder, out, refs: int, *more: str) -> int:
    given = ["--input", str(folder / "T2.nii"), "--out", str(out), "--no-view"]
    given += ["--checkpoint", str(folder / "x2.safetensors"), "--force", *more]
    for i in range(1, refs + 1):
        given += ["--ref", str(folder / f"T1_{i}.nii")]
    return main(given)


@pytest.mark.parametrize(
    ("refs", "simulated"),
    [
        pytest.param(0, [], marks=pytest.mark.full),
        (1, []),
        pytest.param(2, ["--low-res-simulated"], marks=pytest.mark.full),
    ],
)
def test_the_estimate_is_what_is_taken(folder, tmp_path, monkeypatch, refs, simulated):
    """Within a factor of 1.5, of what numpy holds at most after the scan was read."""
    monkeypatch.setattr(footprint, "_PAGES", 0)  # there is no page
    assert call(folder, tmp_path / "o.nii", refs, *simulated) == 0  # it is compiled now
    real, began = footprint.require, []

    def require(shape, references, **kwargs):
        if not began:
            began.append(tracemalloc.get_traced_memory()[0])
            tracemalloc.reset_peak()
        real(shape, references, **kwargs)

    monkeypatch.setattr(footprint, "require", require)
    tracemalloc.start()
    try:
        assert call(folder, tmp_path / "o.nii", refs, *simulated) == 0
        taken = tracemalloc.get_traced_memory()[1] - began[0]
    finally:
        tracemalloc.stop()
    estimate = footprint.needed(
        SHAPE if simulated else (2 * SHAPE[0], 2 * SHAPE[1], SHAPE[2]),
        refs,
        reference_voxels=refs and 72 * 66 * 170,
        simulated=bool(simulated),
    )
    assert estimate / 1.5 < taken < estimate * 1.5, (taken, estimate)


def test_volumes_that_do_not_fit_are_one_line(folder, tmp_path, monkeypatch, capsys):
    """Before a reference is placed and anything is computed."""
    monkeypatch.setattr(Engine, "__call__", lambda *_: pytest.fail("it was computed"))
    free = memory.COMPILER + 2**20
    monkeypatch.setattr(memory, "host_free", lambda: ("the machine", free))
    assert call(folder, tmp_path / "o.nii", 1) == 6
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("error E619: the arrays of a result of 96x88x170 voxels")
    assert "the machine leaves 0.251 GiB: close other programs" in line
    assert list(tmp_path.iterdir()) == []


def test_memory_that_runs_out_is_one_line(folder, tmp_path, monkeypatch, capsys):
    def fails(*_, **__):
        return np.empty(2**59)

    monkeypatch.setattr(Engine, "__call__", fails)
    assert call(folder, tmp_path / "o.nii", 1) == 6
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("error E619: memory ran out (Unable to allocate 4.00 EiB")
    assert list(tmp_path.iterdir()) == []


def test_a_large_image_is_compared_slice_by_slice():
    a = np.random.default_rng(0).integers(0, 900, (40, 100, 100)).astype(np.int16)
    b = (a * 1.5).astype(np.float32)
    tracemalloc.start()
    try:
        assert same_image(a, b)
        assert tracemalloc.get_traced_memory()[1] < a.nbytes
    finally:
        tracemalloc.stop()
