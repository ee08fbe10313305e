"""What every source of volumes has in common: the record, the limits, the reports."""

import dataclasses
import logging
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from daasr_jax.data.settings import DataSettings
from daasr_jax.errors import DataError

log = logging.getLogger("daasr_jax")

# A file that declares more than this is refused before anything is allocated. The
# largest fastMRI k-space volume has about 2**28 complex values.
MAX_VOXELS = 2**29
# Deflate cannot expand by more than this: a file that claims more lies about its size.
MAX_DEFLATE_RATIO = 1032
# Below this an 11x11 SSIM window or an LR patch of a slice means nothing.
MIN_SIDE = 11
_NAMED_FILES = 5


@dataclasses.dataclass(frozen=True)
class Volume:
    """One scan as its header describes it; no voxel has been read.

    Attributes:
        key: Unique name of the volume: the path below the root, without suffix.
        subject: The person; splits never separate two volumes of one subject.
        contrast: Such as `AXFLAIR` or `T1W`; empty where unknown.
        study: The visit, where known; empty elsewhere.
        path: File it is read from.
        shape: Slices, height, width.
        folder: Folder whose volumes are counted against `n_volumes`.
        role: `train` or `val` for an official fastMRI folder, else empty.
        split: Set where the source itself decides the split, else empty.
        options: What the reader must know beyond the path, such as the dataset name.
    """

    key: str
    subject: str
    contrast: str
    study: str
    path: str
    shape: tuple[int, int, int]
    folder: str = ""
    role: str = ""
    split: str = ""
    options: str = ""


@dataclasses.dataclass(frozen=True)
class Source:
    """A layout: how its volumes are found and how one of them is read.

    Attributes:
        name: The layout, as in `DataSettings.layout`.
        scan: Reads every header, reports all bad files in one `DataError`.
        read: Voxels of one volume, real, (slices, height, width), rows downwards.
    """

    name: str
    scan: Callable[[DataSettings], list[Volume]]
    read: Callable[[Volume], np.ndarray]


class BadFileError(Exception):
    """A file that cannot be used; the message says why, without the file's name."""


def is_data_file(path: Path, suffixes: Sequence[str]) -> bool:
    """True for a visible file of one of these suffixes (not .DS_Store, not ._x.h5)."""
    name = path.name
    return not name.startswith(".") and name.lower().endswith(tuple(suffixes))


def first_line(error: BaseException) -> str:
    """The first line of an exception's message, or its type where it has none."""
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__


def check_size(shape: Sequence[int]) -> None:
    """Raises BadFileError for a declared size that is empty or beyond the limit."""
    if min(shape) < 1:
        raise BadFileError(f"is empty: shape {tuple(shape)}")
    voxels = 1
    for side in shape:
        voxels *= int(side)
    if voxels > MAX_VOXELS:
        raise BadFileError(
            f"declares {voxels} values, more than the limit of {MAX_VOXELS}"
        )


def check_plane(height: int, width: int) -> None:
    """Raises BadFileError for slices too small to be measured."""
    if min(height, width) < MIN_SIDE:
        raise BadFileError(
            f"has slices of {height}x{width}, under {MIN_SIDE} pixels a side"
        )


def report_bad_files(root: str, bad: Sequence[tuple[Path, str]], total: int) -> None:
    """Raises one DataError (E302) that lists the bad files of a scan, if any."""
    if not bad:
        return
    named = "; ".join(f"{path}: {reason}" for path, reason in bad[:_NAMED_FILES])
    more = len(bad) - _NAMED_FILES
    tail = f"; and {more} more" if more > 0 else ""
    raise DataError(
        "E302",
        f"{len(bad)} of {total} files under {root} cannot be used: {named}{tail}; "
        "fetch them again or move them out of the folder",
    )
