"""Fault 05: arrays of another number of axes, sizes that the scale does not divide,
volumes of several sizes.

Expected: another number of axes is refused with the shape in the line, exit code 3. All
slices are brought to one size, `data.size`, and cut to a multiple of the scale, so that
no batch mixes sizes.
"""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest

from daasr_jax.data import crop_to_multiple, prepare, training_batches
from daasr_jax.errors import DataError
from tests.data_fixtures import (
    LPS_AFFINE,
    fastmri_root,
    nifti_root,
    one_line,
    scan_voxels,
    settings,
    write_h5,
)


@pytest.mark.parametrize("shape", [(24, 20), (2, 3, 24, 20), (24,)])
def test_05_another_number_of_axes_in_hdf5(tmp_path, shape):
    root = fastmri_root(tmp_path / "data")
    path = root / "multicoil_val/file_001.h5"
    write_h5(path, subject="val01", reconstruction_rss=np.ones(shape, np.float32))
    with pytest.raises(DataError) as error:
        prepare(settings(root, tmp_path / "cache"))
    assert error.value.exit_code == 3
    one_line(error.value, "E302", path, shape, "real, 3 axes")


@pytest.mark.parametrize("shape", [(24, 20), (24, 20, 4, 6)])
def test_05_another_number_of_axes_in_nifti(tmp_path, shape):
    root = nifti_root(tmp_path / "n", contrasts="T1W")
    path = root / "patient00/study1_T1W.nii.gz"
    nib.save(nib.Nifti1Image(np.ones(shape, np.float32), LPS_AFFINE), path)
    with pytest.raises(DataError) as error:
        prepare(settings(root, tmp_path / "cache"))
    one_line(error.value, "E302", path, shape, "three axes are wanted")


@pytest.mark.parametrize("resize", ["stretch", "pad"])
@pytest.mark.parametrize("scale", [2, 3, 4])
def test_05_mixed_and_odd_sizes(tmp_path, scale, resize):
    root = fastmri_root(tmp_path / "data", train=2)
    for i, shape in enumerate(((3, 31, 17), (5, 40, 41), (2, 12, 64))):
        image = scan_voxels(40 + i, shape).astype(np.float32)
        path = root / f"multicoil_train/odd_{i}.h5"
        write_h5(path, subject=f"odd{i}", reconstruction_rss=image)
    found = prepare(
        settings(root, tmp_path / "cache", resize=resize, val_fraction=0.0)
    ).splits["train"]
    assert {found.image(i).shape for i in range(len(found))} == {(32, 32, 1)}
    run = {"batch_size": 3, "crop": 0, "scale": scale, "steps": 4, "seed": 0}
    side = 32 // scale * scale
    for batch in training_batches(found, **run):
        assert batch["hr"].shape == batch["ref"].shape == (3, side, side, 1)
    cut = crop_to_multiple(found.image(0), scale)
    np.testing.assert_array_equal(cut, found.image(0)[:side, :side])
