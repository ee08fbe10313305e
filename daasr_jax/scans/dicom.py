"""One DICOM series as a volume: slices sorted by place, the stack checked.

The order comes from the positions along the normal of the slices, never from the
numbers of the instances. pydicom is imported where it is used; it is the extra `dicom`.
"""

import copy
import dataclasses
import struct
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from daasr_jax.data.sources.base import (
    BadFileError,
    check_size,
    complaint,
    some,
)
from daasr_jax.errors import DataError
from daasr_jax.scans.scan import Scan

# From DICOM's axes (left, back, top) to right, front, top.
_RAS = np.array([-1.0, -1.0, 1.0])
# Distances of slices may differ by this share of the usual one, or by 10 µm.
_EVEN, _LEAST_MM = 0.02, 0.01
# Direction cosines of one stack are equal within this.
_SAME = 1e-3
_SHOWN_SERIES = 12
_READ_ERRORS = (
    OSError, EOFError, ValueError, KeyError, AttributeError, TypeError, IndexError,
    struct.error, NotImplementedError, RuntimeError,
)  # fmt: skip
# What tells several images at one place apart, in the words of DICOM.
_TELL_APART = (
    "EchoTime", "EchoNumbers", "ImageType", "TemporalPositionIdentifier",
    "DiffusionBValue", "TriggerTime", "AcquisitionNumber", "InversionTime",
)  # fmt: skip
# Of the functional groups of an enhanced file, what its slices have in a classic one.
_GROUPS = {
    "PlanePositionSequence": ("ImagePositionPatient",),
    "PlaneOrientationSequence": ("ImageOrientationPatient",),
    "PixelMeasuresSequence": (
        "PixelSpacing", "SliceThickness", "SpacingBetweenSlices",
    ),
    "PixelValueTransformationSequence": ("RescaleSlope", "RescaleIntercept"),
    "FrameVOILUTSequence": ("WindowCenter", "WindowWidth"),
    "MRTimingAndRelatedParametersSequence": ("RepetitionTime", "FlipAngle"),
    "MREchoSequence": ("EffectiveEchoTime",),
    "TemporalPositionSequence": ("TemporalPositionTimeOffset",),
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class _Frame:
    """One slice: its header, its file, and its number in that file."""

    header: Any
    path: Path
    number: int
    many: bool

    @property
    def name(self) -> str:
        return f"{self.path.name}, frame {self.number + 1}" if self.many else (
            self.path.name
        )  # fmt: skip


def library() -> Any:
    """The module `pydicom`.

    Raises:
        DataError: If it is not installed (E345).
    """
    try:
        import pydicom
    except ImportError:
        raise DataError(
            "E345",
            "DICOM needs pydicom, which is not installed: "
            "pip install 'daasr_jax[dicom]'",
        ) from None
    return pydicom


def looks_like(start: bytes) -> bool:
    """Whether a file's first bytes are those of a DICOM file."""
    plain = start[:2] in (b"\x08\x00", b"\x02\x00") and start[3:4] == b"\x00"
    return start[128:132] == b"DICM" or plain


def dicom_files(folder: Path) -> list[Path]:
    """The DICOM files of a folder by name, without an index (DICOMDIR)."""
    found = []
    for path in sorted(folder.iterdir()):
        if path.is_file() and path.name != "DICOMDIR":
            with path.open("rb") as file:
                if looks_like(file.read(132)):
                    found.append(path)
    return found


def only_dicom(folder: Path) -> bool:
    """Whether a folder holds nothing but the files of one DICOM series."""
    files = dicom_files(folder)
    if len(files) != len(list(folder.iterdir())):
        return False
    return len({_header(path).SeriesInstanceUID for path in files}) <= 1


def read_folder(folder: Path) -> Scan:
    """The one series of a folder.

    Raises:
        BadFileError: If it holds no DICOM image, or one that cannot be used.
        DataError: As `reading.read_scan` (E343, E344, E345).
    """
    files = dicom_files(folder)
    if not files:
        inner = [p.name for p in sorted(folder.iterdir()) if p.is_dir()]
        more = f"; it has folders, give one of them: {some(inner)}" if inner else ""
        raise BadFileError(f"is a folder without DICOM files{more}")
    series: dict[str, list[tuple[Path, Any]]] = {}
    for path in files:
        header = _header(path)
        if "Rows" in header:
            series.setdefault(str(header.SeriesInstanceUID), []).append((path, header))
    if not series:
        raise BadFileError(f"holds {len(files)} DICOM files, none of which is an image")
    if len(series) > 1:
        raise _several(folder, list(series.values()))
    ((_, members),) = series.items()
    return _stacked(folder, members)


def read_series_of(path: Path) -> Scan:
    """The series that a file belongs to, of all files beside it.

    Raises:
        BadFileError: If a file of it cannot be used.
        DataError: As `reading.read_scan` (E344, E345).
    """
    wanted = _header(path)
    if "Rows" not in wanted:
        raise BadFileError("is a DICOM file without an image")
    members = []
    for file in dicom_files(path.parent):
        header = wanted if file == path else _header(file)
        same = header.SeriesInstanceUID == wanted.SeriesInstanceUID
        if same and "Rows" in header:
            members.append((file, header))
    return _stacked(path, members)


def _header(path: Path) -> Any:
    pydicom = library()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            header = pydicom.dcmread(path, stop_before_pixels=True, force=True)
            if "SeriesInstanceUID" not in header:
                raise BadFileError(f"{path.name} is a DICOM file without a series")
            return header
    except _READ_ERRORS as error:
        said = complaint(error, "DICOM file")
        raise BadFileError(f"{path.name}: {said}") from None


def _several(folder: Path, series: list[list[tuple[Path, Any]]]) -> DataError:
    told = []
    for members in series[:_SHOWN_SERIES]:
        path, header = members[0]
        number = header.get("SeriesNumber", "?")
        name = header.get("SeriesDescription", "") or header.get("Modality", "")
        told.append(f"{path} for {number} {name!r} ({len(members)} files)")
    more = len(series) - _SHOWN_SERIES
    tail = f"; and {more} more" if more > 0 else ""
    return DataError(
        "E343",
        f"{folder} holds {len(series)} series; give a file of the one that is wanted: "
        f"{'; '.join(told)}{tail}",
    )


def _stacked(source: Path, members: Sequence[tuple[Path, Any]]) -> Scan:
    frames = [frame for path, header in members for frame in _frames(path, header)]
    for frame in frames:
        _check_frame(frame)
    frames, affine, remarks = _placed(source, frames)
    first = frames[0].header
    check_size((int(first.Columns), int(first.Rows), len(frames)))
    sides = np.linalg.norm(affine[:3, :3], axis=0)
    return Scan(
        voxels=_voxels(frames),
        affine=affine,
        known_place=True,
        spacing=(float(sides[0]), float(sides[1]), float(sides[2])),
        source=str(source),
        kind="dicom",
        header=[frame.header for frame in frames],
        remarks=remarks,
    )


def _frames(path: Path, header: Any) -> list[_Frame]:
    count = int(header.get("NumberOfFrames", None) or 1)
    if "PerFrameFunctionalGroupsSequence" not in header:
        if count > 1:
            raise BadFileError(
                f"{path.name} holds {count} frames without their places "
                "(a multi-frame file of an old kind): convert it to NIfTI"
            )
        return [_Frame(header, path, 0, False)]
    groups = header.PerFrameFunctionalGroupsSequence
    shared = header.get("SharedFunctionalGroupsSequence", None)
    for name in (
        "PerFrameFunctionalGroupsSequence",
        "SharedFunctionalGroupsSequence",
        "DimensionOrganizationSequence",
        "DimensionIndexSequence",
        "NumberOfFrames",
    ):
        if name in header:
            delattr(header, name)
    out = []
    for number, own in enumerate(groups):
        one = copy.deepcopy(header)
        for group, names in _GROUPS.items():
            for place in (own, *(shared or ())):
                if place.get(group, None):
                    item = place[group].value[0]
                    for name in names:
                        if name in item:
                            setattr(one, name, item[name].value)
                    break
        if "EffectiveEchoTime" in one:
            one.EchoTime = one.EffectiveEchoTime
            del one.EffectiveEchoTime
        out.append(_Frame(one, path, number, True))
    return out


def _check_frame(frame: _Frame) -> None:
    header = frame.header
    kind = str(header.get("PhotometricInterpretation", None) or "MONOCHROME2")
    if int(header.get("SamplesPerPixel", 1)) != 1 or kind[:10] != "MONOCHROME":
        raise BadFileError(
            f"{frame.name} holds colours ({kind}); magnitude images are wanted"
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
    square = [row @ row - 1, column @ column - 1, row @ column]
    if np.abs(square).max() > 10 * _SAME or min(map(float, header.PixelSpacing)) <= 0:
        raise BadFileError(
            f"{frame.name} has an ImageOrientationPatient or a PixelSpacing that no "
            "slice can have"
        )


def _cosines(header: Any) -> tuple[np.ndarray, np.ndarray]:
    six = np.array([float(x) for x in header.ImageOrientationPatient])
    return six[:3], six[3:]


def _place(header: Any) -> np.ndarray:
    return np.array([float(x) for x in header.ImagePositionPatient])


def _placed(
    source: Path, frames: list[_Frame]
) -> tuple[list[_Frame], np.ndarray, tuple[str, ...]]:
    """The frames along their normal, the affine of the stack, and remarks.

    Raises:
        DataError: If they are not one even stack (E344).
    """

    def refused(why: str) -> DataError:
        return DataError("E344", f"{source}: {why}")

    first = frames[0]
    for name in ("Rows", "Columns"):
        values = sorted({int(f.header[name].value) for f in frames})
        if len(values) > 1:
            raise refused(f"slices of several sizes ({name} {some(_texts(values))})")
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
    frames: list[_Frame], places: np.ndarray, normal: np.ndarray, refused: Any
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


def _texts(values: Sequence[object]) -> list[str]:
    return [str(value) for value in values]


def _voxels(frames: list[_Frame]) -> np.ndarray:
    """(columns, rows, slices): integers as stored where that loses nothing."""
    scales = [
        (
            float(frame.header.get("RescaleSlope", None) or 1),
            float(frame.header.get("RescaleIntercept", None) or 0),
        )
        for frame in frames
    ]
    whole = len(set(scales)) == 1 and scales[0][0] == 1 and scales[0][1].is_integer()
    out: np.ndarray | None = None
    opened: tuple[Path, np.ndarray] | None = None
    for k, frame in enumerate(frames):
        if opened is None or opened[0] != frame.path:
            opened = frame.path, _pixels(frame.path)
        stored = opened[1][frame.number] if frame.many else opened[1]
        shape = (int(frame.header.Rows), int(frame.header.Columns))
        if stored.shape != shape:
            raise BadFileError(f"{frame.name} holds pixels of shape {stored.shape}")
        slope, shift = scales[k]
        if whole and stored.dtype.kind in "iu":
            image = stored if not shift else stored.astype(np.int32) + int(shift)
        else:
            image = (stored * np.float64(slope) + shift).astype(np.float32)
        if out is None:
            out = np.empty((*shape[::-1], len(frames)), image.dtype)
        out[..., k] = image.T
    assert out is not None  # there is at least one frame
    return out


def _pixels(path: Path) -> np.ndarray:
    """The stored values of a file: (rows, columns), or (frames, rows, columns)."""
    pydicom, syntax = library(), None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            data = pydicom.dcmread(path, force=True)
            syntax = data.file_meta.get("TransferSyntaxUID", None)
            if syntax is None:
                syntax = pydicom.uid.ImplicitVRLittleEndian
                data.file_meta.TransferSyntaxUID = syntax
            pixels = data.pixel_array
    except _READ_ERRORS as error:
        if syntax and ("missing dep" in str(error) or "not supported" in str(error)):
            raise BadFileError(
                f"{path.name} is compressed ({syntax.name}), and no decoder for it is "
                "installed: pip install 'pylibjpeg[all]', or decompress it first "
                "(dcmdjpeg, gdcmconv --raw)"
            ) from None
        why = " ".join(str(error).split()) or type(error).__name__
        raise BadFileError(f"{path.name}: damaged DICOM file ({why[:200]})") from None
    many = int(data.get("NumberOfFrames", None) or 1) > 1
    grouped = "PerFrameFunctionalGroupsSequence" in data
    return pixels[None] if grouped and not many else pixels
