"""NIfTI files in a folder tree; subject, study and contrast come from their paths."""

from collections.abc import Sequence
from pathlib import Path

import nibabel as nib
import numpy as np

from daasr_jax.data.progress import track
from daasr_jax.data.settings import DataSettings
from daasr_jax.data.sources.base import (
    ENDINGS,
    BadFileError,
    OnBad,
    Source,
    Volume,
    check_contrasts,
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
from daasr_jax.data.sources.nifti_header import (
    IMAGES,
    READ_ERRORS,
    declared_bytes,
    describe,
    opened,
    read_header,
    slice_order,
)
from daasr_jax.data.sources.tree import walk
from daasr_jax.errors import DataError

_SLACK_BYTES = 2**20
# A volume of so few values, all voxels counted, is a mask or a label map.
_FEW_VALUES = 8


def scan(settings: DataSettings, on_bad: OnBad | None = None) -> list[Volume]:
    """Lists the volumes of a NIfTI tree by reading every file's header.

    Masks and label maps by name, paths that do not fit the form of the tree, and
    contrasts that are not wanted are left out before any file is opened.

    Args:
        settings: The root, and what is wanted of it.
        on_bad: See `report_bad_files`.

    Raises:
        ConfigError: If no path has a contrast of `settings.contrasts` (E204).
        DataError: If no file is found (E301), a folder or a file cannot be used
            (E302), no path fits the form of the tree (E309), a file's content is not
            here (E320), subjects and people do not agree (E321), two files are one
            scan (E322), or a link leads out of the root (E323).
    """
    root = Path(settings.root)
    tree = walk(root, ENDINGS["nifti"])
    tree.report(links_out=settings.links_out)
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
    report_dangling(root, sorted(dangling))
    volumes, bad = [], []
    remarks: dict[str, list[Path]] = {}
    for name, spot in track(places.items(), "reading headers", len(places)):
        path = paths[name]
        try:
            header = describe(path, settings.slice_axis)
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
                spacing=header.spacing,
                affine=header.affine,
            )
        )
    report_bad_files(settings.root, bad, len(places), on_bad)
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
    except (BadFileError, *READ_ERRORS) as error:
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
    with opened(path) as (stream, packed):
        header = read_header(stream, path, packed=packed)
        kind = IMAGES[int(header["sizeof_hdr"])]
        if not packed and path.name.endswith(".nii"):
            return kind.from_filename(path)  # mapped, not copied
        stream.seek(0)
        limit = declared_bytes(header) + _SLACK_BYTES
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
    array = np.asanyarray(image.dataobj).reshape(image.shape[:3])
    order = slice_order(np.asarray(image.affine), array.shape, axis)
    return np.ascontiguousarray(in_order(array, order))


def in_order(array: np.ndarray, order: np.ndarray) -> np.ndarray:
    """A view of the voxels as (slices, height, width).

    Args:
        array: Of three axes, as stored.
        order: (4, 4), of `nifti_header.slice_order`; the shift is not used.
    """
    turn = order[:3, :3]
    view = np.transpose(array, np.abs(turn).argmax(axis=0))
    return view[tuple(slice(None, None, -1 if s < 0 else 1) for s in turn.sum(axis=0))]


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
