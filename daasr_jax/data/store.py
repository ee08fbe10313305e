"""Prepared volumes in the cache: one folder each, named by content and preparation.

A volume's folder holds its kept slices as a TFDS data set, their hashes and the SHA-256
of every file. Splits, subjects and names are no part of it. So another seed, split or
subset of the volumes prepares nothing again.

The libraries of the files are imported where they are used: they are large, and who has
slices in memory needs none of them.
"""

import dataclasses
import functools
import hashlib
import json
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from daasr_jax.data.content import (
    MEMORY_FILE,
    content_hash,
    load_memory,
    stamp,
    write_json,
)
from daasr_jax.data.locking import exclusive, new_folder, publish, remove_leftovers
from daasr_jax.data.progress import track
from daasr_jax.data.settings import DataSettings
from daasr_jax.data.slices import (
    central_slices,
    normalised,
    not_blank,
    resized,
    slice_hash,
    voxel_fault,
)
from daasr_jax.data.sources.base import OnBad, Source, Volume, log, report_bad_files
from daasr_jax.data.table import SliceRecord
from daasr_jax.errors import DataError, ResourceError
from daasr_jax.files import file_hash, read_json

# Raise it when the same data and settings would give other prepared slices.
PREPARATION_VERSION = 2
_INDEX, _MANIFEST = "index.json", "manifest.json"
_SPARE_BYTES = 64 * 2**20
# array_record files that a split holds open at once; each has threads of its own.
_OPEN_FILES = 64


@dataclasses.dataclass(frozen=True)
class Stored:
    """One prepared volume.

    Attributes:
        content: Content hash of the voxels.
        folder: Where the prepared slices lie.
    """

    content: str
    folder: Path


def prepare_volumes(
    source: Source,
    volumes: Sequence[Volume],
    settings: DataSettings,
    on_bad: OnBad | None = None,
) -> dict[str, Stored]:
    """Every volume prepared, by its key; a file is read once, then remembered.

    Nothing is written where all are found. Otherwise one process works at a time, and
    the others find what it has made.

    Args:
        source: Reads the volumes.
        volumes: Those that are in a split.
        settings: How slices are prepared, and the cache.
        on_bad: See `report_bad_files`; a volume that is left out is not returned.

    Raises:
        DataError: If files cannot be read or their voxels cannot be used (E302, all of
            them in one error), a volume has other voxels than remembered (E316) or no
            slice left (E315).
        ResourceError: If the disk is too small (E601).
        OSError: If the cache cannot be written.
    """
    stamps = {volume.key: stamp(source, volume) for volume in volumes}
    found = _found(volumes, stamps, load_memory(settings.cache_path), settings)
    if len(found) == len(stamps):
        return found
    place = store_folder(settings)
    place.parent.mkdir(parents=True, exist_ok=True)
    with exclusive(place.with_suffix(".lock")) as alone:
        memory = load_memory(settings.cache_path)
        found = _found(volumes, stamps, memory, settings)
        missing = [volume for volume in volumes if volume.key not in found]
        if missing:
            _say_other_versions(place)
            place.mkdir(exist_ok=True)
            if alone:
                remove_leftovers(place)
            check_disk(missing, settings, place)
            try:
                bad = _prepare(source, missing, stamps, memory, settings)
            finally:
                write_json(settings.cache_path / MEMORY_FILE, memory)
            root = settings.root or source.name
            report_bad_files(root, bad, len(volumes), on_bad)
        return _found(volumes, stamps, memory, settings)


def read_index(stored: Stored, *, check: bool) -> list[tuple[int, str]]:
    """Place in the volume and hash of each prepared slice.

    Args:
        stored: The volume.
        check: Compare every file with the SHA-256 taken when it was written.

    Raises:
        DataError: If a file is missing, changed or added (E311).
    """
    if check:
        verify(stored.folder)
    path = stored.folder / _INDEX
    try:
        index = read_json(path)
        return [(int(i), str(digest)) for i, digest in index["slices"]]
    except (OSError, ValueError, KeyError, TypeError):
        raise DataError(
            "E311", f"{path} cannot be read; {_remedy(stored.folder)}"
        ) from None


