"""The fastMRI layout: HDF5 volumes in official folders, or plain files in one folder.

A root holds folders whose names end in `_train` or `_val`; folders of the test and
challenge sets have no targets and are ignored. Without such folders the .h5 files of
the root itself are taken. Format: https://fastmri.med.nyu.edu (dataset description).

Every check that needs no voxel is made on the header, before anything is allocated.
"""

import dataclasses
import difflib
import math
import re
from collections.abc import Sequence
from pathlib import Path

import h5py
import numpy as np

from daasr_jax.data.kspace import (
    check_axes,
    plane_remark,
    recon_size,
    rss_from_kspace,
)
from daasr_jax.data.progress import track
from daasr_jax.data.settings import FASTMRI_TARGETS, DataSettings
from daasr_jax.data.sources.base import (
    ENDINGS,
    MAX_DEFLATE_RATIO,
    BadFileError,
    OnBad,
    Source,
    Volume,
    check_contrasts,
    check_packing,
    check_plane,
    check_size,
    check_start,
    complaint,
    log,
    log_subjects,
    report_bad_files,
    report_dangling,
    report_doubles,
    some,
)
from daasr_jax.data.sources.fastmri_header import (
    READ_ERRORS,
    attribute,
    check_max,
    read_header,
    spacing,
)
from daasr_jax.data.sources.fastmri_probe import check_texts
from daasr_jax.data.sources.tree import Tree, walk
from daasr_jax.errors import ConfigError, DataError

# Filters inside the HDF5 library (deflate, shuffle, fletcher32, szip, n-bit,
# scale-offset) and h5py's own lzf; any other would load a plugin.
_FILTERS = {1, 2, 3, 4, 5, 6, 32000}
_CHUNK_SLACK = 2**16


@dataclasses.dataclass(frozen=True)
class Found:
    """A header that was read; `volume` is None where its contrast is not wanted."""

    contrast: str
    volume: Volume | None = None
    by_file: bool = False
    remark: tuple[str, str] | None = None


def scan(settings: DataSettings, on_bad: OnBad | None = None) -> list[Volume]:
    """Lists the volumes of a fastMRI root by reading every file's header.

    Args:
        settings: The root, and what is wanted of it.
        on_bad: See `report_bad_files`.

    Raises:
        ConfigError: If `settings.folders` names a folder that is not there (E214), or
            no file has a contrast of `settings.contrasts` (E204).
        DataError: If no file is found (E301), a folder or a file cannot be used
            (E302), a file's content is not here (E320), two files are one scan (E322),
            or a link leads out of the root (E323).
    """
    root = Path(settings.root)
    tree = walk(root, ENDINGS["fastmri"], depth=1)
    files = _find(tree, settings.folders, links_out=settings.links_out)
    report_doubles([(_key(path, root), path) for path, _ in files])
    dangling = sorted(set(tree.dangling) & {path for path, _ in files})
    report_dangling(root, dangling)
    found, bad = [], []
    remarks: dict[str, list[tuple[Path, str]]] = {}
    for path, role in track(files, "reading headers", len(files)):
        try:
            one = describe(path, root, role, settings)
        except BadFileError as error:
            bad.append((path, str(error)))
            continue
        found.append(one)
        if one.remark:
            remarks.setdefault(one.remark[0], []).append((path, one.remark[1]))
    report_bad_files(settings.root, bad, len(files), on_bad)
    _check_folders([path for path, _ in files], bad)
    check_contrasts(settings.contrasts, {one.contrast for one in found})
    volumes = [one.volume for one in found if one.volume]
    if settings.contrasts:
        log.info("data.contrasts takes %d of %d volumes", len(volumes), len(found))
    _warn(found, remarks, settings.resize)
    by = {"auto": "patient_id or file", "file": "file", "attribute": "patient_id"}
    log_subjects(volumes, by[settings.subject_from])
    return volumes


def read(volume: Volume) -> np.ndarray:
    """The voxels of one volume, (slices, height, width), float as stored.

    A k-space volume comes back as root-sum-of-squares magnitude, float32.

    Raises:
        DataError: If the file cannot be read any more (E302).
    """
    name, _, crop = volume.options.partition(":")
    try:
        with h5py.File(volume.path, "r") as file:
            array = _dataset(file, name)[()]
            if name != "kspace":
                check_max(file, array)
    except (BadFileError, *READ_ERRORS) as error:
        raise DataError(
            "E302", f"{volume.path}: {complaint(error, 'HDF5 file')}"
        ) from None
    if name != "kspace":
        return array
    height, width = (int(side) for side in crop.split("x"))
    return rss_from_kspace(array, (height, width))


