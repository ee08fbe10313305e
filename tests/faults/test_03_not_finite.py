"""Fault 03: voxels are NaN or infinite.

Expected: one line names file, slice and number of such voxels, exit code 3. With
`data.skip_bad` the volume is left out with a warning. Nothing that a network learns
from or is measured on is filled in: there is no zero fill, by decision.
"""

from __future__ import annotations

import logging

import numpy as np
import pytest

from daasr_jax.data import prepare
from daasr_jax.errors import DataError
from tests.data_fixtures import (
    fastmri_root,
    nifti_root,
    one_line,
    scan_voxels,
    settings,
    write_h5,
    write_nifti,
)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("layout", ["fastmri", "nifti"])
def test_03_volume_slice_and_number_are_named(tmp_path, caplog, layout, value):
    image = scan_voxels(1).astype(np.float32)
    image[2, 5:8, 5] = value
    if layout == "fastmri":
        root = fastmri_root(tmp_path / "data")
        path = root / "multicoil_val/file_001.h5"
        write_h5(path, subject="val01", reconstruction_rss=image)
    else:
        root = nifti_root(tmp_path / "data", contrasts="T1W")
        path = write_nifti(root / "patient01/study1_T1W.nii.gz", image)
    with pytest.raises(DataError) as error:
        prepare(settings(root, tmp_path / "cache", val_fraction=0.0))
    words = "3 voxels are NaN or infinite, the first in slice 2"
    assert error.value.exit_code == 3
    one_line(error.value, "E302", path, words)
    wanted = {"val_fraction": 0.0, "exclude": "slice", "skip_bad": True}
    with caplog.at_level(logging.WARNING, "daasr_jax"):
        found = prepare(settings(root, tmp_path / "cache", **wanted))
    assert f"left out {path}: {words}" in caplog.text
    assert found.left_out == 1
    for table in found.splits.values():
        for i in range(len(table)):
            assert np.isfinite(table.image(i)).all()


def test_03_kspace_that_overflows(tmp_path):
    """The sum of squares of finite numbers may be infinite."""
    root = fastmri_root(tmp_path / "data")
    kspace = np.full((2, 2, 24, 20), 1e30, np.complex64)
    path = root / "multicoil_val/file_001.h5"
    write_h5(path, subject="val01", kspace=kspace)
    with pytest.raises(DataError) as error:
        prepare(settings(root, tmp_path / "cache"))
    one_line(error.value, "E302", path, "NaN or infinite")
