"""Headers of NIfTI files, read and judged before any voxel.

nibabel sees a file only when its header was found good, so what a header declares costs
no memory.
"""

import contextlib
import dataclasses
import gzip
import math
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, cast

import nibabel as nib
import numpy as np
from nibabel import orientations
from nibabel.affines import apply_affine
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError

from daasr_jax.data.sources.base import (
    MAX_DEFLATE_RATIO,
    BadFileError,
    check_packing,
    check_plane,
    check_size,
    check_start,
    complaint,
)

# By the size of the header.
IMAGES: dict[int, Any] = {348: nib.Nifti1Image, 540: nib.Nifti2Image}
# What nibabel and gzip raise for damaged files.
READ_ERRORS = (
    ImageFileError,
    HeaderDataError,
    OSError,
    EOFError,
    ValueError,
    zlib.error,
)
# What may lie between header and voxels; texts of scanners take a few MiB.
_MAX_OFFSET = 2**24
# A voxel side this much longer than both others is the slice direction.
_THICK = 1.5
_AXES = ("axial", "coronal", "sagittal")
# By the lowest three bits of the field `xyzt_units`; other codes are taken as mm.
_MILLIMETRES = {1: 1e3, 3: 1e-3}
# The two orientations of a header agree within this share of a voxel's shortest side.
_AGREEMENT = 0.05
# Beyond this angle to the body's axes the nearest one is a matter of chance.
_OBLIQUE_DEGREES = 35.0
# Axes of a voxel further from right angles than this are sheared.
_SHEAR_DEGREES = 3.0


@dataclasses.dataclass(frozen=True)
class Header:
    """What is wanted of a header.

    Attributes:
        shape: Slices, height, width.
        axis: Across which the slices are cut: axial, coronal or sagittal.
        spacing: Distance of adjacent slices in mm.
        affine: As in `Volume`.
        remarks: What the user should know, as what is said of the file.
    """

    shape: tuple[int, int, int]
    axis: str
    spacing: float
    affine: tuple[tuple[float, ...], ...] | None
    remarks: tuple[str, ...]


@contextlib.contextmanager
def opened(path: Path) -> Iterator[tuple[BinaryIO, bool]]:
    """The file's bytes, unpacked where it is a gzip file whatever its name.

    Yields:
        The stream, and whether the file is packed.

    Raises:
        BadFileError: If its first bytes are those of no image.
    """
    with path.open("rb") as file:
        start = file.read(256)
        check_start(start)
        file.seek(0)
        if start.startswith(b"\x1f\x8b"):
            with gzip.open(file) as stream:
                yield cast(BinaryIO, stream), True
        else:
            yield file, False


def read_header(stream: BinaryIO, path: Path, *, packed: bool) -> nib.Nifti1Header:
    """The header after every check that needs no voxel.

    Raises:
        BadFileError: If the file is not NIfTI or its header cannot be used.
    """
    block = stream.read(540)
    orders = ("little", "big")
    sizes = {int.from_bytes(block[:4], order) for order in orders}
    size = next(iter(sizes & set(IMAGES)), 0)
    if not size or len(block) < size:
        raise BadFileError("is not a NIfTI file")
    header = IMAGES[size].header_class(block[:size])
    if not bytes(header["magic"]).startswith(b"n+"):
        raise BadFileError("is not a NIfTI file, or one half of a .hdr and .img pair")
    _check_header(header, path.stat().st_size, packed=packed)
    return header


def describe(path: Path, wanted: str) -> Header:
    """What is wanted of a file's header.

    Args:
        path: The file.
        wanted: The slice axis of the settings; `auto` goes by the voxels' sides.

    Raises:
        BadFileError: If the file cannot be used.
    """
    try:
        with opened(path) as (stream, packed):
            header = read_header(stream, path, packed=packed)
        affine = np.asarray(header.get_best_affine())
        # axis of the file that runs along L, P and S
        stored = np.asarray(orientations.io_orientation(affine))
    except (BadFileError, *READ_ERRORS) as error:
        raise BadFileError(complaint(error, "NIfTI file")) from None
    sides = np.sqrt(np.square(affine[:3, :3]).sum(axis=0))
    places = [int(np.flatnonzero(stored[:, 0] == world)[0]) for world in (2, 1, 0)]
    # from here on in the order superior, posterior, left
    shape = [int(header.get_data_shape()[axis]) for axis in places]
    spacing = [float(sides[axis]) for axis in places]
    if wanted == "auto":
        thick = int(np.argmax(spacing))
        others = max(side for i, side in enumerate(spacing) if i != thick)
        wanted = _AXES[thick] if spacing[thick] > _THICK * others else "axial"
    slices = shape.pop(_AXES.index(wanted))
    check_plane(*shape)
    millimetres = unit_mm(header)
    told = int(header["qform_code"]) or int(header["sform_code"])
    oriented = slice_affine(affine, header.get_data_shape()[:3], wanted)
    oriented[:3] *= millimetres
    return Header(
        shape=(slices, shape[0], shape[1]),
        axis=wanted,
        spacing=float(np.linalg.norm(oriented[:3, 0])),
        affine=tuple(map(tuple, oriented.tolist())) if told else None,
        remarks=remarks_of(header),
    )


