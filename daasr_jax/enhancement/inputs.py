"""A scan as the slices that a network takes, and references for each of them."""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from daasr_jax.enhancement import footprint
from daasr_jax.enhancement.arrays import LEAST, MOST
from daasr_jax.enhancement.references import same_image
from daasr_jax.errors import DataError
from daasr_jax.resampling import degrade
from daasr_jax.scans import (
    Grid,
    Restore,
    Scan,
    coverage_report,
    enlarged,
    in_plane,
    normalise,
    on_grid,
    read_scan,
    slice_axis,
    unfit,
    without_damaged,
)
from daasr_jax.scans.scan import axis_name

log = logging.getLogger("daasr_jax")

_SHARPER = 0.9  # share of the input's pixel side that a reference's must be below


@dataclasses.dataclass(frozen=True)
class Target:
    """A scan that is to be enhanced.

    Attributes:
        scan: As it was read; in a simulation without the rows and columns that the
            scale does not divide.
        axis: Axis of storage across which its slices lie.
        lr: (S, h, w) float32 in [0, 1], what the network takes.
        hr: (S, sh, sw), what it was made from in a simulation; else None.
        whole: The scan as it was read, with all rows and columns.
        restore: Back to the unit of the scan.
        grid: Of the result.
        spacing: Sides of a pixel of the result, of rows and columns, in mm; NaN where
            unknown.
    """

    scan: Scan
    axis: int
    lr: np.ndarray
    hr: np.ndarray | None
    restore: Restore
    grid: Grid
    spacing: tuple[float, float]
    whole: Scan

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of a slice of the result."""
        height, width = in_plane(self.scan, self.axis, np.empty(self.grid.shape, "?"))[
            0
        ].shape
        return height, width


@dataclasses.dataclass(frozen=True)
class Guides:
    """References of every slice.

    Attributes:
        images: (S, r, sh, sw) float32 in [0, 1]; None for none.
        names: Of the r references, or a list of them for each slice.
        placed: They lie on the grid of the result.
        about: Of each file that was used, JSON-ready; its `name` is its number but
            where names are kept.
        remarks: What the user should know, a sentence each.
        logged: Likewise, what was logged when they were read.
    """

    images: np.ndarray | None = None
    names: Sequence[Any] = ()
    placed: bool = True
    about: Sequence[dict[str, Any]] = ()
    remarks: Sequence[str] = ()
    logged: Sequence[str] = ()


def read_target(path: Path, axis: str, scale: int, *, simulated: str = "") -> Target:
    """Reads a scan and cuts it into slices.

    Args:
        path: Of the scan.
        axis: See `scans.slice_axis`.
        scale: s.
        simulated: A degradation by which its slices are made small first; empty for
            none.

    Raises:
        DataError: If it cannot be read, or its slices are too small or large (E362).
    """
    whole = scan = read_scan(path)
    across = slice_axis(scan, axis)
    rows, columns = plane_axes(scan, across)
    if simulated:
        scan = _divisible(whole, across, scale)
    images, restore = normalise(in_plane(scan, across), path.name)
    hr = None
    grid = enlarged(scan, across, scale)
    factor = scale
    if simulated:
        hr, factor = images, 1
        images = np.concatenate(
            [
                np.asarray(degrade(jnp.asarray(x)[None, ..., None], scale,
                                   degradation=simulated))[..., 0]
                for x in hr
            ]
        )  # fmt: skip
        x, y, z = scan.voxels.shape
        grid = Grid((x, y, z), scan.affine, scan.known_place)
    height, width = images.shape[1:]
    if not min(height, width) >= LEAST or max(height, width) > MOST:
        raise DataError(
            "E362",
            f"{path.name} has slices of {height}x{width} pixels"
            f"{' once they are made small' if simulated else ''}; {LEAST} to {MOST} a "
            "side are enhanced: choose another --axis, or crop it.",
        )
    spacing = (scan.spacing[rows] / factor, scan.spacing[columns] / factor)
    return Target(scan, across, images, hr, restore, grid, spacing, whole)


def read_references(
    paths: Sequence[Path], target: Target, *, names: bool = False
) -> Guides:
    """Scans of the same person, brought to the grid of the result by their headers.

    Args:
        paths: Of the scans.
        target: The scan that is enhanced.
        names: Keep the names of the files.

    Raises:
        DataError: If one cannot be read, lies elsewhere, is blank, is the input itself
            (E363), a result of this program (E367), or a mask or labels (E366).
        ResourceError: If the memory has no room for it (E619).
    """
    about, remarks, logged = [], [], []
    size = (len(target.lr), len(paths), *target.size)
    images = np.empty(size, np.float32)
    for number, path in enumerate(paths, 1):
        name = path.name if names else f"reference {number}"
        scan = read_scan(path)
        _check_evidence(scan, path.name)
        footprint.require(
            target.grid.shape,
            len(paths) - number + 1,
            reference_voxels=scan.voxels.size,
            simulated=target.hr is not None,
        )
        same = _holds(scan, target.whole)
        voxels, cut = without_damaged(scan.voxels)
        for text in cut:
            log.warning("the reference %s %s", path.name, text)
        placed = dataclasses.replace(scan, voxels=voxels)
        factor = target.size[0] // target.lr.shape[1]
        if target.hr is not None and not (scan.known_place and target.grid.known_place):
            placed = _like(placed, target, factor)
        voxels, inside = on_grid(placed, target.grid)
        coverage = coverage_report(
            placed, target.grid, inside, target.axis, target.scan
        )
        slices, restore = normalise(
            in_plane(target.scan, target.axis, voxels), f"the reference {path.name}"
        )
        covered = in_plane(target.scan, target.axis, inside)
        image = images[:, number - 1]
        np.multiply(slices, covered, out=image)
        del voxels, slices
        if target.hr is not None and not same:  # it is compared where it is used
            same = same_image(image, target.hr * covered)
        if same:
            raise DataError(
                "E363",
                f"the reference {path.name} holds the same image as the input: give "
                "another contrast or a sharper scan, or --ref none.",
            )
        about.append(
            {
                "name": name,
                "shape": list(scan.voxels.shape),
                "spacing_mm": _finite(scan.spacing),
                "covers": coverage.share,
                "said": str(coverage),
            }
        )
        if not coverage.enough:
            remarks.append(
                f"{name} covers {100 * coverage.share:.0f} % of the "
                "result; the rest is enhanced without it."
            )
        if min(np.delete(coverage.ratio, target.axis)) > _SHARPER * factor:
            remarks.append(
                f"{name} is no sharper than the input in its plane: little is to be "
                "gained by it."
            )
        said = (*scan.remarks, *cut, *restore.remarks)
        logged += [f"{name} {text}." for text in said]
    called = [one["name"] for one in about]
    return Guides(images, called, True, about, remarks, logged)


def plane_axes(scan: Scan, axis: int) -> tuple[int, int]:
    """The axes of storage that are rows and columns of the slices across an axis."""
    _, rows, columns = in_plane(scan, axis, np.empty((2, 3, 4), bool)).shape
    return rows - 2, columns - 2


def _divisible(scan: Scan, axis: int, scale: int) -> Scan:
    """The scan without the rows and columns at the end that the scale leaves over."""
    shape = [
        n if i == axis else n // scale * scale for i, n in enumerate(scan.voxels.shape)
    ]
    return dataclasses.replace(scan, voxels=scan.voxels[tuple(map(slice, shape))])


def _like(scan: Scan, target: Target, scale: int) -> Scan:
    """A reference of unknown place, cut as the target of a simulation was."""
    if scan.voxels.shape != target.whole.voxels.shape:
        return scan
    return _divisible(scan, target.axis, scale)


def _holds(scan: Scan, other: Scan) -> bool:
    """Whether two scans hold one image, as they are stored or as their axes lie."""
    pairs = [(scan.voxels, other.voxels), (_axial(scan), _axial(other))]
    if all(a.strides == b.strides for a, b in pairs):
        del pairs[1]  # both are stored alike
    return any(a.shape == b.shape and same_image(a, b) for a, b in pairs)


def _axial(scan: Scan) -> np.ndarray:
    names = [axis_name(scan.affine, i) for i in range(3)]
    return in_plane(scan, names.index("axial"))


def _check_evidence(scan: Scan, name: str) -> None:
    if unfit.is_result(scan):
        raise DataError(
            "E367",
            f"the reference {name} was made by this program: what it invented would be "
            "taken for evidence; give the scan that it was made from, or --ref none.",
        )
    count = unfit.label_count(scan)
    if count:
        raise DataError(
            "E366",
            f"the reference {name} has {count} values in patches, as a mask or a map "
            "of labels has: give a scan, or --ref none.",
        )


def _finite(values: Sequence[float]) -> list[float | None]:
    return [float(v) if math.isfinite(v) else None for v in values]
