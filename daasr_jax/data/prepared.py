"""The prepared set: every slice once, normalised and resized, in a TFDS data set.

It lies in the cache under the SHA-256 of all that determines it (voxels, names, splits,
settings, code version), so a change of data or settings makes another set and an
unchanged one is found again. It is written beside its place and renamed when complete.
"""

import dataclasses
import hashlib
import json
import shutil
from pathlib import Path

import numpy as np

from daasr_jax.data.builder import INDEX_FILE, PreparedSlices, quiet_tfds
from daasr_jax.data.content import check_copies, hash_volumes, write_json
from daasr_jax.data.locking import exclusive, new_folder, publish
from daasr_jax.data.settings import DataSettings
from daasr_jax.data.slices import central_slices
from daasr_jax.data.sources import choose_source
from daasr_jax.data.sources.base import Source, log
from daasr_jax.data.splits import SPLITS, Splits, assign_splits, check_references
from daasr_jax.data.table import SliceRecord, SliceTable, record_reader
from daasr_jax.errors import DataError, ResourceError
from daasr_jax.files import file_hash

# Raise it when the same data and settings would give other prepared slices.
PREPARATION_VERSION = 1
_MANIFEST = "manifest.json"
_SPARE_BYTES = 64 * 2**20


@dataclasses.dataclass(frozen=True)
class PreparedSet:
    """The splits of one data set, ready to be read.

    Attributes:
        splits: `train`, `val` and `test`; a table may be empty.
        key: SHA-256 of contents, settings and code version, hexadecimal.
        directory: Folder of the prepared set.
        dataset: Name for people, such as `nifti:openms` or `template:mni152`.
    """

    splits: dict[str, SliceTable]
    key: str
    directory: str
    dataset: str


def prepare(settings: DataSettings) -> PreparedSet:
    """Finds the volumes, assigns the splits and prepares the slices once.

    Several processes may call it at the same time: one builds, the others wait.

    Args:
        settings: Where the data lie and how they are prepared.

    Returns:
        The set, its files verified against their SHA-256.

    Raises:
        ConfigError: If the settings do not fit the data (E201 to E214).
        DataError: If the data cannot be used (E301 to E316), or the prepared set is
            damaged (E311).
        ResourceError: If the disk is too small (E601) or the cache cannot be written
            (E602).
    """
    source = choose_source(settings)
    try:
        volumes = source.scan(settings)
    except OSError as error:
        raise DataError(
            "E301",
            f"{error.filename or settings.root} cannot be read ({error.strerror}): "
            "correct its permissions or give another --config.data.root=DIR",
        ) from None
    splits = assign_splits(volumes, settings)
    cache = settings.cache_path
    used = [volume for members in splits.values() for volume in members]
    try:
        hashes = hash_volumes(source, used, cache, settings.root)
        check_copies(splits, hashes)
        key = _set_key(splits, hashes, settings)
        directory = cache / "prepared" / key
        with exclusive(directory.with_suffix(".lock")) as alone:
            if not directory.is_dir():
                _check_disk(splits, settings, directory.parent)
                with new_folder(directory, alone=alone) as folder:
                    _build(folder, source, splits, hashes, settings, key)
                    publish(folder, directory)
    except OSError as error:
        raise ResourceError(
            "E602",
            f"the cache {cache} cannot be used ({error.strerror or error}): "
            "give --config.data.cache_dir=DIR, a folder that can be written",
        ) from None
    name = Path(settings.root).absolute().name if settings.root else "mni152"
    tables = _open(directory, settings)
    if settings.track == "random":
        for split, table in tables.items():
            check_references(split, splits[split], settings.exclude, len(table))
    prepared = PreparedSet(tables, key, str(directory), f"{source.name}:{name}")
    log.info(
        "%s, prepared set %s: %s",
        prepared.dataset,
        key[:12],
        ", ".join(
            f"{split} {len(table)} slices of {len(set(table.volumes.tolist()))} volumes"
            f" of {len(set(table.subjects.tolist()))} subjects"
            for split, table in tables.items()
        ),
    )
    return prepared


