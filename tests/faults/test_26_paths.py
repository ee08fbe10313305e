"""Fault 26: a path that escapes: links, links inside HDF5, names with `..` in lists.

Expected: links within the data root are followed once, and one that leads out of it
stops the run unless `data.links_out` allows it. In a DICOM folder and a bank such links
are left out, which is said, and a DICOMDIR opens nothing. HDF5 links, external storage
and virtual data sets are refused. A name in a list opens no file, and nothing is
unpacked. Of the names of outputs one alone has a part from the data, the folder's name,
of which letters, digits, `_`, `.` and `-` are kept.
"""

from __future__ import annotations

import json
import os
import zipfile

import h5py
import numpy as np
import pytest

from daasr_jax.data import DataSettings
from daasr_jax.data.sources import choose_source
from daasr_jax.enhancement.bank import choose_references
from daasr_jax.enhancement.inputs import read_target
from daasr_jax.errors import ConfigError, DataError
from daasr_jax.experiment.opening import _in_file_names
from daasr_jax.scans import read_scan
from tests.data_fixtures import (
    fastmri_root,
    nifti_root,
    one_line,
    scan_voxels,
    settings,
    write_h5,
    write_nifti,
    write_rss,
)


def scan(root, **changes):
    wanted = DataSettings(root=str(root), **changes)
    return choose_source(wanted).scan(wanted)


def test_26_data_outside_an_hdf5_file(tmp_path):
    secret = tmp_path / "secret.bin"
    secret.write_bytes(bytes(4 * 16 * 16 * 4))
    other = write_rss(tmp_path / "other/o.h5", 1, "p")
    root = tmp_path / "root"
    root.mkdir()
    for name in ("ext", "link", "soft", "vds"):
        with h5py.File(root / f"{name}.h5", "w") as file:
            file.attrs["patient_id"] = "p"
            key = "reconstruction_rss"
            if name == "ext":
                file.create_dataset(
                    key, (4, 16, 16), "f4", external=[(str(secret), 0, 4096)]
                )
            elif name == "link":
                file[key] = h5py.ExternalLink(str(other), key)
            elif name == "soft":
                file["x"] = h5py.ExternalLink(str(other), key)
                file[key] = h5py.SoftLink("/x")
            else:
                layout = h5py.VirtualLayout((4, 24, 20), "f4")
                layout[:] = h5py.VirtualSource(str(other), key, (4, 24, 20))
                file.create_virtual_dataset(key, layout)
    with pytest.raises(DataError) as error:
        scan(root)
    one_line(error.value, "4 of 4", "refused")


def test_26_a_header_outside_an_hdf5_file(tmp_path):
    secret = tmp_path / "secret.txt"
    secret.write_text("root:x:0:0")
    kspace = np.ones((2, 16, 16), np.complex64)
    path = write_h5(tmp_path / "root/a.h5", subject="p", kspace=kspace)
    with h5py.File(path, "a") as file:
        place = [(str(secret), 0, 10)]
        file.create_dataset("ismrmrd_header", (1,), "S10", external=place)
    with pytest.raises(DataError) as error:
        scan(tmp_path / "root")
    one_line(error.value, "E302", path, "ismrmrd_header lies in another file")


@pytest.mark.parametrize("layout", ["nifti", "fastmri"])
def test_26_links_that_lead_out(tmp_path, layout):
    if layout == "nifti":
        other, root = (nifti_root(tmp_path / n, 3, "T1") for n in ("other", "root"))
        link, target = root / "patient09", other / "patient01"
        file = root / "patient02/study2_T1.nii.gz"
        file.symlink_to(other / "patient02/study1_T1.nii.gz")
    else:
        other, root = (fastmri_root(tmp_path / n, 3, 2) for n in ("other", "root"))
        link, target = root / "brain_train", other / "multicoil_train"
        file = root / "multicoil_val/more.h5"
        file.symlink_to(other / "multicoil_val/file_001.h5")
    link.symlink_to(target)
    with pytest.raises(DataError) as error:
        scan(root)
    one_line(error.value, "E323", "2 links", "--config.data.links_out=True", " -> ")
    assert len(scan(root, links_out=True)) > len(scan(other))
    link.unlink()
    with pytest.raises(DataError) as error:
        scan(root)
    one_line(error.value, "1 links", f"{file} -> {os.path.realpath(file)}")
    file.unlink()
    link.symlink_to(next(p for p in sorted(root.iterdir()) if p.is_dir()))
    assert len(scan(root)) == len(scan(other))  # a link within the root


def series(root):
    """A DICOM series of four slices in `root`; a fifth lies elsewhere: its path."""
    pytest.importorskip("pydicom", reason="pydicom, the extra dicom, is absent")
    from tests.unit import test_scans_dicom as dicom

    *inner, last = dicom.series_of(dicom.pixels(shape=(5, 24, 22)))
    dicom.write(root, inner)
    return next(dicom.write(root.parent / "elsewhere", [last]).iterdir())


