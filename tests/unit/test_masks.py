"""Masks of a NIfTI set: found by name, turned as the data, blank slices kept."""

from __future__ import annotations

import numpy as np
import pytest

from daasr_jax.data import prepare
from daasr_jax.data.masks import Masks
from daasr_jax.errors import DataError
from daasr_jax.experiment.cell_pictures import inner_slices, pictured
from tests.data_fixtures import (
    LPS_AFFINE,
    SHAPE,
    fastmri_root,
    nifti_root,
    one_line,
    settings,
    table,
    write_nifti,
)


def half(side: str) -> np.ndarray:
    """1 in the left or the upper half of every slice but 2, which is blank."""
    out = np.zeros(SHAPE, np.uint8)
    if side == "left":
        out[:, :, : SHAPE[2] // 2] = 1
    else:
        out[:, : SHAPE[1] // 2] = 1
    out[2] = 0
    return out


@pytest.fixture
def data(tmp_path):
    root = nifti_root(tmp_path / "data", contrasts="T1W")
    asked = settings(root, tmp_path / "cache")
    return prepare(asked), asked


@pytest.mark.parametrize("ending", [".nii.gz", ".nii", "_mask.nii.gz"])
def test_a_mask_is_turned_and_resized_as_its_volume(tmp_path, data, ending):
    prepared, asked = data
    volume = str(prepared.splits["test"].volumes[0])
    turned = np.diag([0.7, 0.7, 3.0, 1.0])
    turned[:2, 3] = -0.7 * (SHAPE[2] - 1), -0.7 * (SHAPE[1] - 1)
    place = tmp_path / f"masks/{volume}{ending}"
    write_nifti(place, half("left")[:, ::-1, ::-1], turned)
    masks = Masks(tmp_path / "masks", prepared, asked)
    masks.check([volume])
    shown = masks.of_slice(volume, 1)
    assert shown.shape == (32, 32, 1)
    assert shown[:, :16].all()
    assert not shown[:, 16:].any()
    assert not masks.of_slice(volume, 2).any()


def test_upper_half(tmp_path, data):
    prepared, asked = data
    volume = str(prepared.splits["test"].volumes[0])
    write_nifti(tmp_path / f"{volume}.nii.gz", half("upper"))
    shown = Masks(tmp_path, prepared, asked).of_slice(volume, 0)
    assert shown[:16].all()
    assert not shown[16:].any()


def test_masks_that_cannot_be_used(tmp_path, data):
    prepared, asked = data
    volume = str(prepared.splits["test"].volumes[0])
    masks = Masks(tmp_path / "m", prepared, asked)

    def refused(code, *parts):
        with pytest.raises(DataError) as error:
            masks.check([volume])
        assert error.value.code == code
        one_line(error.value, *parts)

    refused("E364", f"{volume}_mask.nii.gz")
    path = tmp_path / f"m/{volume}.nii.gz"
    write_nifti(path, half("left")[:, :-1])
    refused("E365", path, "4x23x20", "4x24x20")
    moved = LPS_AFFINE.copy()
    moved[2, 3] = 3.0
    write_nifti(path, half("left"), moved)
    refused("E365", "lies 3 mm from its volume")
    path.write_bytes(b"no image")
    refused("E365", path)


def test_other_layouts_have_no_masks(tmp_path):
    asked = settings(fastmri_root(tmp_path / "data"), tmp_path / "cache")
    prepared = prepare(asked)
    masks = Masks(tmp_path, prepared, asked)
    with pytest.raises(DataError, match="beside NIfTI files") as error:
        masks.check(prepared.splits["test"].volumes.tolist())
    assert error.value.code == "E364"


def test_inner_slices_are_of_the_middle_of_volumes():
    slices = table(subjects=2, contrasts=("T1",), slices=40, order=3)
    found = inner_slices(slices)
    assert len(found) == 4
    assert found == sorted(found)
    assert all(10 <= slices.index[i] < 30 for i in found)
    assert inner_slices(slices.only([0])) == [0]
    assert len(inner_slices(slices, most=100)) == 40


def test_pictured_slices_have_a_reference():
    """Of three people the first has one contrast; in the order of the whole split."""
    slices = table(slices=8)
    slices = slices.only([i for i, v in enumerate(slices.volumes) if v != "p0/T2"])
    whole = {slices.keys[i] for i in pictured(slices, "")}
    part = [slices.keys[i] for i in pictured(slices, "contrast")]
    assert len(part) == 4
    assert not [key for key in part if key.startswith("p0/")]
    assert any(key.startswith("p0/") for key in whole)
    left = slices.only([i for i, s in enumerate(slices.subjects) if s != "p0"])
    assert [left.keys[i] for i in pictured(left, "")] == part