def _find(
    tree: Tree, wanted: tuple[str, ...], *, links_out: bool
) -> list[tuple[Path, str]]:
    """The files to use, with their roles; what is left out is said."""
    root = tree.root
    unread = [path for path, _ in tree.unreadable if path != root] + tree.lost
    every = sorted({path.name for path in (*tree.folders, *unread)})
    roles = {
        name: match[1]
        for name in every
        if (match := re.search(r"(?:^|_)(train|val)$", name))
    }
    unknown = sorted(set(wanted) - set(roles))
    if unknown:
        raise ConfigError(
            "E214",
            f"data.folders names {unknown[0]!r}, which is no *_train or *_val folder "
            f"of {root}; there are: {', '.join(sorted(roles)) or 'none'}",
        )
    used = {name: role for name, role in roles.items() if not wanted or name in wanted}
    # a folder that is not used stops nobody
    tree.lost = [path for path in tree.lost if path.name in (used or every)]
    tree.unreadable = [
        (path, why)
        for path, why in tree.unreadable
        if path == root or path.name in (used or every)
    ]
    tree.outside = [
        path
        for path in tree.outside
        if not used or {path.name, path.parent.name} & used.keys()
    ]
    tree.report(links_out=links_out)
    found = sorted([*tree.files, *tree.dangling])
    plain = [path for path in found if path.parent == root]
    files = [
        (path, used[path.parent.name])
        for path in found
        if path.parent != root and path.parent.name in used
    ]
    ignored = sorted({p.parent.name for p in found if p.parent != root} - set(used))
    if ignored:
        log.info("ignored, no folder of targets: %s", ", ".join(ignored))
    if files:
        if plain:
            log.warning("ignored %d .h5 files directly in %s", len(plain), root)
        names = [n for n in used if used[n] == "train"]
        if len(names) > 1:
            log.warning(
                "several train folders are used together: %s; choose with data.folders",
                ", ".join(names),
            )
        return files
    if not plain:
        raise DataError(
            "E301",
            f"no .h5 files in {root} or in its *_train and *_val folders: "
            "give --config.data.root=DIR, the folder that holds multicoil_train"
            f"{tree.remarks()}",
        )
    return [(path, "") for path in plain]


def _check_folders(files: Sequence[Path], bad: Sequence[tuple[Path, str]]) -> None:
    """Refuses folders of which nothing is left, without which the splits are others."""
    unusable = {path for path, _ in bad}
    left = {path.parent for path in files if path not in unusable}
    for folder in sorted({path.parent for path in unusable} - left):
        own = [(path, reason) for path, reason in bad if path.parent == folder]
        report_bad_files(str(folder), own, len(own))


def _warn(
    found: Sequence[Found], remarks: dict[str, list[tuple[Path, str]]], resize: str
) -> None:
    named = [one.volume.subject for one in found if one.volume and one.by_file]
    if named:
        log.warning(
            "%d of %d files have no attribute patient_id, so the name of the file is "
            "the subject: %s; where a person has several files, put them into one list "
            "of data.subjects",
            len(named),
            len(found),
            some(named),
        )
    remedy = "; --config.data.resize=pad keeps the shape of images that are not square"
    remedy *= resize != "pad"
    for remark, places in remarks.items():
        path, sizes = places[0]
        log.warning(
            "%d of %d k-space files %s; the first is %s: %s%s",
            len(places),
            len(found),
            remark,
            path,
            sizes,
            remedy,
        )


def _key(path: Path, root: Path) -> str:
    return path.relative_to(root).with_suffix("").as_posix()


def describe(path: Path, root: Path, role: str, settings: DataSettings) -> Found:
    """What the header of one file tells.

    Args:
        path: The file.
        root: Folder below which its key is the path.
        role: As in `Volume`.
        settings: Which dataset is the image, and where the subject's name stands.

    Raises:
        BadFileError: If the file cannot be used.
    """
    _check_signature(path)
    check_texts(path)
    remark = None
    try:
        with h5py.File(path, "r") as file:
            contrast = attribute(file, "acquisition")
            if settings.contrasts and contrast not in settings.contrasts:
                return Found(contrast)
            name = _choose(file, settings.target)
            dataset = _dataset(file, name)
            subject = attribute(file, "patient_id")
            by_file = settings.subject_from == "auto" and not subject
            if by_file or settings.subject_from == "file":
                subject = path.stem
            if not subject:
                raise BadFileError(
                    "has no attribute patient_id, and splits are by subject "
                    "(data.subject_from=file takes the file's name)"
                )
            options, shape = name, tuple(int(side) for side in dataset.shape)
            distance = spacing(file)
            if name == "kspace":
                size, remark = _plane(file, shape)
                options = f"{name}:{size[0]}x{size[1]}"
                shape = (shape[0], *size)
    except (BadFileError, *READ_ERRORS) as error:
        raise BadFileError(complaint(error, "HDF5 file")) from None
    check_plane(*shape[1:])
    volume = Volume(
        key=_key(path, root),
        subject=subject,
        contrast=contrast,
        study="",
        path=str(path),
        shape=(shape[0], shape[1], shape[2]),
        folder=path.relative_to(root).parent.as_posix(),
        role=role,
        options=options,
        spacing=distance,
    )
    return Found(contrast, volume, by_file, remark)


