"""SHA-256 manifests of checkpoints, because a flipped bit restores without an error."""

from __future__ import annotations

import errno
import json
from pathlib import Path

from daasr_jax.files import file_hash, read_json, write_atomically

NONE_YET = "no_checkpoint_yet"  # a file of a new run, until its first checkpoint


def seal(folder: Path, manifest: Path) -> None:
    """Records every file under `folder` with its SHA-256 in `manifest`."""
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    sums = {p.relative_to(folder).as_posix(): file_hash(p) for p in files}
    write_atomically(manifest, json.dumps(sums, indent=1))


def verify(folder: Path, manifest: Path) -> str:
    """What is wrong with `folder`, in words; empty when all sums agree.

    Raises:
        OSError: If the system refuses to read, which says nothing of the content.
    """
    try:
        sums = read_json(manifest)
    except (FileNotFoundError, ValueError) as error:
        return f"its manifest {manifest} cannot be read ({type(error).__name__})"
    if not isinstance(sums, dict):
        return f"its manifest {manifest} has no list of sums"
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        if path.relative_to(folder).as_posix() not in sums:
            return f"{path} is not in its manifest {manifest}"
    for name, expected in sums.items():
        path = folder / name
        if not path.is_file():
            return f"{path} is missing"
        try:
            found = file_hash(path)
        except OSError as error:
            if error.errno != errno.EIO:
                raise
            return f"{path} cannot be read ({error.strerror})"
        if found != expected:
            return f"{path} has changed since it was saved (SHA-256 differs)"
    return ""
