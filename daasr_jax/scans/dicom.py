"""One DICOM series as a volume, from its files.

pydicom is imported where it is used; it is the extra `dicom`.
"""

import copy
import dataclasses
import math
import struct
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from daasr_jax.data.sources.base import (
    BadFileError,
    check_packing,
    check_size,
    complaint,
    some,
)
from daasr_jax.errors import DataError
from daasr_jax.files import leads_out
from daasr_jax.scans.dicom_stack import Frame, check_frame, placed
from daasr_jax.scans.scan import Scan

_SHOWN_SERIES = 12
_READ_ERRORS = (
    OSError, EOFError, ValueError, KeyError, AttributeError, TypeError, IndexError,
    struct.error, NotImplementedError, RuntimeError, MemoryError,
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


def library() -> Any:
    """The module `pydicom`.

    Raises:
        DataError: If it is not installed (E345).
    """
    try:
        import pydicom  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise DataError(
            "E345",
            "DICOM needs pydicom, which is not installed: pip install 'pydicom>=3'",
        ) from None
    return pydicom


def errors_of(pydicom: Any) -> tuple[type[Exception], ...]:
    """What pydicom raises for files, elements and values that are none."""
    errors = pydicom.errors
    return (*_READ_ERRORS, errors.BytesLengthException, errors.InvalidDicomError)


def looks_like(start: bytes) -> bool:
    """Whether a file's first bytes are those of a DICOM file."""
    plain = start[:2] in (b"\x08\x00", b"\x02\x00") and start[3:4] == b"\x00"
    return start[128:132] == b"DICM" or plain


def dicom_files(folder: Path) -> list[Path]:
    """The DICOM files of a folder by name, without an index (DICOMDIR).

    Links that lead out of the folder are left out.
    """
    return _with_images(_files(folder)[0])


def _files(folder: Path) -> tuple[list[Path], list[Path]]:
    """The files of a folder by name, and the links among them that lead out of it."""
    inside, links = [], []
    for path in sorted(folder.iterdir()):
        if path.is_file():
            (links if leads_out(path, folder) else inside).append(path)
    return inside, links


def _with_images(paths: list[Path]) -> list[Path]:
    found = []
    for path in paths:
        if path.name == "DICOMDIR":
            continue
        with path.open("rb") as file:
            if looks_like(file.read(132)):
                found.append(path)
    return found


def _left_out(links: list[Path]) -> str:
    """What is said of links that lead out of a folder; empty without one."""
    count = len(links)
    return f"holds {count} links out of the folder, which are left out" if count else ""


def only_dicom(folder: Path) -> bool:
    """Whether a folder holds nothing but the files of one DICOM series."""
    files = dicom_files(folder)
    if len(files) != len(list(folder.iterdir())):
        return False
    try:
        return len({_header(path).SeriesInstanceUID for path in files}) <= 1
    except BadFileError:
        return False


def read_dicom(path: Path) -> Scan:
    """The one series of a folder, or that of a file.

    Raises:
        BadFileError: If there is no DICOM image, or one that cannot be used.
        DataError: As `reading.read_scan` (E343, E344, E345).
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return _read_folder(path) if path.is_dir() else _read_series_of(path)
    except BadFileError:
        raise
    except errors_of(library()) as error:
        raise BadFileError(complaint(error, "DICOM file")) from None


def _read_folder(folder: Path) -> Scan:
    inside, out = _files(folder)
    files, links = _with_images(inside), _left_out(out)
    if not files:
        inner = [p.name for p in sorted(folder.iterdir()) if p.is_dir()]
        more = f"; it has folders, give one of them: {some(inner)}" if inner else ""
        if links:
            more = f"; it {links}: give the folder that they lead to"
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
    scan = _stacked(folder, members)
    used = {path for path, _ in members}
    others = sum(
        path.name != "DICOMDIR" and path.name[0] != "." for path in {*inside} - used
    )
    beside = f"holds {others} files beside the images, which are left out"
    return _remarked(scan, links, beside if others else "")


def _read_series_of(path: Path) -> Scan:
    """The series that a file belongs to, of all files beside it."""
    wanted = _header(path)
    if "Rows" not in wanted:
        raise BadFileError("is a DICOM file without an image")
    members = [(path, wanted)]
    inside, out = _files(path.parent)
    for file in _with_images(inside):
        if file == path:
            continue
        header = _header(file)
        same = header.SeriesInstanceUID == wanted.SeriesInstanceUID
        if same and "Rows" in header:
            members.append((file, header))
    members.sort(key=lambda member: member[0])
    links = _left_out([link for link in out if link != path])
    return _remarked(_stacked(path, members), f"in its folder {links}" if links else "")


def _remarked(scan: Scan, *remarks: str) -> Scan:
    more = (remark for remark in remarks if remark)
    return dataclasses.replace(scan, remarks=(*scan.remarks, *more))


def _header(path: Path) -> Any:
    pydicom = library()
    try:
        if _is_deflated(path):
            raise BadFileError(
                f"{path.name} is deflated as a whole, so its size is not known before "
                "it is unpacked: unpack it first (dcmconv +te)"
            )
        header = pydicom.dcmread(path, stop_before_pixels=True, force=True)
    except errors_of(pydicom) as error:
        said = complaint(error, "DICOM file")
        raise BadFileError(f"{path.name}: {said}") from None
    for tag in list(header.keys()):
        try:
            header[tag]
        except errors_of(pydicom):  # no value of its kind, which nothing needs
            del header[tag]
    if "SeriesInstanceUID" not in header:
        raise BadFileError(f"{path.name} is a DICOM file without a series")
    return header


def _is_deflated(path: Path) -> bool:
    pydicom = library()
    try:
        about = pydicom.filereader.read_file_meta_info(path)
    except errors_of(pydicom):  # a file without such a beginning
        return False
    deflated = pydicom.uid.DeflatedExplicitVRLittleEndian
    return about.get("TransferSyntaxUID", None) == deflated


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
        check_frame(frame)
    frames, affine, remarks = placed(source, frames)
    first = frames[0].header
    shape = (int(first.Columns), int(first.Rows), len(frames))
    check_size(shape)
    size = sum(path.stat().st_size for path in {frame.path for frame in frames})
    check_packing(math.prod(shape) * int(first.get("BitsAllocated", 16)) // 8, size)
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


def _frames(path: Path, header: Any) -> list[Frame]:
    count = int(header.get("NumberOfFrames", None) or 1)
    if "PerFrameFunctionalGroupsSequence" not in header:
        if count > 1:
            raise BadFileError(
                f"{path.name} holds {count} frames without their places "
                "(a multi-frame file of an old kind): convert it to NIfTI"
            )
        return [Frame(header, path, 0, False)]
    groups = header.PerFrameFunctionalGroupsSequence
    if count != len(groups):
        raise BadFileError(
            f"{path.name} declares {count} frames and has the places of {len(groups)}"
        )
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
        out.append(Frame(one, path, number, True))
    return out


def _voxels(frames: list[Frame]) -> np.ndarray:
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
    pydicom = library()
    data = pydicom.dcmread(path, force=True)
    syntax = data.file_meta.get("TransferSyntaxUID", None)
    if syntax is None:
        syntax = pydicom.uid.ImplicitVRLittleEndian
        data.file_meta.TransferSyntaxUID = syntax
    try:
        pixels = data.pixel_array
    except _READ_ERRORS as error:
        if "missing dep" in str(error) or "not supported" in str(error):
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
