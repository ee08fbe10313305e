"""NIfTI files in a folder tree; subject, study and contrast come from their paths.

Headers are read and judged here before nibabel sees the file, so that what a header
declares costs no memory.
"""

import contextlib
import dataclasses
import gzip
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, cast

import nibabel as nib
import numpy as np
from nibabel import orientations
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError

from daasr_jax.data.progress import track
from daasr_jax.data.settings import DataSettings
from daasr_jax.data.sources.base import (
    ENDINGS,
    MAX_DEFLATE_RATIO,
    BadFileError,
    Source,
    Volume,
    check_contrasts,
    check_plane,
    check_size,
    check_start,
    complaint,
    log,
    log_subjects,
    report_bad_files,
    report_dangling,
    report_doubles,
)
from daasr_jax.data.sources.forms import (
    Place,
    check_people,
    is_label_map,
    place,
    without_ending,
)
from daasr_jax.data.sources.tree import walk
from daasr_jax.errors import DataError

_READ_ERRORS = (
    ImageFileError,
    HeaderDataError,
    OSError,
    EOFError,
    ValueError,
    zlib.error,
)
_SLACK_BYTES = 2**20
# What may lie between header and voxels; texts of scanners take a few MiB.
_MAX_OFFSET = 2**24
# A file beyond this size that packs better than this holds no image.
_LARGE_BYTES, _LIKELY_RATIO = 2**26, 250
# A volume of so few values, all voxels counted, is a mask or a label map.
_FEW_VALUES = 8
# A voxel side this much longer than both others is the slice direction.
_THICK = 1.5
_AXES = ("axial", "coronal", "sagittal")
# The two orientations of a header agree within this share of a voxel's shortest side.
_AGREEMENT = 0.05
# Beyond this angle to the body's axes the nearest one is a matter of chance.
_OBLIQUE_DEGREES = 35.0
# Axes of a voxel further from right angles than this are sheared.
_SHEAR_DEGREES = 3.0


@dataclasses.dataclass(frozen=True)
class _Header:
    """What is wanted of a header; `remarks` are what the user should know of it."""

    shape: tuple[int, int, int]
    axis: str
    remarks: tuple[str, ...]


def scan(settings: DataSettings) -> list[Volume]:
    """Lists the volumes of a NIfTI tree by reading every file's header.

    Masks and label maps by name, paths that do not fit the form of the tree, and
    contrasts that are not wanted are left out before any file is opened.

    Raises:
        ConfigError: If no path has a contrast of `settings.contrasts` (E204).
        DataError: If no file is found (E301), a folder or a file cannot be used
            (E302), no path fits the form of the tree (E309), a file's content is not
            here (E320), subjects and people do not agree (E321), or two files are one
            scan (E322).
    """
    root = Path(settings.root)
    tree = walk(root, ENDINGS["nifti"])
    tree.report()
    paths = {p.relative_to(root).as_posix(): p for p in (*tree.files, *tree.dangling)}
    if not paths:
        raise DataError(
            "E301",
            f"no .nii or .nii.gz files under {root}: "
            f"give --config.data.root=DIR, a folder of NIfTI files{tree.remarks()}",
        )
    form, places = _choose(sorted(paths), settings)
    report_doubles([(without_ending(name), paths[name]) for name in places])
    dangling = set(tree.dangling) & {paths[name] for name in places}
    report_dangling(settings.root, sorted(dangling), len(places))
    volumes, bad = [], []
    remarks: dict[str, list[Path]] = {}
    for name, spot in track(places.items(), "reading headers", len(places)):
        path = paths[name]
        try:
            header = _describe(path, settings.slice_axis)
        except BadFileError as error:
            bad.append((path, str(error)))
            continue
        for remark in header.remarks:
            remarks.setdefault(remark, []).append(path)
        volumes.append(
            Volume(
                key=without_ending(name),
                subject=spot.subject,
                contrast=spot.contrast,
                study=spot.study,
                path=str(path),
                shape=header.shape,
                options=header.axis,
            )
        )
    report_bad_files(settings.root, bad, len(places))
    for remark, found in remarks.items():
        log.warning(
            "%d of %d NIfTI headers %s; the first is %s",
            len(found),
            len(places),
            remark,
            found[0],
        )
    log_subjects(volumes, form)
    return volumes


def read(volume: Volume) -> np.ndarray:
    """The voxels of one volume, (slices, height, width), real.

    Raises:
        DataError: If the file cannot be read to its end, or holds a mask or a label
            map (E302).
    """
    try:
        array = slices_of(load(Path(volume.path)), volume.options)
        _check_values(array)
    except (BadFileError, *_READ_ERRORS) as error:
        raise DataError(
            "E302", f"{volume.path}: {complaint(error, 'NIfTI file')}"
        ) from None
    return array