def verify(folder: Path) -> None:
    """Compares every file of a prepared volume with the SHA-256 from its writing.

    Raises:
        DataError: If a file is missing, changed or added (E311).
    """
    remedy = _remedy(folder)
    try:
        manifest = read_json(folder / _MANIFEST)
        expected: dict[str, str] = manifest["files"]
    except (OSError, ValueError, KeyError, TypeError):
        raise DataError(
            "E311", f"{folder / _MANIFEST} cannot be read; {remedy}"
        ) from None
    found = _files(folder)
    for name in sorted(set(expected) | set(found)):
        path = folder / name
        if name not in found:
            raise DataError("E311", f"{path} is missing; {remedy}")
        if name not in expected:
            raise DataError("E311", f"{path} is not part of the set; {remedy}")
        if file_hash(path) != expected[name]:
            raise DataError("E311", f"{path} has changed on disk; {remedy}")


class StoredImages:
    """`images(i)`: the image of record i of a split, read when asked for.

    Threads may share it. A copy in another process opens the files anew.

    Args:
        records: What the slices are.
        stored: The prepared volumes by key.
        size: Side of a slice, in pixels.
    """

    def __init__(
        self, records: Sequence[SliceRecord], stored: Mapping[str, Stored], size: int
    ) -> None:
        self._size = size
        self._places: list[tuple[Stored, int, int]] = []
        counts: dict[str, int] = {}
        for record in records:
            number = counts.get(record.volume, 0)
            counts[record.volume] = number + 1
            self._places.append((stored[record.volume], number, record.index))
        self.__setstate__({})

    def __getstate__(self) -> dict[str, Any]:
        return {"_size": self._size, "_places": self._places}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        from daasr_jax.data.builder import slice_features

        self._features = slice_features(self._size)
        self._open = functools.lru_cache(maxsize=_OPEN_FILES)(_open)

    def __call__(self, i: int) -> np.ndarray:
        """(size, size, 1) float32 in [0, 1], read-only.

        Raises:
            DataError: If the record cannot be read or is another (E311).
        """
        stored, number, index = self._places[i]
        about = f"record {number} of {stored.folder}"
        try:
            record = self._open(stored.folder)[number]
            item: Any = self._features.deserialize_example_np(record)
        except Exception as error:  # array_record raises several bare types
            reason = " ".join(str(error).split())
            raise DataError(
                "E311", f"{about} is damaged ({reason}); {_remedy(stored.folder)}"
            ) from None
        named = item["content"].decode(), int(item["index"])
        image = item["image"]
        if named != (stored.content, index):
            raise DataError("E311", f"{about} is {named}; {_remedy(stored.folder)}")
        image.setflags(write=False)
        return image


def _open(folder: Path) -> Any:
    from array_record.python.array_record_data_source import ArrayRecordDataSource

    from daasr_jax.data.builder import records_file

    return ArrayRecordDataSource(str(records_file(folder)))


def store_folder(settings: DataSettings) -> Path:
    """The folder of the prepared volumes in the cache."""
    return settings.cache_path / f"prepared-v{PREPARATION_VERSION}"


def _say_other_versions(place: Path) -> None:
    for folder in sorted(place.parent.glob("prepared*")):
        if folder.is_dir() and folder != place:
            log.info(
                "%s holds slices prepared by another version and is not used; it may "
                "be deleted",
                folder,
            )


def _folder(content: str, volume: Volume, settings: DataSettings) -> Path:
    cut = _cut(volume, settings)
    parts = {
        "version": PREPARATION_VERSION,
        "content": content,
        "size": settings.size,
        "resize": settings.resize,
        "slices": [cut.start, cut.stop, cut.step],
    }
    key = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
    return store_folder(settings) / key


def _cut(volume: Volume, settings: DataSettings) -> range:
    return central_slices(volume.shape[0], settings.slice_range, settings.slice_step)


