"""NIfTI files in a folder tree; subject, study and contrast come from their paths."""

import gzip
import re
import zlib
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nibabel import orientations
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError

from daasr_jax.data.progress import track
from daasr_jax.data.settings import DataSettings
from daasr_jax.data.sources.base import (
    MAX_DEFLATE_RATIO,
    BadFileError,
    Source,
    Volume,
    check_plane,
    check_size,
    first_line,
    is_data_file,
    log,
    report_bad_files,
)
from daasr_jax.errors import DataError

_SUFFIXES = (".nii", ".nii.gz")
_READ_ERRORS = (
    ImageFileError,
    HeaderDataError,
    OSError,
    EOFError,
    ValueError,
    zlib.error,
)
_SLACK_BYTES = 2**20
# A voxel side this much longer than both others is the slice direction.
_THICK = 1.5
_AXES = ("axial", "coronal", "sagittal")


def scan(settings: DataSettings) -> list[Volume]:
    """Lists the volumes of a NIfTI tree by reading every file's header.

    Raises:
        DataError: If no file is found (E301), any file cannot be used (E302), or a
            path does not match `settings.pattern` (E309).
    """
    root = Path(settings.root)
    paths = sorted(p for p in root.rglob("*.nii*") if is_data_file(p, _SUFFIXES))
    if not paths:
        raise DataError(
            "E301",
            f"no .nii or .nii.gz files under {root}: "
            "give --config.data.root=DIR, a folder of NIfTI files",
        )
    pattern = re.compile(settings.pattern)
    volumes, bad, unplaced = [], [], 0
    for path in track(paths, "reading headers", len(paths)):
        relative = path.relative_to(root).as_posix()
        match = pattern.search(relative)
        if match is None or not match["subject"]:
            raise DataError(
                "E309",
                f"the path {relative} under {root} does not match data.pattern "
                f"{settings.pattern!r}: change the pattern or move the file away",
            )
        try:
            shape, axis, placed = _describe(path, settings.slice_axis)
        except BadFileError as error:
            bad.append((path, str(error)))
            continue
        unplaced += not placed
        groups = match.groupdict()
        volumes.append(
            Volume(
                key=re.sub(r"\.nii(\.gz)?$", "", relative, flags=re.IGNORECASE),
                subject=groups["subject"],
                contrast=groups.get("contrast") or "",
                study=groups.get("study") or "",
                path=str(path),
                shape=shape,
                options=axis,
            )
        )
    report_bad_files(settings.root, bad, len(paths))
    if unplaced:
        log.warning(
            "%d of %d NIfTI headers give no orientation (sform and qform codes are 0); "
            "their axes are taken as nibabel's default",
            unplaced,
            len(paths),
        )
    return volumes


def read(volume: Volume) -> np.ndarray:
    """The voxels of one volume, (slices, height, width), real.

    Raises:
        DataError: If the file cannot be read to its end (E302).
    """
    try:
        return slices_of(load(Path(volume.path)), volume.options)
    except (BadFileError, *_READ_ERRORS) as error:
        raise DataError(
            "E302", f"{volume.path}: {first_line(error)}; fetch the file again"
        ) from None


def load(path: Path) -> nib.Nifti1Image:
    """Opens a NIfTI file; a compressed one is read to its end, so its CRC is checked.

    Raises:
        BadFileError: If the stream is longer than its header declares.
    """
    image = nib.load(path)
    if not isinstance(image, nib.Nifti1Image):
        raise BadFileError("is not a NIfTI file")
    if not path.name.lower().endswith(".gz"):
        return image
    limit = _declared_bytes(image) + _SLACK_BYTES
    with gzip.open(path) as stream:
        data = stream.read(limit + 1)
    if len(data) > limit:
        raise BadFileError("holds more data than its header declares")
    return type(image).from_bytes(data)


def slices_of(image: nib.Nifti1Image, axis: str) -> np.ndarray:
    """The voxels as slices seen from the patient's feet or side, whatever the storage.

    Args:
        image: A three-dimensional real image.
        axis: `axial`: slices upwards, rows to posterior, columns to left.
            `coronal`: slices to posterior, rows downwards, columns to left.
            `sagittal`: slices to left, rows downwards, columns to posterior.

    Returns:
        (slices, height, width) in the stored type, scaled where the header says so.
    """
    stored = orientations.io_orientation(image.affine)
    wanted = orientations.axcodes2ornt(("L", "P", "S"))
    turn = orientations.ornt_transform(stored, wanted)
    array = orientations.apply_orientation(np.asanyarray(image.dataobj), turn)
    spl = np.transpose(array, (2, 1, 0))
    if axis == "coronal":
        spl = np.moveaxis(spl, 1, 0)[:, ::-1]
    elif axis == "sagittal":
        spl = np.moveaxis(spl, 2, 0)[:, ::-1]
    return np.ascontiguousarray(spl)


def _describe(path: Path, wanted: str) -> tuple[tuple[int, int, int], str, bool]:
    """Shape as slices, slice axis, and whether the header gives an orientation."""
    try:
        image = nib.load(path)
        if not isinstance(image, nib.Nifti1Image):
            raise BadFileError("is not a NIfTI file")
        _check_header(image, path)
        # axis of the file that runs along L, P and S
        stored = orientations.io_orientation(image.affine)
    except _READ_ERRORS as error:
        raise BadFileError(f"damaged NIfTI file ({first_line(error)})") from None
    sides = np.sqrt(np.square(np.asarray(image.affine)[:3, :3]).sum(axis=0))
    places = [int(np.flatnonzero(stored[:, 0] == world)[0]) for world in (2, 1, 0)]
    # from here on in the order superior, posterior, left
    shape = [int(image.shape[place]) for place in places]
    spacing = [float(sides[place]) for place in places]
    if wanted == "auto":
        thick = int(np.argmax(spacing))
        others = max(side for i, side in enumerate(spacing) if i != thick)
        wanted = _AXES[thick] if spacing[thick] > _THICK * others else "axial"
    slices = shape.pop(_AXES.index(wanted))
    check_plane(*shape)
    codes = int(image.header["sform_code"]), int(image.header["qform_code"])
    return (slices, shape[0], shape[1]), wanted, any(codes)


def _check_header(image: nib.Nifti1Image, path: Path) -> None:
    dtype = image.header.get_data_dtype()
    if dtype.kind not in "fiu":
        raise BadFileError(f"holds {dtype} values; magnitude images are wanted")
    if len(image.shape) != 3:
        raise BadFileError(f"has shape {image.shape}; three axes are wanted")
    check_size(image.shape)
    affine = np.asarray(image.affine)
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-9:
        raise BadFileError("has an affine that is not finite or has no volume")
    if np.isnan(orientations.io_orientation(affine)).any():
        raise BadFileError("has an affine that drops an axis")
    declared, size = _declared_bytes(image), path.stat().st_size
    packed = path.name.lower().endswith(".gz")
    if declared > (size * MAX_DEFLATE_RATIO if packed else size):
        raise BadFileError(f"declares {declared} bytes in a file of {size}: truncated")


def _declared_bytes(image: nib.Nifti1Image) -> int:
    """Bytes of the uncompressed file by its header."""
    voxels = int(np.prod(image.shape, dtype=np.int64))
    proxy: Any = image.dataobj  # the loaded header itself has forgotten the offset
    return max(int(proxy.offset), 0) + voxels * image.header.get_data_dtype().itemsize


SOURCE = Source("nifti", scan, read)
