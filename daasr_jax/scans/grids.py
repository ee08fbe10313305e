"""Grids of voxels: that of an enlarged scan, and another scan on a grid."""

import dataclasses
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from daasr_jax.data import companions
from daasr_jax.errors import DataError
from daasr_jax.scans.scan import Scan

# Around the part of a reference that a grid needs, in voxels and in widths of the blur:
# what lies beyond changes the spline by less than 1e-6.
_MARGIN, _MARGIN_SIGMA = 12, 4
# Sides of two scans of unknown place are in one ratio within this many voxels.
_ROUNDED = 1.0
_THREADS = 8


@dataclasses.dataclass(frozen=True, eq=False)
class Grid:
    """Where voxels lie.

    Attributes:
        shape: (X, Y, Z).
        affine: (4, 4) float64, as in `Scan`.
        known_place: As in `Scan`.
    """

    shape: tuple[int, int, int]
    affine: np.ndarray
    known_place: bool = True


def grid_of(scan: Scan) -> Grid:
    """The grid of a scan."""
    x, y, z = scan.voxels.shape
    return Grid((x, y, z), scan.affine, scan.known_place)


def enlarged(scan: Scan, axis: int, scale: int) -> Grid:
    """The grid of the scan with each slice enlarged in its plane.

    A side of a voxel of the plane is divided by the scale. The outer faces of the scan
    stay where they are, so the first centre moves by half the difference of the sides,
    `a (1/scale - 1) / 2` along each axis `a` of the plane.

    Args:
        scan: The scan.
        axis: Axis of storage across which the slices lie; it stays as it is.
        scale: Pixels of a slice become scale x scale.
    """
    factor = np.full(3, float(scale))
    factor[axis] = 1
    affine = scan.affine.copy()
    affine[:3, :3] = scan.affine[:3, :3] / factor
    affine[:3, 3] += scan.affine[:3, :3] @ ((1 / factor - 1) / 2)
    x, y, z = (int(side * f) for side, f in zip(scan.voxels.shape, factor, strict=True))
    return Grid((x, y, z), affine, scan.known_place)


def on_grid(reference: Scan, grid: Grid) -> tuple[np.ndarray, np.ndarray]:
    """A scan at the voxels of a grid, by both places, and where it lies.

    A cubic spline after a blur where the grid is coarser (`data.companions.on_grid`).
    What the spline swings beyond the range of the scan is cut off. Where a place is not
    known, the outer faces of both are taken as the same.

    Args:
        reference: The scan.
        grid: The grid.

    Returns:
        (X, Y, Z) float32 in the unit of the scan, 0 outside it; and (X, Y, Z) bool,
        whether a voxel's centre lies in the scan.

    Raises:
        DataError: If no voxel does (E348), or a place is not known and the shapes are
            in no ratio (E349).
    """
    link = link_of(reference, grid)
    inside = np.empty(grid.shape, bool)
    for i, mask in enumerate(_inside(link, reference.voxels.shape, grid.shape)):
        inside[i] = mask
    if not inside.any():
        raise DataError(
            "E348",
            f"{reference.source} does not overlap: by the headers, no voxel of the "
            "result lies in it; give a scan of the same region, registered if the "
            "patient was taken out in between",
        )
    low, high = reference.voxels.min(), reference.voxels.max()
    part, link = _cropped(reference.voxels, link, grid.shape)
    spline = companions.spline_of(part.astype(np.float32), link)
    voxels = np.zeros(grid.shape, np.float32)

    def fill(i: int) -> None:
        if inside[i].any():
            image = companions.at_slice(spline, link, grid.shape[1:], i)
            np.clip(image, low, high, out=voxels[i], where=inside[i])

    # scipy leaves Python's lock while it works
    with ThreadPoolExecutor(min(os.cpu_count() or 1, _THREADS)) as pool:
        for _ in pool.map(fill, range(grid.shape[0])):
            pass
    return voxels, inside


def link_of(reference: Scan, grid: Grid) -> np.ndarray:
    """From (i, j, k, 1) of a grid to that of a scan, (4, 4) float64.

    Raises:
        DataError: If a place is not known and the shapes are in no ratio (E349).
    """
    if reference.known_place and grid.known_place:
        return np.linalg.inv(reference.affine) @ grid.affine
    have = np.array(reference.voxels.shape, float)
    wanted = np.array(grid.shape, float)
    ratio = have / wanted
    common = ratio[np.argmax(np.abs(np.log(ratio)))]
    fits = np.abs(have - common * wanted) <= _ROUNDED
    other = have != wanted
    # a plane in one ratio, or a volume; never one axis alone
    if not (fits | ~other).all() or other.sum() == 1:
        raise DataError(
            "E349",
            f"{reference.source} has {_by(reference.voxels.shape)} voxels for a result "
            f"of {_by(grid.shape)}, and the headers do not say where both lie: give "
            "files with a place (NIfTI or DICOM), or arrays of one shape",
        )
    link = np.diag([*ratio, 1.0])
    link[:3, 3] = (ratio - 1) / 2
    return link


def _inside(
    link: np.ndarray, shape: tuple[int, ...], grid: tuple[int, int, int]
) -> Iterator[np.ndarray]:
    """Of one plane (Y, Z) after another: which centres lie in the box of a volume."""
    turn, shift = link[:3, :3], link[:3, 3]
    y = turn[:, 1, None, None] * np.arange(grid[1])[:, None]
    z = turn[:, 2, None, None] * np.arange(grid[2])
    ends = np.array(shape).reshape(3, 1, 1) - 0.5
    for i in range(grid[0]):
        place = (turn[:, 0] * i + shift).reshape(3, 1, 1) + y + z
        yield np.all((place >= -0.5) & (place <= ends), axis=0)


def _cropped(
    voxels: np.ndarray, link: np.ndarray, grid: tuple[int, int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """The part of a volume that a grid needs, and the link to that part."""
    corners = np.stack(np.meshgrid(*[(0, side - 1) for side in grid]), axis=-1)
    places = corners.reshape(-1, 3) @ link[:3, :3].T + link[:3, 3]
    ratio = np.linalg.norm(link[:3, :3], axis=1)
    margin = np.ceil(_MARGIN + _MARGIN_SIGMA * ratio)
    first = np.floor(places.min(axis=0) - margin).astype(int).clip(0)
    last = np.ceil(places.max(axis=0) + margin).astype(int) + 1
    part = voxels[tuple(slice(a, b) for a, b in zip(first, last, strict=True))]
    shifted = link.copy()
    shifted[:3, 3] -= first
    return part, shifted


def _by(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))
