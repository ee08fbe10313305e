"""What stands beside the images of a fastMRI file: its header and its attributes."""

import math
from pathlib import Path

import h5py
import numpy as np

from daasr_jax.data.kspace import MAX_HEADER_BYTES, slice_thickness, voxel_sides
from daasr_jax.data.sources.base import BadFileError

# What h5py raises for damaged files.
READ_ERRORS = (OSError, RuntimeError, KeyError, ValueError, TypeError, MemoryError)
# A text of variable length lies in the file outside of the arrays, as it is.
_MAX_BESIDE_BYTES = 2**26
# The attribute `max` is of one of a file's two images, whose maxima differ by less.
_ABOVE_MAX = 1.5


def spacing(file: h5py.File) -> float:
    """Thickness of the slices in mm, which is their distance but for gaps, or NaN."""
    try:
        header = read_header(file)
        return slice_thickness(header) if header else math.nan
    except (BadFileError, *READ_ERRORS):  # the images do not need it
        return math.nan


def sides(path: Path, height: int, width: int) -> tuple[float, float, float]:
    """Sides of a voxel in mm along slices, rows and columns; NaN where not told.

    Args:
        path: The file.
        height: Rows of its images.
        width: Their columns.

    Raises:
        OSError: If the file cannot be read any more.
    """
    with h5py.File(path, "r") as file:
        try:
            header = read_header(file)
        except (BadFileError, *READ_ERRORS):  # the images do not need it
            header = None
    return voxel_sides(header or "", height, width)


def read_header(file: h5py.File) -> str | None:
    """The text of `ismrmrd_header`; its length is judged before it is read."""
    if "ismrmrd_header" not in file:
        return None
    if not isinstance(file.get("ismrmrd_header", getlink=True), h5py.HardLink):
        raise BadFileError("ismrmrd_header is a link out of its place")
    header = file["ismrmrd_header"]
    if not isinstance(header, h5py.Dataset) or header.size != 1:
        raise BadFileError("ismrmrd_header is not a text")
    if header.external or header.is_virtual:
        raise BadFileError("ismrmrd_header lies in another file, which is refused")
    kind = h5py.check_string_dtype(header.dtype)
    if kind is None:
        raise BadFileError("ismrmrd_header is not a text")
    if kind.length is None:
        length, limit = _bytes_beside(file), _MAX_BESIDE_BYTES
    else:
        length, limit = kind.length, MAX_HEADER_BYTES
    if length > limit:
        raise BadFileError(f"ismrmrd_header may hold {length} bytes, over {limit}")
    return _text(np.asarray(header[()]).reshape(-1)[0])


def _bytes_beside(file: h5py.File) -> int:
    """Bytes of a file that are not stored values of an array."""
    stored = 0

    def add(_: str, item: object) -> None:
        nonlocal stored
        if isinstance(item, h5py.Dataset):
            stored += item.id.get_storage_size()

    file.visititems(add)
    return file.id.get_filesize() - stored


def attribute(file: h5py.File, name: str) -> str:
    """A text among the file's attributes; empty where it is missing."""
    if name not in file.attrs:
        return ""
    size = file.attrs.get_id(name).get_storage_size()
    if size > MAX_HEADER_BYTES:
        raise BadFileError(f"attribute {name} has {size} bytes")
    return _text(file.attrs[name])


def check_max(file: h5py.File, array: np.ndarray) -> None:
    """Raises BadFileError for voxels far above the maximum that the file states.

    Args:
        file: Its attribute `max`, where it has one, is what fastMRI's writers noted.
        array: An image of it.
    """
    try:
        if file.attrs.get_id("max").get_storage_size() > 16:
            return
        stated = np.asarray(file.attrs["max"]).astype(float).item()
    except READ_ERRORS:  # none, or no number
        return
    high = float(array.max())
    if stated > 0 and high > _ABOVE_MAX * stated:
        raise BadFileError(
            f"has a voxel of {high:.4g} beside its attribute max of {stated:.4g}: one "
            "of them is damaged"
        )


def _text(value: object) -> str:
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace").strip()
    return str(value).strip()
