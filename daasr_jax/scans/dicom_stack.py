"""The slices of a DICOM series as one stack: judged, sorted by place, even.

The order comes from the positions along the normal of the slices, never from the
numbers of the instances.
"""

import dataclasses
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import numpy as np

from daasr_jax.data.sources.base import BadFileError, some
from daasr_jax.errors import DataError

# From DICOM's axes (left, back, top) to right, front, top.
_RAS = np.array([-1.0, -1.0, 1.0])
# Distances of slices may differ by this share of the usual one, or by 10 µm.
_EVEN, _LEAST_MM = 0.02, 0.01
# Direction cosines of one stack are equal within this.
_SAME = 1e-3
# No scanner is larger.
_FAR_MM = 1e5
# What tells several images at one place apart, in the words of DICOM.
_TELL_APART = (
    "EchoTime", "EchoNumbers", "ImageType", "TemporalPositionIdentifier",
    "DiffusionBValue", "TriggerTime", "AcquisitionNumber", "InversionTime",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Frame:
    """One slice.

    Attributes:
        header: Its DICOM dataset.
        path: Its file.
        number: Its number in that file.
        many: The file is one of several slices.
    """

    header: Any
    path: Path
    number: int
    many: bool

    @property
    def name(self) -> str:
        """File, and frame where it holds several."""
        frame = f", frame {self.number + 1}" if self.many else ""
        return f"{self.path.name}{frame}"


def check_frame(frame: Frame) -> None:
    """Raises BadFileError for a slice that is no image of known place."""
    header = frame.header
    kind = str(header.get("PhotometricInterpretation", None) or "MONOCHROME2")
    if int(header.get("SamplesPerPixel", 1)) != 1 or kind[:10] != "MONOCHROME":
        raise BadFileError(
            f"{frame.name} holds colours ({kind}); magnitude images are wanted"
        )
    if "MOSAIC" in [str(part) for part in header.get("ImageType", None) or ()]:
        raise BadFileError(
            f"{frame.name} is a mosaic of a whole volume: convert it to NIfTI"
        )
    if "ModalityLUTSequence" in header:
        raise BadFileError(f"{frame.name} has its values by a table, which is not read")
    for name, count in (
        ("ImagePositionPatient", 3),
        ("ImageOrientationPatient", 6),
        ("PixelSpacing", 2),
    ):
        value = header.get(name, None)
        if value is None or len(value) != count:
            raise BadFileError(f"{frame.name} has no {name}: its place is not known")
    row, column = _cosines(header)
    sides = [float(x) for x in header.PixelSpacing]
    square = np.abs([row @ row - 1, column @ column - 1, row @ column]).max()
    far = np.abs([*_place(header), *sides]).max()
    if not (square < 10 * _SAME and min(sides) > 0 and far < _FAR_MM):
        raise BadFileError(
            f"{frame.name} has an ImagePositionPatient, ImageOrientationPatient or "
            "PixelSpacing that no slice can have"
        )


def _cosines(header: Any) -> tuple[np.ndarray, np.ndarray]:
    six = np.array([float(x) for x in header.ImageOrientationPatient])
    return six[:3], six[3:]


def _place(header: Any) -> np.ndarray:
    return np.array([float(x) for x in header.ImagePositionPatient])


def placed(
    source: Path, frames: list[Frame]
) -> tuple[list[Frame], np.ndarray, tuple[str, ...]]:
    """The frames along their normal, the affine of the stack, and remarks.

    Raises:
        DataError: If they are not one even stack (E344).
    """

    def refused(why: str) -> DataError:
        return DataError("E344", f"{source}: {why}")

    first = frames[0]
    for name in ("Rows", "Columns", "BitsAllocated", "PixelRepresentation"):
        values = {int(f.header.get(name, None) or 0) for f in frames}
        if len(values) > 1:
            raise refused(f"its slices differ in {name} ({some(_texts(values))})")
    row, column = _cosines(first.header)
    spacing = [float(x) for x in first.header.PixelSpacing]
    for frame in frames:
        turned = np.abs(np.concatenate(_cosines(frame.header)) - [*row, *column]).max()
        if turned > _SAME:
            raise refused(
                f"slices of several orientations ({first.name} and {frame.name}), such "
                "as those of a localizer: give a series that is one stack"
            )
        other = [float(x) for x in frame.header.PixelSpacing]
        if not np.allclose(other, spacing, rtol=_SAME):
            raise refused(f"{first.name} and {frame.name} differ in PixelSpacing")
    normal = np.cross(row, column)
    normal /= np.linalg.norm(normal)
    frames = sorted(frames, key=lambda frame: float(normal @ _place(frame.header)))
    places = np.array([_place(frame.header) for frame in frames])
    step, remarks = _step(frames, places, normal, refused)
    affine = np.eye(4)
    affine[:3, 0] = _RAS * row * spacing[1]
    affine[:3, 1] = _RAS * column * spacing[0]
    affine[:3, 2] = _RAS * step
    affine[:3, 3] = _RAS * places[0]
    return frames, affine, remarks


def _step(
    frames: list[Frame],
    places: np.ndarray,
    normal: np.ndarray,
    refused: Callable[[str], DataError],
) -> tuple[np.ndarray, tuple[str, ...]]:
    """From one slice to the next, in mm."""
    if len(frames) == 1:
        header = frames[0].header
        told = [header.get(n) for n in ("SpacingBetweenSlices", "SliceThickness")]
        known = [float(x) for x in told if x is not None and float(x) > 0]
        remark = () if known else ("has one slice of unknown thickness, taken as 1 mm",)
        return normal * (known or [1.0])[0], remark
    gaps = np.diff(places @ normal)
    usual = float(np.median(gaps))
    allowed = max(_EVEN * usual, _LEAST_MM)
    double = np.flatnonzero(gaps <= _LEAST_MM)
    if double.size:
        a, b = (frames[int(double[0]) + i] for i in (0, 1))
        raise refused(
            f"{double.size + 1} slices of {len(frames)} lie where others do, such as "
            f"{a.name} and {b.name}{_difference(a.header, b.header)}: give a series of "
            "one volume"
        )
    bad = np.flatnonzero(np.abs(gaps - usual) > allowed)
    if bad.size:
        at = int(bad[0])
        missing = round(float(gaps[at]) / usual) - 1
        why = f"{missing} missing there" if missing > 0 else "they are not even"
        raise refused(
            f"between slices {at + 1} ({frames[at].name}) and {at + 2} "
            f"({frames[at + 1].name}) of {len(frames)} lie {gaps[at]:.4g} mm where "
            f"others lie {usual:.4g} mm apart, {why}; {bad.size} such places: fetch "
            "the missing files"
        )
    step = (places[-1] - places[0]) / (len(places) - 1)
    line = places[0] + np.arange(len(places))[:, None] * step
    off = np.linalg.norm(places - line, axis=1)
    if off.max() > allowed:
        at = int(off.argmax())
        raise refused(
            f"slice {at + 1} ({frames[at].name}) of {len(frames)} lies {off[at]:.3g} "
            "mm beside the line of the others"
        )
    aside = np.linalg.norm(step - normal * (step @ normal))
    if aside > _SAME * usual:
        return step, (
            f"has slices that move {aside:.3g} mm aside from one to the next, so its "
            "axes are not at right angles",
        )
    return step, ()


def _difference(a: Any, b: Any) -> str:
    for name in _TELL_APART:
        if a.get(name, None) != b.get(name, None):
            return f" ({name} {a.get(name, None)} and {b.get(name, None)})"
    return ""


def _texts(values: Collection[int]) -> list[str]:
    return [str(value) for value in sorted(values)]
