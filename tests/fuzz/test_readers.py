"""What fuzzing compares: one wrong value is seen, whatever the others are."""

from __future__ import annotations

import contextlib

import numpy as np
import pytest

from tests.fuzz import readers
from tests.fuzz.__main__ import page
from tests.fuzz.campaign import Campaign
from tests.fuzz.readers import READERS, WrongError
from tests.fuzz.worker import Worker

IMAGE = np.linspace(-1, 1, 60, dtype=np.float32).reshape(3, 4, 5)


def changed(**values):
    out = IMAGE.copy()
    for name, value in values.items():
        out[tuple(map(int, name[1:]))] = value
    return out


@pytest.mark.parametrize("rtol", [0.0, 1e-6])
@pytest.mark.parametrize(
    ("found", "wanted"),
    [
        (changed(), changed(_123=0)),
        (changed(_000=1e38), changed(_000=1e38, _123=0)),  # beside a damaged voxel
        (changed(_123=0), changed(_123=np.nan)),
        (changed(_123=np.inf), changed(_123=-np.inf)),
        (changed(_123=np.nan), changed()),
        (changed()[:2], changed()),
    ],
)
def test_a_wrong_value_is_seen(found, wanted, rtol):
    with pytest.raises(WrongError):
        readers._same(found, wanted, "voxels", rtol=rtol)


def test_what_is_right_passes():
    odd = changed(_000=1e38, _001=np.nan, _002=-np.inf)
    readers._same(odd, odd.astype(np.float64), "voxels")
    near = odd * np.float32(1 + 3e-7)
    readers._same(near, odd, "voxels", rtol=1e-6)
    with pytest.raises(WrongError):
        readers._same(near, odd, "voxels")


VOXELS = ("hdf5", "nifti", "dicom", "npz", "safetensors", "vgg", "prepared")


@pytest.mark.parametrize("name", VOXELS)
def test_undamaged_files_are_compared_to_the_end(name, tmp_path, monkeypatch):
    """No exception of the independent reader hides that it compares nothing."""
    if name == "dicom":
        pytest.importorskip("pydicom", reason="pydicom, the extra dicom, is absent")
    compared = []
    monkeypatch.setattr(readers, "_other_reader", contextlib.nullcontext)
    same = readers._same

    def counted(found, wanted, what, **kwargs):
        compared.append(what)
        same(found, wanted, what, **kwargs)

    monkeypatch.setattr(readers, "_same", counted)
    campaign = Campaign(name, tmp_path, Worker())
    for case in sorted((tmp_path / "originals" / name).iterdir()):
        before = len(compared)
        READERS[name].read(campaign._damaged / case.name, case)
        assert len(compared) > before, case.name


def test_page(tmp_path):
    campaign = Campaign("split", tmp_path, Worker())
    campaign.counts.update({"read": 2, "refused": 497, "traceback": 1})
    campaign.found["traceback: here"] = None
    text = page(
        [campaign],
        {"split": 3.4},
        seed=7,
        given=["--inputs=500", "--keep=x"],
        commit="abc",
    )
    assert "`python -m tests.fuzz --inputs=500`: 500 damaged files, 1 kind " in text
    assert "| split | 500 | 2 | 497 | 0 | 1 | 0 | 0 | 1 | 3 |" in text
    assert "- split: `traceback: here`" in text
    for part in ("seed 7", "Commit abc", "h5py "):
        assert part in text