def _check_signature(path: Path) -> None:
    try:
        with path.open("rb") as file:
            check_start(file.read(1024))
    except OSError as error:
        raise BadFileError(complaint(error, "HDF5 file")) from None
    if not h5py.is_hdf5(path):
        raise BadFileError("is not an HDF5 file")


def _choose(file: h5py.File, target: str) -> str:
    present = list(file)
    if target == "auto":
        target = next((n for n in FASTMRI_TARGETS[1:] if n in present), "auto")
    if target not in present:
        raise BadFileError(
            f"has no {'image' if target == 'auto' else target}; "
            f"its keys are {', '.join(present[:8]) or 'none'}{_hint(present)}"
        )
    if target == "kspace" and "mask" in present:
        raise BadFileError("holds undersampled k-space only (it has a mask): no target")
    return target


def _hint(present: Sequence[str]) -> str:
    """What may be meant by the keys of a file without the image that is wanted."""
    for name in FASTMRI_TARGETS[1:]:
        if name in present:
            return f", did you mean --config.data.target={name}?"
    for name in present:
        if meant := difflib.get_close_matches(name, FASTMRI_TARGETS[1:], 1, 0.7):
            return f": is {name} misspelt, did you mean {meant[0]}?"
    return ""


def _dataset(file: h5py.File, name: str) -> h5py.Dataset:
    """The dataset after every check that needs no voxel."""
    if not isinstance(file.get(name, getlink=True), h5py.HardLink):
        raise BadFileError(f"{name} is a link out of its place, which is refused")
    dataset = file[name]
    if not isinstance(dataset, h5py.Dataset):
        raise BadFileError(f"{name} is a group, not an array")
    if dataset.external or dataset.is_virtual:
        raise BadFileError(f"{name} lies in another file, which is refused")
    kinds, dims = ("c", (3, 4)) if name == "kspace" else ("fiu", (3,))
    if dataset.dtype.kind not in kinds or dataset.ndim not in dims:
        wanted = "complex, 3 or 4 axes" if name == "kspace" else "real, 3 axes"
        raise BadFileError(
            f"{name} is {dataset.dtype} {dataset.shape}; wanted: {wanted}"
        )
    check_size(dataset.shape)
    _check_storage(dataset, name)
    return dataset


def _check_storage(dataset: h5py.Dataset, name: str) -> None:
    filters = dataset.id.get_create_plist()
    codes = {filters.get_filter(i)[0] for i in range(filters.get_nfilters())}
    if not codes <= _FILTERS:
        raise BadFileError(
            f"{name} needs HDF5 filter {min(codes - _FILTERS)}, which is refused"
        )
    stored = min(dataset.id.get_storage_size(), dataset.file.id.get_filesize())
    ratio = MAX_DEFLATE_RATIO if codes else 1
    if dataset.nbytes > stored * ratio + _CHUNK_SLACK * bool(codes):
        raise BadFileError(
            f"{name} declares {dataset.nbytes} bytes but stores {stored}: truncated"
        )
    check_packing(dataset.nbytes, stored)
    chunk = math.prod(dataset.chunks or ()) * dataset.dtype.itemsize
    if chunk > dataset.nbytes:  # which is unpacked whole
        check_packing(chunk, 0)


def _plane(
    file: h5py.File, shape: tuple[int, ...]
) -> tuple[tuple[int, int], tuple[str, str] | None]:
    """Height and width of the image of a k-space, and what is odd about it."""
    height, width = shape[-2:]
    try:
        header = read_header(file)
        check_axes(shape, header)
        size = recon_size(header, height, width) if header else (height, width)
        return size, plane_remark(height, width, header)
    except ValueError as error:
        raise BadFileError(str(error)) from None


SOURCE = Source("fastmri", scan, read)
