"""Folders that appear complete or not at all, and one writer at a time."""

import contextlib
import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from daasr_jax.data.sources.base import log
from daasr_jax.files import sync_folder, take_lock


@contextlib.contextmanager
def exclusive(path: Path) -> Iterator[bool]:
    """Holds the lock file `path`; waits, and says so, while another process does.

    The lock ends with its process, however that ends. On a file system without locks
    it is skipped: `publish` alone keeps the result whole then.

    Yields:
        Whether the lock is held.
    """
    from filelock import Timeout

    try:
        lock = take_lock(path, wait=False)
    except Timeout:
        log.info("waiting for another process that prepares data in this cache")
        lock = take_lock(path, wait=True)
    try:
        yield lock.is_locked
    finally:
        lock.release()


def remove_leftovers(place: Path) -> None:
    """Removes what killed processes of this machine have left of folders in `place`.

    No other process may be writing there.
    """
    for leftover in place.glob(f".*{_mark()}*"):
        log.info("removing the remains of an interrupted preparation: %s", leftover)
        shutil.rmtree(leftover, ignore_errors=True)


@contextlib.contextmanager
def new_folder(final: Path) -> Iterator[Path]:
    """A fresh folder beside `final`, removed at the end unless it was published."""
    prefix = f".{final.name}{_mark()}"
    folder = Path(tempfile.mkdtemp(prefix=prefix, dir=final.parent))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def publish(folder: Path, final: Path) -> None:
    """Renames a complete folder to its final name; an existing one is kept.

    After the return the folder outlasts a crash.
    """
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
        else:
            sync_folder(path)
    folder.chmod(0o755)
    sync_folder(folder)
    try:
        folder.rename(final)
    except OSError as error:
        if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
            raise
    sync_folder(final.parent)


def _mark() -> str:
    return f".incomplete-{os.uname().nodename}-"
