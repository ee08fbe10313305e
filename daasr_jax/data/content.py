"""Content hashes of volumes, remembered by path, size and time of change."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np

from daasr_jax.data.progress import track
from daasr_jax.data.slices import voxel_fault
from daasr_jax.data.sources.base import Source, Volume, log, report_bad_files
from daasr_jax.data.splits import Splits
from daasr_jax.errors import DataError
from daasr_jax.files import write_atomically

# Raise it when a reader changes what it returns for the same file.
READER_VERSION = 1
_MEMO = "content-v1.json"


def content_hash(array: np.ndarray) -> str:
    """SHA-256 of type, shape and bytes of an array, hexadecimal."""
    digest = hashlib.sha256(f"{array.dtype.str}{array.shape}".encode())
    digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def hash_volumes(
    source: Source, volumes: list[Volume], cache: Path, root: str
) -> dict[str, str]:
    """Content hash of every volume by key; each file is read once, then remembered.

    The voxels are checked in passing: all volumes with NaN, infinite, blank or negative
    contents are named in one error.

    Args:
        source: Reads the volumes.
        volumes: Those that are in a split.
        cache: Folder of the memory.
        root: The data root, for the message.

    Raises:
        DataError: If a file cannot be read or its voxels cannot be used (E302).
    """
    memo = _load(cache / _MEMO)
    stamps = {volume.key: _stamp(source, volume) for volume in volumes}
    new = [volume for volume in volumes if stamps[volume.key] not in memo]
    bad: list[tuple[Path, str]] = []
    try:
        for volume in track(new, "reading volumes", len(new)) if new else ():
            try:
                array = source.read(volume)
            except DataError as error:
                reason = str(error.args[0]).removeprefix(f"{volume.path}: ")
                bad.append((Path(volume.path), reason.split(";")[0]))
                continue
            fault = voxel_fault(array)
            if fault:
                bad.append((Path(volume.path), fault))
            else:
                memo[stamps[volume.key]] = content_hash(array)
    finally:
        if new:
            write_json(cache / _MEMO, memo)
    report_bad_files(root or source.name, bad, len(volumes))
    return {volume.key: memo[stamps[volume.key]] for volume in volumes}


def check_copies(splits: Splits, hashes: dict[str, str]) -> None:
    """Refuses byte-identical volumes of two subjects: a leak, or a perfect reference.

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


def write_json(path: Path, value: Any) -> None:
    """Writes JSON with sorted keys, whole or not at all."""
    write_atomically(path, json.dumps(value, indent=1, sort_keys=True))


def _load(path: Path) -> dict[str, str]:
    try:
        memo = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError):
        log.warning("%s cannot be read; every volume is hashed again", path)
        return {}
    return memo if isinstance(memo, dict) else {}


def _stamp(source: Source, volume: Volume) -> str:
    path = Path(volume.path).absolute()
    try:
        status = path.stat()
    except OSError as error:
        raise DataError(
            "E302", f"{path}: {error.strerror}; fetch the file again"
        ) from None
    parts = [
        source.name, str(READER_VERSION), volume.options, str(path),
        str(status.st_size), str(status.st_mtime_ns),
    ]  # fmt: skip
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()