def slice_affine(affine: np.ndarray, shape: Sequence[int], axis: str) -> np.ndarray:
    """From (slice, row, column, 1) of `nifti.slices_of` to the space of the affine.

    Args:
        affine: (4, 4), of the voxels as stored.
        shape: Their three sides.
        axis: As in `nifti.slices_of`.

    Returns:
        (4, 4) float64.
    """
    return affine @ slice_order(affine, shape, axis)


def slice_order(affine: np.ndarray, shape: Sequence[int], axis: str) -> np.ndarray:
    """From (slice, row, column, 1) of `nifti.slices_of` to the voxel as stored.

    Returns:
        (4, 4) float64; each column of its turn has one entry, which is 1 or -1.
    """
    turn = orientations.ornt_transform(
        orientations.io_orientation(affine), orientations.axcodes2ornt(("L", "P", "S"))
    )
    # of slice, row and column: which of the axes L, P and S each runs along
    along = {"axial": (2, 1, 0), "coronal": (1, 2, 0), "sagittal": (0, 2, 1)}[axis]
    order = np.zeros((4, 4))
    order[along, (0, 1, 2)] = order[3, 3] = 1
    if axis != "axial":  # rows run downwards
        upward = shape[int(np.flatnonzero(turn[:, 0] == 2)[0])]
        order[2, 1], order[2, 3] = -1, upward - 1
    return orientations.inv_ornt_aff(turn, shape) @ order


def unit_mm(header: nib.Nifti1Header) -> float:
    """The unit of a header's sides and places, in mm."""
    return _MILLIMETRES.get(int(header["xyzt_units"]) & 7, 1.0)


def remarks_of(header: nib.Nifti1Header) -> tuple[str, ...]:
    """What a user should know of an orientation that is used all the same.

    Args:
        header: Of `read_header`.

    Returns:
        Each as what is said of headers or voxels.
    """
    if not any(_codes(header)):
        return (
            "give no orientation (sform and qform codes are 0), so their axes are "
            "taken as nibabel's default",
        )
    out = []
    affine = np.asarray(header.get_best_affine())
    units = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    if forms_disagree(header):
        out.append(
            "have an sform and a qform that disagree, of which the sform is used"
        )
    if np.abs(units.T @ units - np.eye(3)).max() > np.sin(np.radians(_SHEAR_DEGREES)):
        out.append(
            "are sheared: their axes are not at right angles, and are used as such"
        )
    stored = np.asarray(orientations.io_orientation(affine))
    along = [abs(units[int(world), axis]) for axis, world in enumerate(stored[:, 0])]
    if min(along) < np.cos(np.radians(_OBLIQUE_DEGREES)):
        out.append(
            f"lie more than {_OBLIQUE_DEGREES:.0f} degrees off the body's axes, so "
            "their slices follow the nearest axis of storage"
        )
    return tuple(out)


def forms_disagree(header: nib.Nifti1Header) -> bool:
    """Both orientations are coded, and place a corner elsewhere, by 5 % of a voxel."""
    if not all(_codes(header)):
        return False
    affine = np.asarray(header.get_best_affine())
    corners = np.array(header.get_data_shape()[:3]) - 1.0
    far = np.vstack([np.diag(corners), corners[None], np.zeros((1, 3))])
    try:
        other = header.get_qform()
    except (HeaderDataError, ValueError):  # a quaternion that is none
        return True
    between = apply_affine(affine - other, far)
    sides = np.linalg.norm(affine[:3, :3], axis=0)
    return bool(np.abs(between).max() > _AGREEMENT * sides.min())


def _codes(header: nib.Nifti1Header) -> tuple[int, int]:
    return int(header["sform_code"]), int(header["qform_code"])


def _check_header(header: nib.Nifti1Header, size: int, *, packed: bool) -> None:
    dtype = header.get_data_dtype()
    if dtype.kind not in "fiu":
        held = "colours (RGB)" if dtype.kind == "V" else f"{dtype} values"
        raise BadFileError(f"holds {held}; magnitude images are wanted: convert it")
    shape = header.get_data_shape()
    if len(shape) < 3 or any(side != 1 for side in shape[3:]):
        volumes = math.prod(map(int, shape[3:]))
        many = f", so {volumes} volumes" if volumes > 1 else ""
        raise BadFileError(
            f"has shape {shape}{many}; three axes are wanted: give one volume"
        )
    check_size(shape)
    affine = np.asarray(header.get_best_affine())
    good = np.isfinite(affine).all()
    if good:
        # of the directions alone: a side in metres is small
        sides = np.linalg.norm(affine[:3, :3], axis=0)
        good = abs(np.linalg.det(affine[:3, :3] / np.where(sides, sides, 1))) > 1e-9
    if not good:
        raise BadFileError("has an affine that is not finite or has no volume")
    if np.isnan(orientations.io_orientation(affine)).any():
        raise BadFileError("has an affine that drops an axis")
    offset = header.get_data_offset()
    if offset > _MAX_OFFSET:
        raise BadFileError(
            f"has its voxels begin at byte {offset} (vox_offset), beyond {_MAX_OFFSET}"
        )
    declared = declared_bytes(header)
    if declared > (size * MAX_DEFLATE_RATIO if packed else size):
        raise BadFileError(f"declares {declared} bytes in a file of {size}: truncated")
    check_packing(declared, size)


def declared_bytes(header: nib.Nifti1Header) -> int:
    """Bytes of the uncompressed file by its header."""
    voxels = int(np.prod(header.get_data_shape(), dtype=np.int64))
    offset = max(int(header.get_data_offset()), 0)
    return offset + voxels * header.get_data_dtype().itemsize
