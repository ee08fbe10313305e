"""From voxels and their grid to a NIfTI file in the space of the scan."""

import os
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.affines import apply_affine
from nibabel.nifti1 import Nifti1Extension
from numpy.typing import DTypeLike

from daasr_jax.data.sources.base import log, system_words
from daasr_jax.data.sources.nifti_header import (
    IMAGES,
    forms_disagree,
    unit_mm,
)
from daasr_jax.files import replacing
from daasr_jax.scans.grids import Grid
from daasr_jax.scans.output import cannot_write, check_output
from daasr_jax.scans.quaternion import Qform, qform_of
from daasr_jax.scans.scan import Scan
from daasr_jax.scans.unfit import COMMENT, marked

_DESCRIP = 80  # bytes of the field
_NO_TEXTS = ("magic", "regular")
_SCANNER = 1  # NIFTI_XFORM_SCANNER_ANAT
# A qform that is off by more than this, in mm, is named.
_EXACT_MM = 1e-4


def write_nifti(
    path: str | os.PathLike[str],
    voxels: np.ndarray,
    grid: Grid,
    like: Scan,
    description: str = "",
    dtype: DTypeLike = np.float32,
    force: bool = False,
    inputs: Sequence[str | os.PathLike[str]] = (),
    same_unit: bool = True,
    texts: bool = False,
) -> None:
    """Writes a volume in the world space of the scan that it was made from.

    Kept of a NIfTI scan: NIfTI-1 or -2, units, sform and qform codes, repetition time,
    intent and display range. Its texts, which may name the patient, are kept only where
    it is asked for. Both forms lie where the scan's sform lies;
    where its qform is another by more than 5 % of a voxel, each goes its own way. Of a
    DICOM scan the repetition time is taken and both codes are "scanner"; the qform's is
    0 where it would be off by more than 1e-4 mm (see `scans.quaternion`). Without a
    known place both codes are 0.

    A file under a temporary name becomes `path` when it is whole.

    Args:
        path: `.nii` or `.nii.gz`.
        voxels: (X, Y, Z) real in the unit of the scan.
        grid: Where they lie.
        like: The scan.
        description: Behind the name of the program, by which `unfit.is_result` knows
            the file, it goes into the field of 80 bytes where the scan left it empty,
            and in full into a comment after the header.
        dtype: Of the file. An integer type holds rounded values where the scan's voxels
            are integers, else scaled ones (`scl_slope`).
        force: Replace a file that is there.
        inputs: Other files that must not be written to, such as references.
        same_unit: The values are those of the scan's unit. Of a map of other values its
            description, intent and display range are not kept.
        texts: Keep the texts of the scan's header: its description, names of intent,
            data base and other files, and comments.

    Raises:
        DataError: As `output.check_output` (E350, E351, E352, E354).
    """
    path = Path(path)
    check_output(path, [like.source, *inputs], force, form="nifti")
    header = header_for(grid, like, description, same_unit=same_unit, texts=texts)
    header.set_data_dtype(np.dtype(dtype))
    image = IMAGES[int(header["sizeof_hdr"])](
        _as_type(voxels, np.dtype(dtype), like), None, header
    )
    ending = ".nii.gz" if path.name.lower().endswith(".gz") else ".nii"
    try:
        with replacing(path, ending) as temporary:
            image.to_filename(temporary)
    except (OSError, zlib.error) as error:
        why = system_words(error) if isinstance(error, OSError) else str(error)
        raise cannot_write(path, why) from None


def stored_type(scan: Scan) -> np.dtype:
    """The type in which a scan's file holds its voxels; that in memory of no NIfTI."""
    held = scan.header.get_data_dtype() if scan.kind == "nifti" else scan.voxels.dtype
    return np.dtype(held)


