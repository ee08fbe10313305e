"""Fault 02: a bit of the data is flipped, in a source file or in a prepared slice.

Expected: one line names the file, exit code 3. A voxel that would set the range of its
volume is found, also without a checksum in the file: by the rest of the volume, and by
the attribute `max` of fastMRI's files. Any other flipped bit of a file without checksum
is found when a run is resumed, by the hashes of the voxels that it began with. Two are
not found: one that was flipped before the file was first read and leaves its voxel in
the range; and one of the disk, under which size and times stay: then the slices that
were prepared before are used, which it did not reach.
"""

from __future__ import annotations

import h5py
import numpy as np
import pytest

from daasr_jax.data import prepare
from daasr_jax.errors import DataError
from daasr_jax.experiment import record, subjects
from daasr_jax.experiment.configuration import load
from tests.data_fixtures import (
    fastmri_root,
    nifti_root,
    one_line,
    scan_voxels,
    settings,
    write_h5,
    write_nifti,
)
from tests.e2e.commands import SMALL, check_refusals, run_all


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


def plain_root(root):
    """The layout of fastMRI without filters, so without any checksum."""
    fastmri_root(root)
    for path in root.rglob("*.h5"):
        with h5py.File(path, "a") as file:
            image = file["reconstruction_rss"][()]
            del file["reconstruction_rss"]
            file["reconstruction_rss"] = image
    return root


def flip_lowest_bit(path):
    """The lowest bit of the mantissa of one voxel inside the head."""
    with h5py.File(path) as file:
        image = file["reconstruction_rss"]
        at = image.id.get_offset() + 4 * int(
            np.ravel_multi_index((2, 12, 10), image.shape)
        )
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("name", ["multicoil_train/file_002", "multicoil_val/file_001"])
def test_02_a_low_bit_is_seen_when_a_run_goes_on(tmp_path, name):
    root, cache, run = (
        plain_root(tmp_path / "data"),
        tmp_path / "cache",
        tmp_path / "run",
    )
    run.mkdir()
    config = load("fastmri_x4")

    def recorded(**kwargs):
        prepared = prepare(settings(root, cache))
        inputs = {"prepared_sha256": prepared.key, "perceptual": {"network": "none"}}
        changed = subjects.changed_files(run, prepared)
        record.record_config(
            config.to_dict(), run, inputs, changed_files=changed, **kwargs
        )
        subjects.record_subjects(prepared, run)
        return changed

    assert recorded() == []
    assert recorded(begun=True) == []
    before = {path.name: path.read_bytes() for path in run.iterdir()}
    assert name not in str(before)
    flip_lowest_bit(root / f"{name}.h5")
    with pytest.raises(DataError) as error:
        recorded(begun=True)
    assert error.value.exit_code == 3
    one_line(error.value, "E334", "the voxels of 1 files", root / f"{name}.h5")
    assert {path.name: path.read_bytes() for path in run.iterdir()} == before
    assert len(recorded(begun=True, allow=True)) == 1
    assert record.read_record(run)["changes"] == [
        "the data differ from those the run began with"
    ]
    assert recorded(begun=True) == []


@pytest.mark.full
@pytest.mark.timeout(500)
def test_02_a_low_bit_stops_the_command(tmp_path):
    root, cache = plain_root(tmp_path / "data"), tmp_path / "cache"
    train = ["train.py", *SMALL, f"--config.data.root={root}",
             f"--workdir={tmp_path / 'run'}", "--config.train.steps=2"]  # fmt: skip
    (first,) = run_all([train], cache)
    assert first["code"] == 0, first
    path = root / "multicoil_train/file_003.h5"
    flip_lowest_bit(path)
    (again,) = run_all([train], cache)
    check_refusals({"again": again}, {"again": ("E334", 3, str(path))})
