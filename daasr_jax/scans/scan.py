"""A scan in memory, and its slices as training cuts them."""

import dataclasses
import math
from typing import Any

import numpy as np
from nibabel import orientations

from daasr_jax.data.sources.base import MIN_SIDE, log
from daasr_jax.data.sources.nifti import in_order
from daasr_jax.data.sources.nifti_header import slice_order
from daasr_jax.errors import DataError

# Which way an axis of storage runs, and how the slices across it are called.
_NAMES = {"R": "sagittal", "A": "coronal", "S": "axial"}
# Sides that differ by less than this share are equal.
_EQUAL = 0.05
# A side that is longer than both others by less than this factor is hardly thicker.
_THICK = 1.5


@dataclasses.dataclass(frozen=True, eq=False)
class Scan:
    """One volume with its place.

    Attributes:
        voxels: (X, Y, Z) real in the unit of the file, scaled where the header says so:
            integers as stored where nothing is scaled, else float32.
        affine: (4, 4) float64, from the centre of voxel (i, j, k, 1) to mm; x to the
            right, y to the front, z to the top. An assumption without `known_place`.
        known_place: The header places the scan in the scanner's space.
        spacing: Sides of a voxel along its three axes in mm; NaN where unknown, and 1
            in the affine.
        source: The path it was read from.
        kind: `nifti`, `dicom`, `fastmri` or `npz`.
        header: What a writer keeps of it: the NIfTI header, or the DICOM datasets of
            the slices, along the third axis and without their pixels. Else None.
        remarks: What the user should know of the file, in words.
    """

    voxels: np.ndarray
    affine: np.ndarray
    known_place: bool
    spacing: tuple[float, float, float]
    source: str
    kind: str
    header: Any = None
    remarks: tuple[str, ...] = ()


def counted(voxels: int) -> str:
    """Such as `1 voxel` and `5 voxels`."""
    return f"{voxels} voxel{'s' * (voxels != 1)}"


def axis_name(affine: np.ndarray, axis: int) -> str:
    """How slices across an axis of storage are called: axial, coronal or sagittal."""
    along = orientations.io_orientation(affine)
    return _NAMES["RAS"[int(along[axis, 0])]]


def slice_axis(scan: Scan, axis: str = "auto") -> int:
    """The axis of storage across which slices are cut.

    Args:
        scan: The scan.
        axis: `axial`, `coronal`, `sagittal`; `0`, `1`, `2`, an axis of storage; or
            `auto`, the longest side of a voxel. Where sides are equal within 5 %, it is
            `axial` if that is among the longest; so is a scan of unknown sides.

    Returns:
        0, 1 or 2.

    Raises:
        DataError: If the word is another one, or the slices would be under 11 pixels
            a side (E346).
    """
    names = [axis_name(scan.affine, i) for i in range(3)]
    if axis == "auto":
        found = _thickest(scan, names)
    elif axis in names:
        found = names.index(axis)
    elif axis in ("0", "1", "2"):
        found = int(axis)
    else:
        raise DataError(
            "E346",
            f"--axis {axis} is none of auto, axial, coronal, sagittal, 0, 1 and 2",
        )
    plane = [side for i, side in enumerate(scan.voxels.shape) if i != found]
    if min(plane) < MIN_SIDE:
        raise DataError(
            "E346",
            f"{scan.source}: its slices across axis {found} have {plane[0]}x{plane[1]} "
            f"pixels, under {MIN_SIDE} a side: choose another --axis",
        )
    return found


def in_plane(scan: Scan, axis: int, voxels: np.ndarray | None = None) -> np.ndarray:
    """The slices across an axis, turned as training turns them.

    Axial: slices upwards, rows to the back, columns to the left. Coronal: slices to the
    back, rows downwards, columns to the left. Sagittal: slices to the left, rows
    downwards, columns to the back. Each axis of an oblique scan counts as the nearest.

    Args:
        scan: The scan.
        axis: Axis of storage, 0 to 2.
        voxels: Voxels of another size along the axes of the scan, such as those of
            `on_grid`; the scan's own where None.

    Returns:
        (S, H, W), a view.
    """
    return in_order(scan.voxels if voxels is None else voxels, _order(scan, axis))


def back(slices: np.ndarray, scan: Scan, axis: int) -> np.ndarray:
    """The inverse of `in_plane`: (S, H, W) of any size to (X, Y, Z), a view."""
    turn = _order(scan, axis)[:3, :3]
    view = slices[
        tuple(slice(None, None, -1 if s < 0 else 1) for s in turn.sum(axis=0))
    ]
    return np.transpose(view, np.abs(turn).argmax(axis=1))


def _order(scan: Scan, axis: int) -> np.ndarray:
    shape = scan.voxels.shape
    return slice_order(scan.affine, shape, axis_name(scan.affine, axis))


def _thickest(scan: Scan, names: list[str]) -> int:
    sides = scan.spacing
    axial = names.index("axial")
    if not all(map(math.isfinite, sides)):
        return axial
    longest = [i for i in range(3) if sides[i] > max(sides) * (1 - _EQUAL)]
    found = axial if axial in longest else longest[0]
    others = [sides[i] for i in range(3) if i != found]
    told = f"{scan.source}: voxels of {'x'.join(f'{side:.3g}' for side in sides)} mm"
    if len(longest) > 1:
        log.warning(
            "%s have no longest side; the slices are taken %s, and --axis changes it",
            told,
            names[found],
        )
    elif sides[found] <= _THICK * max(others):
        log.warning(
            "%s are nearly as long as they are thick; the slices are taken %s, across "
            "the longest side, and --axis changes it",
            told,
            names[found],
        )
    return found