def load(path: Path) -> nib.Nifti1Image:
    """Opens a NIfTI file; a compressed one is read to its end, so its CRC is checked.

    What the file holds decides whether it is unpacked, not its name.

    Raises:
        BadFileError: If the stream is longer than its header declares, or the header
            cannot be used.
    """
    with _opened(path) as (stream, packed):
        header = _header(stream, path, packed=packed)
        kind = _IMAGES[int(header["sizeof_hdr"])]
        if not packed and path.name.endswith(".nii"):
            return kind.from_filename(path)  # mapped, not copied
        stream.seek(0)
        limit = _declared_bytes(header) + _SLACK_BYTES
        data = stream.read(limit + 1)
    if packed and len(data) > limit:
        raise BadFileError("holds more data than its header declares")
    return kind.from_bytes(data)


def slices_of(image: nib.Nifti1Image, axis: str) -> np.ndarray:
    """The voxels as slices seen from the patient's feet or side, whatever the storage.

    Args:
        image: A real image of three axes; axes beyond, of length 1, are dropped.
        axis: `axial`: slices upwards, rows to posterior, columns to left.
            `coronal`: slices to posterior, rows downwards, columns to left.
            `sagittal`: slices to left, rows downwards, columns to posterior.

    Returns:
        (slices, height, width) in the stored type, scaled where the header says so.
    """
    stored = orientations.io_orientation(image.affine)
    wanted = orientations.axcodes2ornt(("L", "P", "S"))
    turn = orientations.ornt_transform(stored, wanted)
    array = np.asanyarray(image.dataobj).reshape(image.shape[:3])
    array = orientations.apply_orientation(array, turn)
    spl = np.transpose(array, (2, 1, 0))
    if axis == "coronal":
        spl = np.moveaxis(spl, 1, 0)[:, ::-1]
    elif axis == "sagittal":
        spl = np.moveaxis(spl, 2, 0)[:, ::-1]
    return np.ascontiguousarray(spl)


def _choose(
    names: Sequence[str], settings: DataSettings
) -> tuple[str, dict[str, Place]]:
    """The form of the tree, and the places of the paths that are wanted."""

    def left_out(rest: Sequence[str], why: str) -> None:
        if rest:
            log.warning(
                "left out %d of %d files: %s; the first is %s",
                len(rest),
                len(names),
                why,
                rest[0],
            )

    labels = [
        name
        for name in names
        if is_label_map(name)
        and without_ending(name).rpartition("_")[2] not in settings.contrasts
    ]
    images = sorted(set(names) - set(labels))
    left_out(labels, "masks and label maps by their names, or derived")
    form, places = place(images, settings.pattern)
    unplaced = [name for name in images if name not in places]
    if not places:
        raise DataError(
            "E309",
            f"none of {len(names)} paths under {settings.root} names a subject by "
            f"{form}, the first is {(unplaced or labels)[0]}: give a "
            "--config.data.pattern that does",
        )
    left_out(unplaced, f"they name no image by {form}")
    check_people(places)
    wanted = settings.contrasts
    check_contrasts(wanted, {spot.contrast for spot in places.values()})
    if wanted:
        every = len(places)
        places = {n: spot for n, spot in places.items() if spot.contrast in wanted}
        log.info("data.contrasts takes %d of %d volumes", len(places), every)
    return form, places


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[tuple[BinaryIO, bool]]:
    """The file's bytes, unpacked where it is a gzip file whatever its name."""
    with path.open("rb") as file:
        start = file.read(256)
        check_start(start)
        file.seek(0)
        if start.startswith(b"\x1f\x8b"):
            with gzip.open(file) as stream:
                yield cast(BinaryIO, stream), True
        else:
            yield file, False


_IMAGES: dict[int, Any] = {348: nib.Nifti1Image, 540: nib.Nifti2Image}


def _header(stream: BinaryIO, path: Path, *, packed: bool) -> nib.Nifti1Header:
    """The header after every check that needs no voxel."""
    block = stream.read(540)
    sizes = {int(np.frombuffer(block[:4], order)[0]) for order in ("<i4", ">i4")}
    size = next(iter(sizes & set(_IMAGES)), 0) if len(block) >= 348 else 0
    if not size or len(block) < size:
        raise BadFileError("is not a NIfTI file")
    header = _IMAGES[size].header_class(block[:size])
    if not bytes(header["magic"]).startswith(b"n+"):
        raise BadFileError("is not a NIfTI file, or one half of a .hdr and .img pair")
    _check_header(header, path.stat().st_size, packed=packed)
    return header


