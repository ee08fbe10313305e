"""Fault 02: a bit of the data is flipped, in a source file or in a prepared slice.

Expected: one line names the file, exit code 3. A voxel that would set the range of its
volume is found, also without a checksum in the file: by the rest of the volume, and by
the attribute `max` of fastMRI's files.
"""

from __future__ import annotations

import h5py
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


def refused(root, cache, *parts):
    with pytest.raises(DataError) as error:
        prepare(settings(root, cache))
    assert error.value.exit_code == 3
    one_line(error.value, *parts)


@pytest.mark.parametrize(("dtype", "bit"), [("f4", 30), ("f4", 26), ("f8", 62)])
def test_02_exponent_of_one_voxel(tmp_path, dtype, bit):
    root = fastmri_root(tmp_path / "data")
    image = (scan_voxels(101) * 2.0**-21).astype(dtype)
    words = image.view(dtype.replace("f", "u"))
    words[3, 12, 10] ^= words.dtype.type(1 << bit)
    assert image[3, 12, 10] == image.max()
    path = root / "multicoil_val/file_001.h5"
    write_h5(path, subject="val01", reconstruction_rss=image)
    refused(root, tmp_path / "cache", "E302", path, f"slice 3 is {image.max():.4g}")


def test_02_exponent_of_one_voxel_of_a_nifti_file(tmp_path):
    root = nifti_root(tmp_path / "n", contrasts="T1W")
    image = scan_voxels(3).astype(np.float32) * np.float32(2.0**-21)
    image.view("u4")[1, 12, 10] ^= np.uint32(1 << 30)
    path = write_nifti(root / "patient03/study1_T1W.nii.gz", image)
    refused(root, tmp_path / "cache", "E302", path, "would set the range")


def test_02_a_smaller_jump_is_seen_by_the_attribute_max(tmp_path):
    """Sixteen times is not out of the question, but not what the writer measured."""
    root = fastmri_root(tmp_path / "data")
    path = root / "multicoil_val/file_001.h5"
    with h5py.File(path, "a") as file:
        stated = float(file["reconstruction_rss"][()].max())
        file.attrs["max"] = stated
    prepare(settings(root, tmp_path / "cache"))
    with h5py.File(path, "a") as file:
        image = file["reconstruction_rss"]
        image[2, 12, 10] = 16 * np.float32(0.6 * stated)
    refused(root, tmp_path / "cache", "E302", path, f"attribute max of {stated:.4g}")


def test_02_compressed_data_of_a_source_file(tmp_path):
    root = fastmri_root(tmp_path / "data")
    path = root / "multicoil_val/file_001.h5"
    with h5py.File(path) as file:
        chunk = file["reconstruction_rss"].id.get_chunk_info(0)
    data = bytearray(path.read_bytes())
    data[chunk.byte_offset + chunk.size // 2] ^= 1
    path.write_bytes(data)
    refused(root, tmp_path / "cache", "E302", path, "damaged HDF5 file")


@pytest.mark.parametrize("place", [0.1, 0.5, 0.9])
def test_02_prepared_slices(tmp_path, place):
    root, cache = fastmri_root(tmp_path / "data"), tmp_path / "cache"
    prepare(settings(root, cache))
    path = next(cache.rglob("*.array_record*"))
    data = bytearray(path.read_bytes())
    data[int(place * len(data))] ^= 1
    path.write_bytes(data)
    refused(root, cache, "E311", path, "has changed on disk", "delete the folder")
