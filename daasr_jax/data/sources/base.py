"""What every source of volumes has in common: the record, the limits, the reports."""

import dataclasses
import logging
import math
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np

from daasr_jax.errors import ConfigError, DataError, first_line

log = logging.getLogger("daasr_jax")

# Called with a file that cannot be used and the reason; the file is then left out.
OnBad = Callable[[Path, str], None]

# Endings of the files of each layout, in small letters.
ENDINGS = {"fastmri": (".h5",), "nifti": (".nii", ".nii.gz")}
# A file that declares more than this is refused before anything is allocated. The
# largest fastMRI k-space volume has about 2**28 complex values.
MAX_VOXELS = 2**29
# Deflate cannot expand by more than this: a file that claims more lies about its size.
MAX_DEFLATE_RATIO = 1032
# A file beyond this size that packs better than this holds no image.
_LARGE_BYTES, _LIKELY_RATIO = 2**26, 250
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
        spacing: Distance of adjacent slices in mm; NaN where unknown.
        affine: (4, 4) rows, from (slice, row, column, 1) of the voxels as they are read
            to the scanner's space in mm; None where the header does not tell.
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
    spacing: float = math.nan
    affine: tuple[tuple[float, ...], ...] | None = None


@dataclasses.dataclass(frozen=True)
class Source:
    """A layout: how its volumes are found and how one of them is read.

    Attributes:
        name: The layout, as in `DataSettings.layout`.
        scan: `scan(settings, on_bad=None)` reads every header and reports the bad
            files, see `report_bad_files`.
        read: Voxels of one volume, real, (slices, height, width), rows downwards.
    """

    name: str
    scan: Callable[..., list[Volume]]
    read: Callable[[Volume], np.ndarray]


class BadFileError(Exception):
    """A file that cannot be used; the message says why, without the file's name."""


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


def check_packing(declared: int, size: int) -> None:
    """Raises BadFileError where a file would unpack to more than an image does.

    Args:
        declared: Bytes of the image.
        size: Bytes that are stored.
    """
    if declared > max(_LARGE_BYTES, size * _LIKELY_RATIO):
        raise BadFileError(
            f"declares {declared} bytes in a file of {size}: no image packs so well"
        )


def check_plane(height: int, width: int) -> None:
    """Raises BadFileError for slices too small to be measured."""
    if min(height, width) < MIN_SIDE:
        raise BadFileError(
            f"has slices of {height}x{width}, under {MIN_SIDE} pixels a side"
        )


def system_words(error: OSError) -> str:
    """What the system said, such as `Permission denied`."""
    return os.strerror(error.errno) if error.errno else first_line(error)


def complaint(error: BaseException, what: str) -> str:
    """Why a file cannot be used: the system's words where it refused, else damage.

    Args:
        error: What the library raised.
        what: Such as `HDF5 file`.
    """
    if isinstance(error, BadFileError):
        return str(error)
    if not isinstance(error, OSError) or error.errno is None:
        return f"damaged {what} ({first_line(error)})"
    words = f"cannot be read ({system_words(error)})"
    if "unable to lock file" in str(error):
        words += (
            ", because another program has it open for writing or the file system has "
            "no locks: end that program, or set HDF5_USE_FILE_LOCKING=FALSE"
        )
    return words


def check_start(start: bytes) -> None:
    """Raises BadFileError where a file's first bytes are those of no image at all."""
    if not start:
        raise BadFileError("is empty (0 bytes)")
    if re.match(rb"\s*<(!doctype|html|\?xml)", start, re.IGNORECASE):
        raise BadFileError("is a web page (a failed download?)")
    if start.startswith(b"version https://git-lfs"):
        raise BadFileError("is a pointer of Git LFS without the content: git lfs pull")
    if re.match(rb"/annex/objects/|(\.\./)*\.git/annex/", start):
        raise BadFileError("is a pointer of git-annex without the content: datalad get")


def some(names: Sequence[str], shown: int = 3) -> str:
    """The first few names and how many more there are."""
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(names[:shown]) + more


def report_bad_files(
    root: str,
    bad: Sequence[tuple[Path, str]],
    total: int,
    on_bad: OnBad | None = None,
) -> None:
    """Raises one DataError (E302) that lists the bad files of a scan, if any.

    More than five are listed in the log, as warnings. With `on_bad` nothing is raised:
    it is called with each of them.
    """
    if on_bad is not None:
        for path, reason in bad:
            on_bad(path, reason)
        return
    if not bad:
        return
    named = "; ".join(f"{path}: {reason}" for path, reason in bad[:_NAMED_FILES])
    more = len(bad) - _NAMED_FILES
    tail = ""
    if more > 0:
        tail = f"; and {more} more, all in the warnings above"
        for path, reason in bad:
            log.warning("%s: %s", path, reason)
    raise DataError(
        "E302",
        f"{len(bad)} of {total} files under {root} cannot be used: {named}{tail}; "
        "fetch damaged ones again; data.contrasts, data.pattern and data.folders can "
        "leave files out, and --config.data.skip_bad=true leaves out all that are bad",
    )


def report_dangling(root: str | Path, paths: Sequence[Path]) -> None:
    """Raises one DataError (E320) for links to nothing, if any."""
    if not paths:
        return
    first = paths[0]
    target = os.readlink(first)
    if "annex/objects" in target:
        remedy = f"datalad get {root} (or git annex get) fetches it"
    else:
        remedy = "mount the disk that it leads to, or correct the link"
    raise DataError(
        "E320",
        f"{len(paths)} links under {root} lead to content that is not here, the first "
        f"is {first} -> {target}: {remedy}; data.contrasts, data.pattern and "
        "data.folders can leave files out",
    )


def report_doubles(keys: Sequence[tuple[str, Path]]) -> None:
    """Raises a DataError (E322) where two files differ in their endings only."""
    seen: dict[str, Path] = {}
    for key, path in keys:
        first = seen.setdefault(key, path)
        if first != path:
            raise DataError(
                "E322",
                f"{first} and {path} are two files of one scan: move one of them out "
                "of the data root",
            )


def check_contrasts(wanted: Sequence[str], present: Iterable[str]) -> None:
    """Raises a ConfigError (E204) for a wanted contrast that no volume has."""
    present = set(present)
    for contrast in wanted:
        if contrast not in present:
            raise ConfigError(
                "E204",
                f"data.contrasts names {contrast!r}, which no volume has; "
                f"there are: {', '.join(sorted(present))}",
            )


def log_subjects(volumes: Sequence[Volume], how: str) -> None:
    """Says how many subjects were found, with how many volumes each; not who.

    Args:
        volumes: What a scan found.
        how: Where the subjects' names come from.
    """
    counts = sorted(Counter(volume.subject for volume in volumes).values())
    few, most = (counts[0], counts[-1]) if counts else (0, 0)
    log.info(
        "%d volumes of %d subjects by %s, %s each",
        len(volumes),
        len(counts),
        how,
        few if few == most else f"{few} to {most}",
    )
