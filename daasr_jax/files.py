"""Files that are either whole or absent, their SHA-256, and where links lead."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from filelock import FileLock

NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)
_NO_SYNC = (errno.EINVAL, errno.EBADF, errno.ENOTSUP, errno.ENOSYS)


def file_hash(path: Path) -> str:
    """SHA-256 of a file's bytes, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def leads_out(path: Path, folder: Path) -> bool:
    """Whether a file or folder under `folder` is really one outside it, by links."""
    return not Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder))


def read_json(path: Path) -> Any:
    """What a file of JSON holds.

    Raises:
        OSError: If it cannot be read.
        ValueError: If it is no UTF-8 or no JSON, or nested beyond what can be read.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except RecursionError:
        raise ValueError("nested too deeply") from None


def kept(path: Path) -> dict[str, Any] | None:
    """What a file of JSON holds; None where there is none that can be read."""
    try:
        return read_json(path)
    except (OSError, ValueError):
        return None


def take_lock(path: Path, *, wait: bool) -> FileLock:
    """The lock file `path`, held until it is released or the process ends.

    On a file system without locks it is returned as it is, not held.

    Args:
        path: The file, made where it is absent.
        wait: Until another process releases it.

    Raises:
        filelock.Timeout: If another process holds it, without `wait`.
        OSError: If the file cannot be written.
    """
    from filelock import FileLock  # a machine that only reads needs it not

    lock = FileLock(path, fallback_to_soft=False)
    try:
        lock.acquire(blocking=wait)
    except NotImplementedError:
        pass
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
    return lock


def sync_folder(folder: Path) -> None:
    """Brings a folder's entries to the disk, so that a rename in it outlasts a crash.

    A file system that knows no such order is left to its own.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _NO_SYNC:
            raise
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def replacing(path: Path, ending: str = "") -> Iterator[Path]:
    """A file beside the target, which takes its name where the block ends well.

    A reader sees the old or the new file. After the block the file outlasts a crash;
    where the block fails, nothing is left.

    Args:
        path: The target.
        ending: Of the other name, where what writes goes by it.

    Yields:
        The name to write to.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}{ending}")
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
        sync_folder(path.parent)
    finally:
        with contextlib.suppress(FileNotFoundError):
            temporary.unlink()


def replace_all(made: Mapping[Path, Path], gone: Iterable[Path], aside: Path) -> None:
    """Gives files and folders of one place their names: all, or none.

    What stops the renaming brings back what was there. What cannot be brought back
    stays in `aside`.

    Args:
        made: Name -> what was made, in the order of the renaming.
        gone: Names that shall be free after it.
        aside: An empty folder beside them, for what was there.

    Raises:
        OSError: If the system refuses.
    """
    old = {p: aside / p.name for p in (*made, *gone) if os.path.lexists(p)}
    try:
        for path, away in old.items():
            path.rename(away)
        for path, new in made.items():
            new.rename(path)
    except BaseException:
        for path, new in made.items():
            if not os.path.lexists(new):
                with contextlib.suppress(OSError):
                    path.rename(new)
        for path, away in old.items():
            if os.path.lexists(away):
                with contextlib.suppress(OSError):
                    away.rename(path)
        raise
    for folder in {path.parent for path in made}:
        sync_folder(folder)


def write_atomically(path: Path, content: str | bytes) -> None:
    """Writes beside the target and renames, see `replacing`; text as UTF-8."""
    with replacing(path) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)
