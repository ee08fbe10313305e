"""Content hashes of volumes and slices: what is remembered of files, what is a copy."""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from daasr_jax.data.sources.base import Source, Volume, log
from daasr_jax.data.splits import Splits
from daasr_jax.data.table import SliceRecord
from daasr_jax.errors import DataError
from daasr_jax.files import read_json, write_atomically

# Raise it when a reader changes what it returns for the same file.
READER_VERSION = 2
MEMORY_FILE = "content-v2.json"


def content_hash(array: np.ndarray) -> str:
    """SHA-256 of type, shape and bytes of an array, hexadecimal."""
    digest = hashlib.sha256(f"{array.dtype.str}{array.shape}".encode())
    digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def stamp(source: Source, volume: Volume) -> str:
    """What a file is recognised by without reading it, as a SHA-256.

    Beside the name, size and time of change it takes what a user cannot set back: the
    time of the last change of any kind, and which file it is on the disk.

    Raises:
        DataError: If the file is gone (E302).
    """
    path = Path(volume.path).absolute()
    try:
        status = path.stat()
    except OSError as error:
        raise DataError(
            "E302", f"{path}: {error.strerror}; fetch the file again"
        ) from None
    parts = [
        source.name, READER_VERSION, volume.options, path,
        status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino,
    ]  # fmt: skip
    # fsencode, because a name on disk need not be UTF-8
    return hashlib.sha256(b"\0".join(os.fsencode(str(x)) for x in parts)).hexdigest()


def load_memory(cache: Path) -> dict[str, str]:
    """Content hashes by stamp, as written by an earlier preparation."""
    path = cache / MEMORY_FILE
    try:
        memory = read_json(path)
    except FileNotFoundError:
        return {}
    except (OSError, ValueError):
        log.warning("%s cannot be read; every volume is read again", path)
        return {}
    return memory if isinstance(memory, dict) else {}


def check_copies(splits: Splits, hashes: Mapping[str, str]) -> None:
    """Refuses byte-identical volumes of two subjects: a leak, or a perfect reference.

    Args:
        splits: Volumes by split.
        hashes: Content hash by the volume's key.

    Raises:
        DataError: If two subjects hold the same voxels (E304).
    """
    seen: dict[str, tuple[str, Volume]] = {}
    for split, volumes in splits.items():
        for volume in volumes:
            if volume.split:
                continue
            first_split, first = seen.setdefault(hashes[volume.key], (split, volume))
            if first.key == volume.key:
                continue
            if first.subject == volume.subject:
                log.warning("%s and %s hold the same voxels", first.key, volume.key)
                continue
            where = (
                f"in the splits {first_split!r} and {split!r}"
                if first_split != split
                else f"in the split {split!r}"
            )
            raise DataError(
                "E304",
                f"{first.path} (subject {first.subject}) and {volume.path} (subject "
                f"{volume.subject}) hold the same voxels {where}: remove the copy, or "
                "give both files one subject",
            )


def check_leaks(splits: Mapping[str, Sequence[SliceRecord]]) -> None:
    """Refuses equal slices in two splits, or of two subjects of one split.

    Equal means up to a factor, on the prepared grid: a scan that was stored in another
    type or unit, or of which slices are missing, is found; one that was flipped or
    resampled is not. Slices that are nearly empty do not count.

    Raises:
        DataError: If there are such slices (E332).
    """
    seen: dict[str, tuple[str, SliceRecord]] = {}
    shared: dict[tuple[str, str, str, str], list[tuple[SliceRecord, SliceRecord]]] = {}
    for split, records in splits.items():
        for record in records:
            if not record.sha256:
                continue
            first_split, first = seen.setdefault(record.sha256, (split, record))
            if first_split != split or first.subject != record.subject:
                pair = (first_split, first.volume, split, record.volume)
                shared.setdefault(pair, []).append((first, record))
    if not shared:
        return
    (first_split, first_volume, split, volume), slices = next(iter(shared.items()))
    first, second = slices[0]
    more = f" ({len(shared)} such pairs of volumes)" if len(shared) > 1 else ""
    raise DataError(
        "E332",
        f"{first_volume} (subject {first.subject}, split {first_split!r}) and {volume} "
        f"(subject {second.subject}, split {split!r}) hold {len(slices)} equal slices, "
        f"the first {first.key} and {second.key}{more}: the same scan twice; remove "
        "one of the files, or give both one subject",
    )


def write_json(path: Path, value: Any) -> None:
    """Writes JSON with sorted keys, whole or not at all."""
    write_atomically(path, json.dumps(value, indent=1, sort_keys=True))