def verify(directory: Path) -> None:
    """Compares every file of a prepared set with the SHA-256 taken when it was built.

    Raises:
        DataError: If a file is missing, changed or added (E311).
    """
    remedy = f"delete the folder {directory} to have it prepared again"
    try:
        manifest = json.loads((directory / _MANIFEST).read_text(encoding="utf-8"))
        expected: dict[str, str] = manifest["files"]
    except (OSError, ValueError, KeyError, TypeError):
        raise DataError(
            "E311", f"{directory / _MANIFEST} cannot be read; {remedy}"
        ) from None
    found = _files(directory)
    for name in sorted(set(expected) | set(found)):
        path = directory / name
        if name not in found:
            raise DataError("E311", f"{path} is missing; {remedy}")
        if name not in expected:
            raise DataError("E311", f"{path} is not part of the set; {remedy}")
        if file_hash(path) != expected[name]:
            raise DataError("E311", f"{path} has changed on disk; {remedy}")


def _set_key(splits: Splits, hashes: dict[str, str], settings: DataSettings) -> str:
    content = {
        split: [
            [v.key, v.subject, v.contrast, v.study, v.options, hashes[v.key]]
            for v in splits[split]
        ]
        for split in SPLITS
    }
    parts = {
        "version": PREPARATION_VERSION,
        "content": content,
        "size": settings.size,
        "resize": settings.resize,
        "slice_range": settings.slice_range,
        "slice_step": settings.slice_step,
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _build(
    folder: Path,
    source: Source,
    splits: Splits,
    hashes: dict[str, str],
    settings: DataSettings,
    key: str,
) -> None:
    builder = PreparedSlices(
        data_dir=str(folder),
        source=source,
        splits=splits,
        hashes=hashes,
        settings=settings,
    )
    builder.build(folder)
    files = {name: file_hash(folder / name) for name in _files(folder)}
    write_json(folder / _MANIFEST, {"key": key, "files": files})


def _check_disk(splits: Splits, settings: DataSettings, place: Path) -> None:
    count = sum(
        len(central_slices(v.shape[0], settings.slice_range, settings.slice_step))
        for members in splits.values()
        for v in members
    )
    need = int(1.1 * count * settings.size**2 * 4) + _SPARE_BYTES
    free = shutil.disk_usage(place).free
    if need > free:
        raise ResourceError(
            "E601",
            f"{count} prepared slices need {need / 2**20:.0f} MiB, {place} has "
            f"{free / 2**20:.0f} MiB free: give --config.data.cache_dir=DIR on a "
            "larger disk, or lower data.n_volumes",
        )


def _files(directory: Path) -> list[str]:
    return sorted(
        path.relative_to(directory).as_posix()
        for path in directory.rglob("*")
        if path.is_file() and path.name != _MANIFEST
    )


def _open(directory: Path, settings: DataSettings) -> dict[str, SliceTable]:
    verify(directory)
    index = json.loads((directory / INDEX_FILE).read_text(encoding="utf-8"))
    with quiet_tfds():
        builder = PreparedSlices(data_dir=str(directory), settings=settings)
    tables = {}
    for split in SPLITS:
        records = [SliceRecord(*row) for row in index[split]]
        read = _no_image
        if records:
            source = builder.records(split)
            if len(source) != len(records):
                raise DataError(
                    "E311",
                    f"split {split!r} in {directory} holds {len(source)} records, its "
                    f"index {len(records)}; delete the folder {directory} to have it "
                    "prepared again",
                )
            read = record_reader(source, records, settings.size, str(directory))
        tables[split] = SliceTable(split, records, settings.size, read)
    return tables


def _no_image(i: int) -> np.ndarray:
    raise IndexError(f"slice {i} of an empty split.")