def header_for(
    grid: Grid,
    like: Scan,
    description: str = "",
    *,
    same_unit: bool = True,
    texts: bool = False,
) -> Any:
    """The NIfTI header of a result, see `write_nifti`."""
    if like.kind == "nifti":
        header = like.header.copy()
        header.extensions[:] = [
            e for e in header.extensions if texts and e.get_code() == COMMENT
        ]
        for name in [] if texts else header.keys():
            if header[name].dtype.kind == "S" and name not in _NO_TEXTS:
                header[name] = b""
        if not same_unit:
            header["descrip"], header["cal_min"], header["cal_max"] = b"", 0, 0
            header.set_intent("none")
        codes = int(header["sform_code"]), int(header["qform_code"])
    else:
        header = nib.Nifti1Header()
        header.set_xyzt_units("mm", "sec")
        codes = (_SCANNER, _SCANNER) if like.known_place else (0, 0)
    mm = unit_mm(header)
    sform = np.diag([1 / mm, 1 / mm, 1 / mm, 1]) @ grid.affine
    own = None
    if like.kind == "nifti" and forms_disagree(header):
        own = _own_qform(header, np.linalg.inv(like.affine) @ grid.affine, grid.shape)
    rest = header["pixdim"][4:].copy()
    if like.kind == "dicom":
        rest[0] = getattr(like.header[0], "RepetitionTime", None) or 0
        rest[0] /= 1000  # from ms
    header.set_data_shape(grid.shape)
    header["pixdim"][4:] = rest
    held = own or qform_of(sform, grid.shape)
    header["pixdim"][0] = held.handed
    header["pixdim"][1:4] = held.sides
    header["quatern_b"], header["quatern_c"], header["quatern_d"] = held.quaternion
    for name, value in zip("xyz", held.offset, strict=True):
        header[f"qoffset_{name}"] = value
    for name, row in zip("xyz", sform, strict=False):
        header[f"srow_{name}"] = row
    header["sform_code"], header["qform_code"] = codes
    if own is None and held.error * mm > _EXACT_MM:
        if like.kind != "nifti":
            header["qform_code"] = 0
        log.info(
            "the axes of the result are held by its sform; a qform, whose numbers have "
            "24 bits and no shear, would be off by %.2g mm at a corner",
            held.error * mm,
        )
    text = marked(description).encode("utf-8", "replace")
    if not bytes(header["descrip"]).strip(b"\0 "):
        header["descrip"] = text[:_DESCRIP]
    header.extensions.append(Nifti1Extension(COMMENT, text))
    return header


def qform_remark(grid: Grid, like: Scan) -> str:
    """What the user should know of the qform of a result, see `write_nifti`.

    Returns:
        A sentence where a corner is off by more than 1e-4 mm and the code is kept;
        empty where the scan's own goes its way, which is said when the scan is read.
    """
    header = header_for(grid, like)
    own = like.kind == "nifti" and forms_disagree(like.header)
    if own or not int(header["qform_code"]):
        return ""
    ends = np.stack(np.meshgrid(*[(-0.5, n - 0.5) for n in grid.shape]), axis=-1)
    off = unit_mm(header) * header.get_qform()[:3] - grid.affine[:3]
    error = np.linalg.norm(apply_affine(np.vstack([off, [0, 0, 0, 1]]), ends), axis=-1)
    if error.max() <= _EXACT_MM:
        return ""
    kept = "its sform is right" if int(header["sform_code"]) else "it has no sform"
    return (
        f"The qform of the result is off by {error.max():.2g} mm at a corner, as its "
        f"numbers have 24 bits and no shear; {kept}."
    )


def _own_qform(header: Any, link: np.ndarray, shape: tuple[int, ...]) -> Qform | None:
    """The scan's own qform moved on to a grid; None where it has none that is valid."""
    try:
        affine = header.get_qform() @ link
    except ValueError:  # a quaternion that is none
        return None
    turn = link[:3, :3]
    straight = (turn.diagonal() > 0).all() and np.allclose(
        turn, np.diag(turn.diagonal()), atol=1e-9
    )
    same = [header[f"quatern_{name}"] for name in "bcd"]
    return qform_of(affine, shape, np.array(same) if straight else None)


def _as_type(voxels: np.ndarray, dtype: np.dtype, like: Scan) -> np.ndarray:
    if dtype.kind in "iu" and like.voxels.dtype.kind in "iu":
        low, high = (np.float64(getattr(np.iinfo(dtype), x)) for x in ("min", "max"))
        if int(high) > np.iinfo(dtype).max:  # of 64 bits, which a float rounds up
            high = np.nextafter(high, 0.0)
        out = np.empty(voxels.shape, dtype)
        for whole, part in zip(out, voxels, strict=True):
            whole[...] = np.clip(np.rint(part, dtype=np.float64), low, high)
        return out
    return voxels if dtype.kind in "iu" else voxels.astype(dtype, copy=False)
