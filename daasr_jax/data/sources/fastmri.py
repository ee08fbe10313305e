"""The fastMRI layout: HDF5 volumes in official folders, or plain files in one folder.

A root holds folders whose names end in `_train` or `_val`; folders of the test and
challenge sets have no targets and are ignored. Without such folders the .h5 files of
the root itself are taken. Format: https://fastmri.med.nyu.edu (dataset description).

Every check that needs no voxel is made on the header, before anything is allocated. One
thing cannot be checked from Python: the HDF5 library itself may loop without end on a
file whose heap of texts is damaged.
"""

import difflib
import re
from pathlib import Path

import h5py
import numpy as np

from daasr_jax.data.kspace import recon_size, rss_from_kspace
from daasr_jax.data.progress import track
from daasr_jax.data.settings import FASTMRI_TARGETS, DataSettings
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
from daasr_jax.errors import ConfigError, DataError

# Filters inside the HDF5 library (deflate, shuffle, fletcher32, szip, n-bit,
# scale-offset) and h5py's own lzf; any other would load a plugin.
_FILTERS = {1, 2, 3, 4, 5, 6, 32000}
# What h5py raises for damaged files.
_READ_ERRORS = (OSError, RuntimeError, KeyError, ValueError, TypeError, MemoryError)
_CHUNK_SLACK = 2**16


def scan(settings: DataSettings) -> list[Volume]:
    """Lists the volumes of a fastMRI root by reading every file's header.

    Raises:
        ConfigError: If `settings.folders` names a folder that is not there (E214).
        DataError: If no file is found (E301), or any file cannot be used (E302).
    """
    root = Path(settings.root)
    files = _find(root, settings.folders)
    volumes, bad = [], []
    for path, role in track(files, "reading headers", len(files)):
        try:
            volumes.append(_describe(path, root, role, settings.target))
        except BadFileError as error:
            bad.append((path, str(error)))
    report_bad_files(settings.root, bad, len(files))
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
    except (BadFileError, *_READ_ERRORS) as error:
        raise DataError(
            "E302", f"{volume.path}: {first_line(error)}; fetch the file again"
        ) from None
    if name != "kspace":
        return array
    height, width = (int(side) for side in crop.split("x"))
    return rss_from_kspace(array, (height, width))


def _find(root: Path, wanted: tuple[str, ...]) -> list[tuple[Path, str]]:
    folders = sorted(p for p in root.iterdir() if p.is_dir() and p.name[0] != ".")
    roles = {
        p.name: match[1]
        for p in folders
        if (match := re.search(r"(?:^|_)(train|val)$", p.name))
    }
    unknown = sorted(set(wanted) - set(roles))
    if unknown:
        raise ConfigError(
            "E214",
            f"data.folders names {unknown[0]!r}, which is no *_train or *_val folder "
            f"of {root}; there are: {', '.join(sorted(roles)) or 'none'}",
        )
    used = {name: role for name, role in roles.items() if not wanted or name in wanted}
    files = [
        (path, role)
        for name, role in sorted(used.items())
        for path in _h5_files(root / name)
    ]
    plain = _h5_files(root)
    ignored = [p.name for p in folders if p.name not in used and _h5_files(p)]
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
            "give --config.data.root=DIR, the folder that holds multicoil_train",
        )
    return [(path, "") for path in plain]


def _h5_files(folder: Path) -> list[Path]:
    return sorted(p for p in folder.iterdir() if is_data_file(p, (".h5",)))


def _describe(path: Path, root: Path, role: str, target: str) -> Volume:
    _check_signature(path)
    try:
        with h5py.File(path, "r") as file:
            name = _choose(file, target)
            dataset = _dataset(file, name)
            subject = _text(file.attrs.get("patient_id"))
            if not subject:
                raise BadFileError(
                    "has no attribute patient_id, and splits are by subject"
                )
            options, shape = name, tuple(int(side) for side in dataset.shape)
            if name == "kspace":
                height, width = _crop(file, shape[-2:])
                shape, options = (shape[0], height, width), f"{name}:{height}x{width}"
            contrast = _text(file.attrs.get("acquisition"))
    except _READ_ERRORS as error:
        raise BadFileError(f"damaged HDF5 file ({first_line(error)})") from None
    check_plane(*shape[1:])
    relative = path.relative_to(root).with_suffix("")
    return Volume(
        key=relative.as_posix(),
        subject=subject,
        contrast=contrast,
        study="",
        path=str(path),
        shape=(shape[0], shape[1], shape[2]),
        folder=relative.parent.as_posix(),
        role=role,
        options=options,
    )


def _check_signature(path: Path) -> None:
    try:
        with path.open("rb") as file:
            start = file.read(1024)
    except OSError as error:
        raise BadFileError(f"cannot be opened ({error.strerror})") from None
    if not start:
        raise BadFileError("is empty (0 bytes)")
    if not h5py.is_hdf5(path):
        if re.match(rb"\s*<(!doctype|html|\?xml)", start, re.IGNORECASE):
            raise BadFileError("is a web page, not HDF5 (a failed download?)")
        raise BadFileError("is not an HDF5 file")


def _choose(file: h5py.File, target: str) -> str:
    present = list(file)
    if target == "auto":
        target = next((n for n in FASTMRI_TARGETS[1:] if n in present), "auto")
    if target not in present:
        known = [n for n in present if n in FASTMRI_TARGETS]
        close = difflib.get_close_matches("reconstruction_esc", present, 1)
        hint = known or close
        raise BadFileError(
            f"has no {'image' if target == 'auto' else target}; "
            f"its keys are {', '.join(present[:8]) or 'none'}"
            + (f", did you mean {hint[0]}?" if hint else "")
        )
    if target == "kspace" and "mask" in present:
        raise BadFileError("holds undersampled k-space only (it has a mask): no target")
    return target


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
    stored = dataset.id.get_storage_size()
    ratio = MAX_DEFLATE_RATIO if codes else 1
    if dataset.nbytes > stored * ratio + _CHUNK_SLACK * bool(codes):
        raise BadFileError(
            f"{name} declares {dataset.nbytes} bytes but stores {stored}: truncated"
        )


def _crop(file: h5py.File, shape: tuple[int, ...]) -> tuple[int, int]:
    height, width = shape
    if "ismrmrd_header" not in file:
        return height, width
    if not isinstance(file.get("ismrmrd_header", getlink=True), h5py.HardLink):
        raise BadFileError("ismrmrd_header is a link out of its place")
    header = file["ismrmrd_header"]
    if not isinstance(header, h5py.Dataset):
        raise BadFileError("ismrmrd_header is not a text")
    try:
        return recon_size(_text(header[()]), height, width)
    except ValueError as error:
        raise BadFileError(str(error)) from None


def _text(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace").strip()
    return str(value).strip()


SOURCE = Source("fastmri", scan, read)
