"""Fault 07: a file lacks the image, its key is misspelt, or a scan has no target.

Expected: the line lists the keys of the file and names the one that is meant, exit code
3. `enhance.py` takes a scan without a target.
"""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest

from daasr_jax.data import prepare
from daasr_jax.enhance import main
from daasr_jax.errors import DataError
from tests.data_fixtures import fastmri_root, one_line, scan_voxels, settings, write_h5
from tests.unit.test_enhance_scan import SHAPE, volume, write
from tests.weights import write_weights

IMAGE = scan_voxels(1).astype(np.float32)


@pytest.mark.parametrize(
    ("arrays", "given", "parts"),
    [
        (
            {"reconstruction_ecs": IMAGE},
            {},
            ("keys are reconstruction_ecs", "did you mean reconstruction_esc?"),
        ),
        (
            {"reconstuction_rss": IMAGE, "mask": IMAGE},
            {},
            ("keys are mask, reconstuction_rss", "did you mean reconstruction_rss?"),
        ),
        (
            {"reconstruction_esc": IMAGE},
            {"target": "reconstruction_rss"},
            ("has no reconstruction_rss", "--config.data.target=reconstruction_esc?"),
        ),
        (
            {"image": IMAGE, "label": IMAGE},
            {},
            ("its keys are image, label",),
        ),
        ({}, {}, ("its keys are none",)),
        (
            {"kspace": IMAGE.astype(np.complex64), "mask": IMAGE[0, 0]},
            {},
            ("undersampled k-space only", "no target"),
        ),
    ],
)
def test_07_keys_are_listed_and_the_right_one_is_named(tmp_path, arrays, given, parts):
    root = fastmri_root(tmp_path / "data")
    path = root / "multicoil_val/file_001.h5"
    write_h5(path, subject="val01", **arrays)
    with pytest.raises(DataError) as error:
        prepare(settings(root, tmp_path / "cache", folders=("multicoil_val",), **given))
    assert error.value.exit_code == 3
    one_line(error.value, "E302", path, *parts)


@pytest.mark.full
def test_07_a_scan_without_a_target_is_enhanced(tmp_path):
    write(tmp_path / "T2.nii.gz", volume(0))
    write(tmp_path / "T1.nii.gz", volume(1))
    weights = write_weights(tmp_path / "x2.safetensors", spacing_mm=[0.5, 0.9])
    out = tmp_path / "out.nii.gz"
    given = ["--input", str(tmp_path / "T2.nii.gz"), "--no-view", "--out", str(out)]
    given += ["--ref", str(tmp_path / "T1.nii.gz"), "--checkpoint", str(weights)]
    assert main(given) == 0
    found = np.asarray(nib.load(out).dataobj)
    assert found.shape == (2 * SHAPE[0], 2 * SHAPE[1], SHAPE[2])
    assert np.isfinite(found).all()
