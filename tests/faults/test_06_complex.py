"""Fault 06: complex values or several coils where a magnitude image is expected.

Expected: complex values in an image are refused, never cut to their real part, exit
code 3; no setting allows them, by decision. The k-space of several coils becomes the
root of the sum of their squares, cut to the size that its header asks for.
"""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest

from daasr_jax.data import prepare
from daasr_jax.data.sources import fastmri
from daasr_jax.errors import DataError
from tests.data_fixtures import (
    HEADER,
    LPS_AFFINE,
    fastmri_root,
    nifti_root,
    one_line,
    settings,
    write_h5,
)


def test_06_complex_image_in_hdf5(tmp_path):
    root = fastmri_root(tmp_path / "data")
    path = root / "multicoil_val/file_001.h5"
    image = np.ones((2, 24, 20), np.complex64) * (1 + 2j)
    write_h5(path, subject="val01", reconstruction_esc=image)
    with pytest.raises(DataError) as error:
        prepare(settings(root, tmp_path / "cache"))
    assert error.value.exit_code == 3
    one_line(error.value, "E302", path, "complex64", "wanted: real, 3 axes")


def test_06_complex_image_in_nifti(tmp_path):
    root = nifti_root(tmp_path / "n", contrasts="T1W")
    path = root / "patient00/study1_T1W.nii.gz"
    image = np.ones((20, 24, 4), np.complex64)
    nib.save(nib.Nifti1Image(image, LPS_AFFINE), path)
    with pytest.raises(DataError) as error:
        prepare(settings(root, tmp_path / "cache"))
    one_line(error.value, "E302", path, "complex64 values", "magnitude")


def test_06_real_values_as_kspace(tmp_path):
    root = fastmri_root(tmp_path / "data")
    path = root / "multicoil_val/file_001.h5"
    write_h5(path, subject="val01", kspace=np.ones((2, 24, 20), np.float32))
    with pytest.raises(DataError) as error:
        prepare(settings(root, tmp_path / "cache"))
    one_line(error.value, "E302", path, "wanted: complex, 3 or 4 axes")


@pytest.mark.parametrize("coils", [(), (3,)])
def test_06_kspace_by_its_formula_and_header(tmp_path, coils):
    """Against a discrete Fourier transform written out."""
    rng = np.random.default_rng(0)
    shape = (2, *coils, 32, 24)
    image = rng.normal(size=shape) + 1j * rng.normal(size=shape)

    def transform(n):  # centred, orthonormal
        k = np.arange(n) - n // 2
        return np.exp(-2j * np.pi * np.outer(k, k) / n) / np.sqrt(n)

    kspace = np.einsum("kh,...hw,lw->...kl", transform(32), image, transform(24))
    write_h5(
        tmp_path / "a.h5",
        subject="p",
        header=HEADER.format(ex=32, ey=24, x=16, y=16),
        kspace=kspace.astype(np.complex64),
    )
    (volume,) = fastmri.scan(settings(tmp_path, tmp_path / "cache"))
    assert volume.shape == (2, 16, 16)
    wanted = np.sqrt((np.abs(image) ** 2).sum(1)) if coils else np.abs(image)
    np.testing.assert_allclose(
        fastmri.read(volume), wanted[:, 8:24, 4:20], rtol=1e-4, atol=1e-5
    )
