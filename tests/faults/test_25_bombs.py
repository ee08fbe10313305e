"""Fault 25: a small file that declares or unpacks to far more than it holds.

Expected: the declared size, the ratio of packing and the place of the voxels are judged
by the header before anything is allocated; exit code 3, with the file.
"""

from __future__ import annotations

import gzip
import io
import resource
import tracemalloc
import zipfile
from pathlib import Path

import h5py
import nibabel as nib
import numpy as np
import pytest

from daasr_jax.data import DataSettings
from daasr_jax.data.kspace import recon_size
from daasr_jax.data.sources import choose_source, fastmri_header
from daasr_jax.errors import DataError
from daasr_jax.scans import read_scan
from tests.data_fixtures import (
    HEADER,
    LPS_AFFINE,
    one_line,
    scan_voxels,
    write_h5,
    write_nifti,
)


def scan(root, **changes):
    wanted = DataSettings(root=str(root), **changes)
    return choose_source(wanted).scan(wanted)


def test_25_hdf5_sizes_and_unwritten_data(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.attrs["patient_id"] = "p"
        file.create_dataset(
            "reconstruction_rss", (2**20, 1024, 1024), "f4", chunks=(1, 64, 64)
        )
    with h5py.File(tmp_path / "b.h5", "w") as file:
        file.attrs["patient_id"] = "p"
        file.create_dataset(
            "reconstruction_rss", (40, 640, 640), "f4", chunks=(1, 64, 64)
        )
    with pytest.raises(DataError) as error:
        scan(tmp_path)
    one_line(error.value, "limit", "stores 0")


@pytest.mark.parametrize("kind", ["packed", "many", "beside"])
def test_25_the_length_of_a_header(tmp_path, monkeypatch, kind):
    kspace = np.ones((2, 16, 16), np.complex64)
    path = write_h5(tmp_path / "a.h5", subject="p", kspace=kspace)
    with h5py.File(path, "a") as file:
        name = "ismrmrd_header"
        if kind == "packed":  # 64 MiB in some KiB
            file.create_dataset(
                name, (1,), f"S{2**26}", chunks=(1,), compression="gzip"
            )
            file[name][0] = b"<"
        elif kind == "many":
            file.create_dataset(
                name, (2**20,), "S64", chunks=(2**16,), compression="gzip"
            )
        else:
            file[name] = "x" * 2**21
            monkeypatch.setattr(fastmri_header, "_MAX_BESIDE_BYTES", 2**20)
    tracemalloc.start()
    with pytest.raises(DataError) as error:
        scan(tmp_path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    one_line(error.value, path, "ismrmrd_header")
    assert peak < 2**21


@pytest.mark.parametrize(
    "header",
    [
        '<!DOCTYPE x [<!ENTITY a "aaaa">]><ismrmrdHeader/>',
        "<!ENTITY a>" + HEADER.format(ex=1, ey=1, x=1, y=1),
        "<ismrmrdHeader/>",
        HEADER.format(ex=1, ey=1, x=0, y=1),
        " " * 2**21,
    ],
)
def test_25_entities_in_a_header(header):
    with pytest.raises(ValueError, match="ismrmrd_header"):
        recon_size(header, 8, 8)


def test_25_nifti_sizes(tmp_path):
    for name, shape in (("a", (32000, 32000, 100)), ("b", (700, 700, 700))):
        path = write_nifti(tmp_path / f"p/{name}.nii.gz", scan_voxels(1))
        data = bytearray(gzip.decompress(path.read_bytes()))
        data[42:48] = np.array(shape, np.int16).tobytes()
        path.write_bytes(gzip.compress(bytes(data)))
    with pytest.raises(DataError) as error:
        scan(tmp_path)
    one_line(error.value, "2 of 2", "limit", "truncated")


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"shape": (600, 600, 373)}, "no image packs so well"),
        ({"offset": 2e9}, "vox_offset"),
        ({"offset": 2e7}, "vox_offset"),
    ],
)
def test_25_nifti_that_unpacks_to_much(tmp_path, change, why):
    """A MB of zeros that is a whole, valid file of 256 MiB."""
    image = nib.Nifti1Image(np.zeros((16, 16, 16), np.uint16), LPS_AFFINE)
    block = bytearray(image.to_bytes()[:352])
    block[42:48] = np.array(change.get("shape", (16, 16, 16)), "<i2").tobytes()
    block[108:112] = np.float32(change.get("offset", 352)).tobytes()
    path = tmp_path / "p/T1.nii.gz"
    path.parent.mkdir()
    with gzip.open(path, "wb", compresslevel=9) as file:
        file.write(block)
        # an extension that claims everything up to the voxels
        file.write(np.array([2**28, 4], "<i4").tobytes())
        for _ in range(256):
            file.write(bytes(2**20))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    tracemalloc.start()
    with pytest.raises(DataError) as error:
        scan(tmp_path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    one_line(error.value, "E302", path, why)
    assert peak < 2**22
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**16


def packed_h5(path: Path, shape, chunks, maxshape=None) -> Path:
    """A file of zeros that packs a thousand to one."""
    with h5py.File(path, "w") as file:
        file.attrs["patient_id"] = "p"
        data = file.create_dataset(
            "reconstruction_rss", shape, "f4", chunks=chunks, compression="gzip",
            maxshape=maxshape,
        )  # fmt: skip
        data.id.write_direct_chunk((0, 0, 0), bytes(2**15))
    return path


def test_25_hdf5_that_packs_too_well(tmp_path):
    packed_h5(tmp_path / "a.h5", (32, 1024, 1024), (32, 1024, 1024))
    huge = (64, 2**12, 2**12)  # a chunk of 4 GiB, for an image of a few KiB
    packed_h5(tmp_path / "b.h5", (2, 16, 16), (63, *huge[1:]), (None, None, None))
    with pytest.raises(DataError) as error:
        scan(tmp_path)
    one_line(error.value, "E302", "2 of 2", "a.h5: reconstruction_rss", "packs so well")


def npz(path: Path, **members: bytes) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in members.items():
            file.writestr(f"{name}.npy", content)
    return path


def npy(shape, descr="<f4", content=b"") -> bytes:
    out = io.BytesIO()
    about = {"descr": descr, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(out, about)
    return out.getvalue() + content


WHOLE = npy((3, 16, 16), content=bytes(3 * 16 * 16 * 4))
LONG = b"\x93NUMPY\x02\x00" + (2**28).to_bytes(4, "little") + b" " * 2**22
NPZ = {
    "size": ({"a": npy((2**20, 2**10, 2**10))}, "limit"),
    "packs too well": ({"a": npy((128, 512, 512), content=bytes(2**20))}, "so well"),
    "header": ({"a": LONG}, "damaged npz"),
    "spacing": ({"a": WHOLE, "spacing": npy((2**36,))}, "spacing"),
    "text": ({"a": WHOLE, "spacing": npy((3,), "<U99999999")}, "spacing"),
    "members": ({f"m{i}": b"" for i in range(1001)}, "1001 members"),
}


@pytest.mark.parametrize("name", NPZ)
def test_25_npz(tmp_path, name):
    members, why = NPZ[name]
    path = npz(tmp_path / "a.npz", **members)
    tracemalloc.start()
    with pytest.raises(DataError) as error:
        read_scan(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    one_line(error.value, "E342", path, why)
    assert peak < 2**23


def test_25_dicom(tmp_path):
    pydicom = pytest.importorskip("pydicom", reason="pydicom is absent")
    from tests.unit import test_scans_dicom as dicom

    def refused(image, name, *parts):
        path = dicom.write(tmp_path / name, [image])
        tracemalloc.start()
        with pytest.raises(DataError) as error:
            read_scan(path)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        one_line(error.value, "E342", path, *parts)
        assert peak < 2**23

    def one():
        return dicom.series_of(dicom.pixels(shape=(1, 24, 22)))[0]

    image = one()
    image.Rows = image.Columns = 2**16 - 1
    refused(image, "limit", "limit")
    image.Rows = image.Columns = 2**14
    refused(image, "packs", "no image packs so well")
    image = one()
    image.add_new(0x00420011, "OB", bytes(2**24))
    path = dicom.write(tmp_path / "deflated", [image]) / "deflated.dcm"
    (file,) = path.parent.iterdir()
    whole = pydicom.dcmread(file)
    whole.file_meta.TransferSyntaxUID = pydicom.uid.DeflatedExplicitVRLittleEndian
    whole.save_as(file)
    with pytest.raises(DataError) as error:
        read_scan(path.parent)
    one_line(error.value, "E342", "deflated as a whole", "dcmconv")
    assert file.stat().st_size < 2**16
