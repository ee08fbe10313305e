"""How a reference lies to the grid of a result: overlap, turn and voxel sides."""

import dataclasses
import itertools
from typing import Any

import numpy as np

from daasr_jax.scans.grids import Grid, link_of
from daasr_jax.scans.scan import Scan

# Below this share of covered voxels a warning is due.
_ENOUGH = 0.9
# NIfTI's codes of a space that is no scanner's.
_STANDARD = {3: "Talairach space", 4: "MNI space", 5: "the space of a template"}


@dataclasses.dataclass(frozen=True)
class Coverage:
    """How a reference covers a grid.

    Attributes:
        share: Of the voxels of the grid that lie in the reference, in [0, 1].
        empty: Number of slices of the grid with no such voxel.
        slices: Number of slices of the grid.
        degrees: Angle between the axes of the two, each with its nearest, in [0, 55].
        turned: Whether the axes are in another order or run another way.
        ratio: Distance of the reference's voxels along each axis of the grid, as a
            multiple of the grid's own. Where it is over 1 the reference is the coarser.
        known_place: Both places are by the headers.
        apart: Why the two places may not be of one space, in words; empty where nothing
            says so.
    """

    share: float
    empty: int
    slices: int
    degrees: float
    turned: bool
    ratio: tuple[float, float, float]
    known_place: bool
    apart: str = ""

    @property
    def enough(self) -> bool:
        """At least nine tenths of the grid are covered."""
        return self.share >= _ENOUGH

    def __str__(self) -> str:
        place = "by the headers" if self.known_place else "taken as the same region"
        words = [f"covers {100 * self.share:.1f} % ({place})"]
        if self.empty:
            words.append(f"leaves {self.empty} of {self.slices} slices without")
        if self.degrees >= 0.05:
            words.append(f"lies {self.degrees:.1f} degrees oblique")
        if self.turned:
            words.append("has its axes in another order")
        ratio = " x ".join(f"{r:.2g}" for r in self.ratio)
        words.append(f"has voxels of {ratio} times those of the result")
        if self.apart:
            words.append(self.apart)
        return ", ".join(words)


def coverage_report(
    reference: Scan,
    grid: Grid,
    inside: np.ndarray,
    axis: int,
    scan: Scan | None = None,
) -> Coverage:
    """What there is to say of a reference before it is used.

    Args:
        reference: The scan.
        grid: Of the result.
        inside: (X, Y, Z) bool, of `on_grid`.
        axis: Axis of the grid across which its slices lie.
        scan: That the grid is made from, whose header may tell of another space.

    Raises:
        DataError: As `grids.link_of`.
    """
    turn = link_of(reference, grid)[:3, :3]
    of_slices = np.moveaxis(inside, axis, 0).reshape(inside.shape[axis], -1)
    known = reference.known_place and grid.known_place
    degrees, turned = (0.0, False)
    if known:
        degrees, turned = _angle(reference.affine, grid.affine)
    # one step of the grid in voxels of the reference, along the nearest axis
    steps = np.abs(turn).max(axis=0)
    ratio = tuple(float(1 / step) for step in steps)
    return Coverage(
        share=float(inside.mean()),
        empty=int(np.count_nonzero(~of_slices.any(axis=1))),
        slices=inside.shape[axis],
        degrees=degrees,
        turned=turned,
        ratio=(ratio[0], ratio[1], ratio[2]),
        known_place=known,
        apart=_apart(reference, scan) if scan and known else "",
    )


def _apart(reference: Scan, scan: Scan) -> str:
    """DICOM names a frame of reference for each session, NIfTI a kind of space."""
    if reference.kind == scan.kind == "dicom":
        frames = {s.header[0].get("FrameOfReferenceUID") for s in (reference, scan)}
        if len(frames) > 1:
            return "was taken in another frame of reference, so register it first"
    standard = [
        _STANDARD.get(_code(s.header), "") if s.kind == "nifti" else ""
        for s in (reference, scan)
    ]
    if standard[0] != standard[1]:
        names = [name or "the scanner's space" for name in standard]
        return f"is in {names[0]} where the scan is in {names[1]}"
    return ""


def _code(header: Any) -> int:
    return int(header["sform_code"]) or int(header["qform_code"])


def _angle(a: np.ndarray, b: np.ndarray) -> tuple[float, bool]:
    """The largest angle of an axis to its partner, and whether partners differ."""
    one, other = (x[:3, :3] / np.linalg.norm(x[:3, :3], axis=0) for x in (a, b))
    cosines = one.T @ other
    best = max(
        itertools.permutations(range(3)),
        key=lambda order: sum(abs(cosines[order[j], j]) for j in range(3)),
    )
    partners = np.array([cosines[best[j], j] for j in range(3)])
    degrees = float(np.degrees(np.arccos(np.abs(partners).min().clip(0, 1))))
    return degrees, best != (0, 1, 2) or bool((partners < 0).any())