def test_26_a_dicom_slice_that_is_a_link(tmp_path, caplog):
    root = tmp_path / "series"
    target = series(root)
    link = root / "Z"
    link.symlink_to(target)
    for path in (root, min(root.iterdir())):
        caplog.clear()
        assert read_scan(path).voxels.shape[2] == 4
        (line,) = [r.getMessage() for r in caplog.records]
        assert "holds 1 links out of the folder, which are left out" in line
    assert read_scan(link).voxels.shape[2] == 5  # given by its own name
    link.unlink()
    hidden = root / "deeper/slice"
    hidden.parent.mkdir()
    hidden.write_bytes(target.read_bytes())
    link.symlink_to(hidden)
    caplog.clear()
    assert read_scan(root).voxels.shape[2] == 5  # a link within
    assert not caplog.records


def test_26_a_dicom_folder_of_links_alone(tmp_path):
    target = series(tmp_path / "series")
    root = tmp_path / "links"
    root.mkdir()
    (root / "a").symlink_to(target)
    with pytest.raises(DataError) as error:
        read_scan(root)
    one_line(error.value, "E342", root, "holds 1 links out of the folder")
    (tmp_path / "whole").symlink_to(tmp_path / "series")
    assert read_scan(tmp_path / "whole").voxels.shape[2] == 4


@pytest.mark.filterwarnings("ignore:Invalid value for VR CS")  # pydicom, of `..`
def test_26_a_dicomdir_opens_nothing(tmp_path):
    root = tmp_path / "series"
    target = series(root)
    import pydicom

    record = pydicom.Dataset()
    record.DirectoryRecordType = "IMAGE"
    record.ReferencedFileID = ["..", "elsewhere", target.name]
    index = pydicom.Dataset()
    index.DirectoryRecordSequence = [record]
    index.file_meta = pydicom.dataset.FileMetaDataset()
    index.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    index.file_meta.MediaStorageSOPClassUID = pydicom.uid.MediaStorageDirectoryStorage
    index.file_meta.MediaStorageSOPInstanceUID = pydicom.uid.generate_uid()
    index.save_as(root / "DICOMDIR", enforce_file_format=True)
    assert read_scan(root).voxels.shape[2] == 4
    with pytest.raises(DataError) as error:
        read_scan(root / "DICOMDIR")
    one_line(error.value, "E342", "DICOMDIR", "a DICOM file without a series")


def test_26_a_bank_with_links(tmp_path, caplog):
    scans = [
        write_nifti(tmp_path / name, scan_voxels(i))
        for i, name in enumerate(("in.nii", "bank/a.nii", "elsewhere/b.nii"))
    ]
    link = tmp_path / "bank/b.nii"
    link.symlink_to(scans[2])
    target = read_target(scans[0], "auto", 2)
    found = choose_references(tmp_path / "bank", target, iter, names=True)
    assert {one["name"] for one in found.about} == {"a.nii"}
    assert [*found.remarks] == ["1 links lead out of the bank and are left out."]
    (line,) = [r.getMessage() for r in caplog.records]
    assert f"{link} -> {scans[2]}" in line


@pytest.mark.parametrize(
    "name", ["a/../../b", "..", "\\..\\b", "a\nb", "$(rm x)", "C:b", "\0", "Übung 3"]
)
def test_26_the_name_of_an_output_stays_in_its_folder(tmp_path, name):
    """That of other data which are evaluated: `eval_NAME_TRACK.json`."""
    made = tmp_path / f"eval_{_in_file_names(name)}_random.json"
    assert made.resolve().parent == tmp_path.resolve()
    assert not set(made.name) & set("/\\\n\0$(): ")
    made.touch()


def test_26_a_name_in_a_split_file_opens_nothing(tmp_path):
    root = nifti_root(tmp_path / "data")
    path = tmp_path / "split.json"
    path.write_text(json.dumps({"train": ["../../etc/passwd"], "test": ["/etc"]}))
    wanted = settings(root, tmp_path / "cache", split_file=str(path))
    from daasr_jax.data.splits import assign_splits

    with pytest.raises(ConfigError, match=r"E203.*'\.\./\.\./etc/passwd'"):
        assign_splits(choose_source(wanted).scan(wanted), wanted)


def test_26_members_of_an_npz_are_not_unpacked(tmp_path):
    """A member of a name that leads elsewhere is an array as any other, in memory."""
    path = tmp_path / "in/a.npz"
    path.parent.mkdir()
    np.savez(path, voxels=scan_voxels(1))
    with zipfile.ZipFile(path, "a") as file:
        file.writestr("../../escaped.txt", "x")
    assert read_scan(path).voxels.size == scan_voxels(1).size
    assert not list(tmp_path.rglob("*escaped*"))
