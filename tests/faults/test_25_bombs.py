"""Fault 25: a small file that declares or unpacks to far more than it holds.

Expected: the declared size, the ratio of packing and the place of the voxels are judged
by the header before anything is allocated; exit code 3, with the file. A process that
reads such a file never holds 200 MB more than before.
"""

from __future__ import annotations

import functools
import gzip
import io
import json
import subprocess
import sys
import tracemalloc
import zipfile
import zlib
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
        declaring(tmp_path / f"p/{name}.nii.gz", shape)
    with pytest.raises(DataError) as error:
        scan(tmp_path)
    one_line(error.value, "2 of 2", "limit", "truncated")


def declaring(path: Path, shape) -> Path:
    """A small NIfTI file whose header declares another shape."""
    data = bytearray(gzip.decompress(write_nifti(path, scan_voxels(1)).read_bytes()))
    data[42:48] = np.array(shape, np.int16).tobytes()
    path.write_bytes(gzip.compress(bytes(data)))
    return path


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"shape": (600, 600, 373)}, "no image packs so well"),
        ({"offset": 2e9}, "vox_offset"),
        ({"offset": 2e7}, "vox_offset"),
    ],
)
def test_25_nifti_that_unpacks_to_much(tmp_path, change, why):
    path = gzipped(tmp_path / "p/T1.nii.gz", **change)
    tracemalloc.start()
    with pytest.raises(DataError) as error:
        scan(tmp_path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    one_line(error.value, "E302", path, why)
    assert peak < 2**22


def gzipped(path: Path, shape=(16, 16, 16), offset: float = 352) -> Path:
    """A MB of zeros that is a whole, valid NIfTI file of 256 MiB."""
    image = nib.Nifti1Image(np.zeros((16, 16, 16), np.uint16), LPS_AFFINE)
    block = bytearray(image.to_bytes()[:352])
    block[42:48] = np.array(shape, "<i2").tobytes()
    block[108:112] = np.float32(offset).tobytes()
    path.parent.mkdir(parents=True)
    # an extension that claims everything up to the voxels
    block += np.array([2**28, 4], "<i4").tobytes()
    path.write_bytes(gzip.compress(bytes(block)) + zeros(b"", 2**28, 31))
    return path


@functools.cache
def zeros(start: bytes, size: int, wbits: int = 15) -> bytes:
    """`start` and that many zeros, packed."""
    packer = zlib.compressobj(9, zlib.DEFLATED, wbits)
    parts = [packer.compress(start)]
    parts += [packer.compress(bytes(2**20)) for _ in range(size // 2**20)]
    return b"".join([*parts, packer.flush()])


def packed_h5(
    path: Path, shape, chunks, maxshape=None, content: bytes = bytes(2**15)
) -> Path:
    """A file whose first chunk has that content, packed."""
    path.parent.mkdir(exist_ok=True)
    with h5py.File(path, "w") as file:
        file.attrs["patient_id"] = "p"
        data = file.create_dataset(
            "reconstruction_rss", shape, "f4", chunks=chunks, compression="gzip",
            maxshape=maxshape,
        )  # fmt: skip
        data.id.write_direct_chunk((0, 0, 0), content)
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


LAUGHS = "<!DOCTYPE x [<!ENTITY a0 'ha'>" + "".join(
    f"<!ENTITY a{i} '{10 * f'&a{i - 1};'}'>" for i in range(1, 10)
)


def header_of(path: Path, size: int) -> Path:
    """A file of fastMRI with a header of that many bytes, packed."""
    with h5py.File(write_h5(path, subject="p", kspace=KSPACE), "a") as file:
        data = file.create_dataset(
            "ismrmrd_header", (1,), f"S{size}", chunks=(1,), compression="gzip"
        )
        data.id.write_direct_chunk((0,), zeros(b"<", size - 1))
    return path


KSPACE = np.ones((2, 16, 16), np.complex64)
WHOLE_H5 = (64, 1024, 1024)


def bombs(folder: Path) -> dict[str, list[str]]:
    """Cases of `tests.faults.peaks`, each with what the line of its error has."""
    well, beyond = "packs so well", "more than the limit"

    def h5(name: str) -> Path:
        return folder / name / "a.h5"

    def gz(name: str) -> Path:
        return folder / name / "p/T1.nii.gz"

    laughs = f"{LAUGHS}]><ismrmrdHeader>&a9;</ismrmrdHeader>"
    roots = {
        packed_h5(h5("a"), (2**16, 1024, 1024), (1, 64, 64)): beyond,
        packed_h5(h5("b"), WHOLE_H5, WHOLE_H5, content=zeros(b"", 2**28)): well,
        packed_h5(h5("c"), (2, 16, 16), (64, 2**12, 2**12), (None,) * 3): well,
        header_of(h5("d"), 2**28): "ismrmrd_header may hold",
        write_h5(h5("e"), subject="p", kspace=KSPACE, header=laughs): "an entity",
        gzipped(gz("f"), (600, 600, 373)): well,
        gzipped(gz("g"), offset=2e9): "vox_offset",
        gzipped(gz("h"), offset=2e8): "vox_offset",
        declaring(gz("i"), (32000, 32000, 100)): beyond,
        declaring(gz("j"), (700, 700, 700)): "truncated",
    }
    cases = {}
    for path, why in roots.items():
        cases[f"data:{folder / path.relative_to(folder).parts[0]}"] = ["E302", why]
        cases[f"scan:{path}"] = ["E342", why]
    for number, (members, why) in enumerate(NPZ.values()):
        cases[f"scan:{npz(folder / f'{number}.npz', **members)}"] = ["E342", why]
    for name, why in (("large", beyond), ("deflated", "deflated as a whole")):
        cases[f"scan:{dicom_bomb(folder / name, name)}"] = ["E342", why]
    return cases


def dicom_bomb(folder: Path, kind: str) -> Path:
    """A slice of 8 GiB by its header, or one whose file unpacks to 256 MiB."""
    from tests.unit import test_scans_dicom as dicom

    (image,) = dicom.series_of(dicom.pixels(shape=(1, 24, 22)))
    if kind == "large":
        image.Rows = image.Columns = 2**16 - 1
    (path,) = dicom.write(folder, [image]).iterdir()
    if kind == "deflated":
        plain, deflated = b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.2.1.99"
        data = path.read_bytes()
        at = data.index(plain)
        length = int.from_bytes(data[140:144], "little")  # of the group that is plain
        longer = (length + len(deflated) - len(plain)).to_bytes(4, "little")
        start = data[:140] + longer + data[144 : at - 2]
        start += len(deflated).to_bytes(2, "little") + deflated
        start += data[at + len(plain) : 144 + length]
        body = data[144 + length :] + b"\xf1\x7f\x10\x00OB\0\0" + bytes(3) + b"\x10"
        path.write_bytes(start + zeros(body, 2**28, -15))
    return path


@pytest.mark.timeout(200)
def test_25_peak_of_the_resident_memory(tmp_path):
    """Each in a process of its own peak; memory that is taken is seen."""
    pytest.importorskip("pydicom", reason="pydicom, the extra dicom, is absent")
    if not Path("/proc/self/clear_refs").exists():
        pytest.skip("the system does not tell the peak of a process")
    cases = bombs(tmp_path)
    done = subprocess.run(
        [sys.executable, "-m", "tests.faults.peaks", *cases, "take:300"],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=True,
    )
    *found, taken = json.loads(done.stdout)
    assert taken[1] > 290
    for (case, words), (said, grown) in zip(cases.items(), found, strict=True):
        print(f"{case}: {grown:.1f} MiB")
        for word in words:
            assert word in said, case
        assert grown < 200, case