def _describe(path: Path, wanted: str) -> _Header:
    """Shape as slices, slice axis, and what the user should know of the header."""
    try:
        with _opened(path) as (stream, packed):
            header = _header(stream, path, packed=packed)
        affine = header.get_best_affine()
        # axis of the file that runs along L, P and S
        stored = orientations.io_orientation(affine)
    except (BadFileError, *_READ_ERRORS) as error:
        raise BadFileError(complaint(error, "NIfTI file")) from None
    sides = np.sqrt(np.square(affine[:3, :3]).sum(axis=0))
    places = [int(np.flatnonzero(stored[:, 0] == world)[0]) for world in (2, 1, 0)]
    # from here on in the order superior, posterior, left
    shape = [int(header.get_data_shape()[axis]) for axis in places]
    spacing = [float(sides[axis]) for axis in places]
    if wanted == "auto":
        thick = int(np.argmax(spacing))
        others = max(side for i, side in enumerate(spacing) if i != thick)
        wanted = _AXES[thick] if spacing[thick] > _THICK * others else "axial"
    slices = shape.pop(_AXES.index(wanted))
    check_plane(*shape)
    remarks = tuple(_remarks(header, affine, stored))
    return _Header((slices, shape[0], shape[1]), wanted, remarks)


def _remarks(
    header: nib.Nifti1Header, affine: np.ndarray, stored: np.ndarray
) -> Iterator[str]:
    """What a user should know of an orientation that is used all the same."""
    codes = int(header["sform_code"]), int(header["qform_code"])
    if not any(codes):
        yield (
            "give no orientation (sform and qform codes are 0), so their axes are "
            "taken as nibabel's default"
        )
        return
    units = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    if all(codes):
        corners = np.array(header.get_data_shape()[:3]) - 1.0
        far = np.vstack([np.diag(corners), corners[None], np.zeros((1, 3))])
        try:
            other = header.get_qform()
        except (HeaderDataError, ValueError):  # a quaternion that is none
            other = np.full((4, 4), 1e9)
        between = nib.affines.apply_affine(affine - other, far)
        sides = np.linalg.norm(affine[:3, :3], axis=0)
        if np.abs(between).max() > _AGREEMENT * sides.min():
            yield "have an sform and a qform that disagree, of which the sform is used"
    if np.abs(units.T @ units - np.eye(3)).max() > np.sin(np.radians(_SHEAR_DEGREES)):
        yield "are sheared: their axes are not at right angles, and are used as such"
    along = [abs(units[int(world), axis]) for axis, world in enumerate(stored[:, 0])]
    if min(along) < np.cos(np.radians(_OBLIQUE_DEGREES)):
        yield (
            f"lie more than {_OBLIQUE_DEGREES:.0f} degrees off the body's axes, so "
            "their slices follow the nearest axis of storage"
        )


def _check_header(header: nib.Nifti1Header, size: int, *, packed: bool) -> None:
    dtype = header.get_data_dtype()
    if dtype.kind not in "fiu":
        raise BadFileError(f"holds {dtype} values; magnitude images are wanted")
    shape = header.get_data_shape()
    if len(shape) < 3 or any(side != 1 for side in shape[3:]):
        raise BadFileError(f"has shape {shape}; three axes are wanted")
    check_size(shape)
    affine = np.asarray(header.get_best_affine())
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-9:
        raise BadFileError("has an affine that is not finite or has no volume")
    if np.isnan(orientations.io_orientation(affine)).any():
        raise BadFileError("has an affine that drops an axis")
    offset = header.get_data_offset()
    if offset > _MAX_OFFSET:
        raise BadFileError(
            f"has its voxels begin at byte {offset} (vox_offset), beyond {_MAX_OFFSET}"
        )
    declared = _declared_bytes(header)
    if declared > (size * MAX_DEFLATE_RATIO if packed else size):
        raise BadFileError(f"declares {declared} bytes in a file of {size}: truncated")
    if declared > max(_LARGE_BYTES, size * _LIKELY_RATIO):
        raise BadFileError(
            f"declares {declared} bytes in a file of {size}: no image packs so well"
        )


def _declared_bytes(header: nib.Nifti1Header) -> int:
    """Bytes of the uncompressed file by its header."""
    voxels = int(np.prod(header.get_data_shape(), dtype=np.int64))
    offset = max(int(header.get_data_offset()), 0)
    return offset + voxels * header.get_data_dtype().itemsize


def _check_values(array: np.ndarray) -> None:
    """Raises BadFileError for more than one value, but only a handful."""
    found: set[float] = set()
    # a thin sample settles it for an image; a mask is counted to its end
    for part in (array.ravel()[:: max(1, array.size // 4096)], *array):
        found.update(np.unique(part[~np.isnan(part)]).tolist())
        if len(found) > _FEW_VALUES:
            return
    if len(found) > 1:
        values = ", ".join(f"{value:g}" for value in sorted(found))
        raise BadFileError(
            f"holds {len(found)} values only ({values}), so it is a mask or a label "
            "map: end its name in _mask or _seg to have it left out"
        )


SOURCE = Source("nifti", scan, read)
