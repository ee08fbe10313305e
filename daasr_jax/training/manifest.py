"""SHA-256 manifests of checkpoints, because a flipped bit restores without an error."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path


def digest(path: Path) -> str:
    """SHA-256 of a file, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_atomically(path: Path, text: str) -> None:
    """Writes a text file so that a reader sees the old or the new one, never a part."""
    partial = path.with_name(path.name + ".partial")
    with partial.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def seal(folder: Path, manifest: Path) -> None:
    """Records every file under `folder` with its SHA-256 in `manifest`."""
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    sums = {p.relative_to(folder).as_posix(): digest(p) for p in files}
    manifest.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(manifest, json.dumps(sums, indent=1))


def verify(folder: Path, manifest: Path) -> str:
    """What is wrong with `folder`, in words; empty when all sums agree."""
    try:
        sums = json.loads(manifest.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        return f"its manifest {manifest} cannot be read ({type(error).__name__})"
    for name, expected in sums.items():
        path = folder / name
        if not path.is_file():
            return f"{path} is missing"
        if digest(path) != expected:
            return f"{path} has changed since it was saved (SHA-256 differs)"
    return ""
