"""From a path to a scan: NIfTI, a DICOM series, fastMRI HDF5 or an .npz file.

What a file holds decides how it is read, not its name.
"""

import dataclasses
import io
import math
import os
import tokenize
import zipfile
from pathlib import Path
from typing import cast

import nibabel as nib
import numpy as np
from nibabel.arrayproxy import ArrayProxy

from daasr_jax.data.settings import DataSettings
from daasr_jax.data.sources import fastmri, fastmri_header, nifti
from daasr_jax.data.sources.base import (
    BadFileError,
    check_packing,
    check_size,
    check_start,
    complaint,
    log,
)
from daasr_jax.data.sources.nifti_header import READ_ERRORS, remarks_of, unit_mm
from daasr_jax.errors import DataError
from daasr_jax.scans import dicom
from daasr_jax.scans.scan import Scan, counted

_PICTURES = {
    b"\x89PNG": "a PNG picture",
    b"\xff\xd8\xff": "a JPEG picture",
    b"%PDF": "a PDF document",
    b"NRRD": "an NRRD file",
}
# What reading a damaged .npz file raises besides.
_ZIP_ERRORS = (
    zipfile.BadZipFile,
    KeyError,
    NotImplementedError,
    RuntimeError,
    tokenize.TokenError,
    SyntaxError,
)
_SPACING = "has a spacing that is not three positive numbers in mm"
# Of an .npz file: a header is shorter, and there are fewer arrays.
_HEADER_BYTES, _MOST_MEMBERS = 2**16, 1000
_CONVERT = "is {}: convert it to NIfTI"


def read_scan(path: str | os.PathLike[str]) -> Scan:
    """One scan with its place; what is odd about it is said in the log too.

    Args:
        path: A NIfTI file, packed or not; a folder with the files of one DICOM series
            or one of these files, which then stands for its series; a fastMRI file; or
            an .npz file with one real array (slices, height, width), which may name the
            sides of its voxels in mm in the same order as `spacing`.

    Raises:
        DataError: If there is no scan or it cannot be used (E342), a folder holds
            several series (E343), a series is not one even stack of slices (E344), or
            pydicom is not installed (E345).
    """
    place = Path(path)
    try:
        scan = dicom.read_dicom(place) if place.is_dir() else _read_file(place)
        scan = _finite(scan)
    except (BadFileError, OSError) as error:
        said = complaint(error, "file")
        if isinstance(error, FileNotFoundError):
            said = "there is no such file or folder"
        raise DataError("E342", f"{place}: {said}") from None
    for remark in scan.remarks:
        log.warning("%s %s", place, remark)
    return scan


def _read_file(path: Path) -> Scan:
    with path.open("rb") as file:
        start = file.read(1024)
    check_start(start)
    if dicom.looks_like(start):
        return dicom.read_dicom(path)
    if start.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        return _read_npz(path)
    if start.startswith(b"\x89HDF\r\n"):
        return _read_fastmri(path)
    for begin, what in _PICTURES.items():
        if start.startswith(begin):
            raise BadFileError(_CONVERT.format(what))
    return _read_nifti(path)


def _read_nifti(path: Path) -> Scan:
    try:
        image = nifti.load(path)
        header = image.header.copy()
        voxels = _scaled(image)
    except (BadFileError, *READ_ERRORS, MemoryError) as error:
        said = complaint(error, "NIfTI file")
        if said == "is not a NIfTI file":
            said = "is no scan (NIfTI, DICOM, fastMRI .h5 or .npz)"
        raise BadFileError(said) from None
    affine = np.array(image.affine, np.float64)
    affine[:3] *= unit_mm(header)
    remarks = [f"has voxels that {remark}" for remark in remarks_of(header)]
    if len(image.shape) > 3:
        remarks.insert(0, f"has shape {image.shape}, taken as the one volume it holds")
    sides = np.linalg.norm(affine[:3, :3], axis=0)
    return Scan(
        voxels=voxels,
        affine=affine,
        known_place=bool(int(header["qform_code"]) or int(header["sform_code"])),
        spacing=(float(sides[0]), float(sides[1]), float(sides[2])),
        source=str(path),
        kind="nifti",
        header=header,
        remarks=tuple(remarks),
    )