def _found(
    volumes: Sequence[Volume],
    stamps: Mapping[str, str],
    memory: Mapping[str, str],
    settings: DataSettings,
) -> dict[str, Stored]:
    found = {}
    for volume in volumes:
        content = memory.get(stamps[volume.key], "")
        folder = _folder(content, volume, settings)
        if content and folder.is_dir():
            found[volume.key] = Stored(content, folder)
    return found


def _prepare(
    source: Source,
    volumes: Sequence[Volume],
    stamps: Mapping[str, str],
    memory: dict[str, str],
    settings: DataSettings,
) -> list[tuple[Path, str]]:
    """Prepares what can be prepared; returns the files that cannot, with reasons."""
    bad: list[tuple[Path, str]] = []
    blank = 0
    for volume in track(volumes, "preparing volumes", len(volumes)):
        try:
            array = source.read(volume)
        except DataError as error:
            reason = str(error.args[0]).removeprefix(f"{volume.path}: ")
            bad.append((Path(volume.path), reason.split(";")[0]))
            continue
        fault = voxel_fault(array)
        if fault:
            bad.append((Path(volume.path), fault))
            continue
        content = content_hash(array)
        if memory.get(stamps[volume.key], content) != content:
            raise DataError(
                "E316",
                f"{volume.path} holds other voxels than when it was last read, with "
                "its size and times unchanged: fetch the file again",
            )
        folder = _folder(content, volume, settings)
        if not folder.is_dir():
            blank += _write(folder, volume, array, content, settings)
        memory[stamps[volume.key]] = content
    if blank:
        log.info("%d slices of one constant value were dropped", blank)
    return bad


def _write(
    folder: Path,
    volume: Volume,
    array: np.ndarray,
    content: str,
    settings: DataSettings,
) -> int:
    """Prepares one volume; returns the number of blank slices."""
    size, mode = settings.size, settings.resize
    cut = _cut(volume, settings)
    kept = not_blank(array, cut, volume.path)
    images = normalised(array)
    write_slices(
        folder,
        ((i, resized(images[i], size, mode)) for i in kept),
        content=content,
        size=size,
        kept=kept,
        hashes=[slice_hash(array[i], size, mode) for i in kept],
    )
    return len(cut) - len(kept)


def write_slices(
    folder: Path,
    slices: Iterable[tuple[int, np.ndarray]],
    *,
    content: str,
    size: int,
    kept: Sequence[int],
    hashes: Sequence[str],
) -> None:
    """Writes the folder of a prepared volume, whole or not at all.

    Args:
        folder: Where; one that is there stays.
        slices: Place in the volume and (size, size, 1) float32 of each slice.
        content: Part of every record, by which it is recognised.
        size: Side of a slice, in pixels.
        kept: The places again.
        hashes: Of each slice, see `slices.slice_hash`.
    """
    from daasr_jax.data.builder import PreparedVolume

    with new_folder(folder) as made:
        PreparedVolume(
            data_dir=str(made), size=size, content=content, slices=slices
        ).write()
        rows = [list(row) for row in zip(kept, hashes, strict=True)]
        (made / _INDEX).write_text(json.dumps({"slices": rows}), encoding="utf-8")
        files = {name: file_hash(made / name) for name in _files(made)}
        (made / _MANIFEST).write_text(json.dumps({"files": files}), encoding="utf-8")
        publish(made, folder)


def check_disk(volumes: Sequence[Volume], settings: DataSettings, place: Path) -> None:
    """Asks whether the prepared slices of some volumes fit on the disk.

    Raises:
        ResourceError: If they do not (E601).
    """
    count = sum(len(_cut(volume, settings)) for volume in volumes)
    need = int(1.1 * count * settings.size**2 * 4) + _SPARE_BYTES
    free = shutil.disk_usage(place).free
    if need > free:
        raise ResourceError(
            "E601",
            f"{count} prepared slices need {need / 2**20:.0f} MiB, {place} has "
            f"{free / 2**20:.0f} MiB free: give --config.data.cache_dir=DIR on a "
            "larger disk, or lower data.n_volumes",
        )


def _files(folder: Path) -> list[str]:
    return sorted(
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.is_file() and path.name != _MANIFEST
    )


def _remedy(folder: Path) -> str:
    return f"delete the folder {folder} to have it prepared again"