def _scaled(image: nib.Nifti1Image) -> np.ndarray:
    """(X, Y, Z) in memory: integers as stored, all else float32."""
    proxy = cast(ArrayProxy, image.dataobj)
    shape = image.shape[:3]
    stored = np.asanyarray(proxy.get_unscaled()).reshape(shape)
    if stored.dtype.kind in "iu" and (proxy.slope, proxy.inter) == (1, 0):
        return np.array(stored, stored.dtype.newbyteorder("="))
    out = np.empty(shape, np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        for k in range(shape[2]):
            out[..., k] = stored[..., k] * np.float64(proxy.slope) + proxy.inter
    return out


def _read_fastmri(path: Path) -> Scan:
    settings = DataSettings(root=str(path.parent), subject_from="file")
    volume = fastmri.describe(path, path.parent, "", settings).volume
    assert volume is not None  # every contrast is wanted
    try:
        voxels = fastmri.read(volume)
    except DataError as error:
        raise BadFileError(error.args[0].removeprefix(f"{path}: ")) from None
    told = fastmri_header.sides(path, *volume.shape[1:])
    return _without_place(path, "fastmri", voxels, told)


def _read_npz(path: Path) -> Scan:
    try:
        with zipfile.ZipFile(path) as file:
            stored = {i.filename: i.compress_size for i in file.infolist()}
            if len(stored) > _MOST_MEMBERS:
                raise BadFileError(f"holds {len(stored)} members; one array is wanted")
            members = {n.removesuffix(".npy"): n for n in stored}
            arrays = {
                name: found
                for name, member in members.items()
                if (found := _array_header(file, member)) is not None
            }
        images = [n for n, (shape, _) in arrays.items() if len(shape) == 3]
        if "voxels" in images:
            images = ["voxels"]
        if len(images) != 1:
            told = ", ".join(f"{n} {shape}" for n, (shape, _) in arrays.items())
            raise BadFileError(
                f"holds {told or 'no array'}; one array (slices, height, width) is "
                "wanted, or one of the name voxels"
            )
        shape, dtype = arrays[images[0]]
        if dtype.kind not in "fiu":
            raise BadFileError(
                f"holds {dtype} values; magnitude images are wanted: convert them"
            )
        check_size(shape)
        packed = min(stored[members[images[0]]], path.stat().st_size)
        check_packing(math.prod(shape) * dtype.itemsize, packed)
        if "spacing" in arrays:
            side = arrays["spacing"]
            if side[0] != (3,) or side[1].kind not in "fiu":
                raise BadFileError(_SPACING)
        with np.load(path, allow_pickle=False) as file:
            voxels = np.asarray(file[images[0]])
            sides = file["spacing"] if "spacing" in arrays else np.full(3, math.nan)
    except (BadFileError, *READ_ERRORS, *_ZIP_ERRORS) as error:
        raise BadFileError(complaint(error, "npz file")) from None
    if (sides <= 0).any():
        raise BadFileError(_SPACING)
    if dtype.kind == "f":
        voxels = voxels.astype(np.float32, copy=False)
    return _without_place(path, "npz", voxels, (sides[0], sides[1], sides[2]))


def _array_header(
    file: zipfile.ZipFile, member: str
) -> tuple[tuple[int, ...], np.dtype] | None:
    """Shape and type of one array of an .npz file, from its first bytes."""
    if not member.endswith(".npy"):
        return None
    with file.open(member) as stream:
        start = io.BytesIO(stream.read(_HEADER_BYTES))
    version = np.lib.format.read_magic(start)
    read = (
        np.lib.format.read_array_header_1_0
        if version == (1, 0)
        else np.lib.format.read_array_header_2_0
    )
    shape, _, dtype = read(start)
    return shape, dtype


def _without_place(
    path: Path, kind: str, slices: np.ndarray, sides: tuple[float, float, float]
) -> Scan:
    """Slices of unknown place, as if axial: upwards, rows to the back, left columns."""
    voxels = slices[:, ::-1].transpose(2, 1, 0)
    s, h, w = (float(side) for side in sides)
    header = nib.Nifti1Header()
    header.set_data_shape(voxels.shape)
    header.set_zooms([side if math.isfinite(side) else 1.0 for side in (w, h, s)])
    return Scan(
        voxels=voxels,
        affine=header.get_base_affine().astype(np.float64),
        known_place=False,
        spacing=(w, h, s),
        source=str(path),
        kind=kind,
    )


def _finite(scan: Scan) -> Scan:
    """Voxels that are no numbers become 0, which is said."""
    if scan.voxels.dtype.kind != "f":
        return scan
    voxels = scan.voxels.astype(np.float32, copy=False)
    count = sum(int(np.count_nonzero(~np.isfinite(part))) for part in voxels)
    if count == voxels.size:
        raise BadFileError("holds no finite value")
    remarks = scan.remarks
    if count:
        voxels = np.nan_to_num(voxels, nan=0.0, posinf=0.0, neginf=0.0)
        remarks += (f"has {counted(count)} that are NaN or infinite, taken as 0",)
    return dataclasses.replace(scan, voxels=voxels, remarks=remarks)
