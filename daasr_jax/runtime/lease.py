"""Work that several processes and machines share: who does a part of it now.

A lease is a file that its holder touches. A holder that died does not: after a while
others take the lease. On the holder's own machine they see at once that it is gone.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path

from daasr_jax.files import take_lock

BEAT_SECONDS = 15.0
STALE_SECONDS = 120.0
_BOOT = Path("/proc/sys/kernel/random/boot_id")


@contextlib.contextmanager
def leased(
    path: Path, *, beat: float = BEAT_SECONDS, stale: float = STALE_SECONDS
) -> Iterator[bool]:
    """Tries to hold a lease.

    Ages are told by the clock of the file system, which all machines share.

    Args:
        path: The file; its folder is made.
        beat: Seconds between two signs of life.
        stale: Seconds without one after which a lease is free.

    Yields:
        Whether it is held, until the block ends or this process does.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    own = json.dumps({"host": _here(), "process": os.getpid(), "key": uuid.uuid4().hex})
    if not _create(path, own):
        _give_up_dead(path, stale)
        if not _create(path, own):
            yield False
            return
    over = threading.Event()

    def keep() -> None:
        while not over.wait(beat):
            if _read(path) != own:
                return  # another has it: this process was away for too long
            with contextlib.suppress(OSError):
                os.utime(path)

    thread = threading.Thread(target=keep, daemon=True)
    thread.start()
    try:
        yield True
    finally:
        over.set()
        thread.join()
        with contextlib.suppress(OSError), _alone(path):
            if _read(path) == own:
                path.unlink(missing_ok=True)


def holder(path: Path) -> str:
    """Who holds a lease, in words; empty where nobody does."""
    try:
        found = json.loads(_read(path))
        return f"process {found['process']} on {found['host'].split()[0]}"
    except (ValueError, KeyError, TypeError):
        return ""


def _here() -> str:
    """The machine, its start and its numbering of processes: containers have their own.

    Two machines may have one name, and the same numbers of processes.
    """
    found = [os.uname().nodename]
    with contextlib.suppress(OSError):
        found.append(os.readlink("/proc/self/ns/pid"))
    with contextlib.suppress(OSError):
        found.append(_BOOT.read_text(encoding="ascii").strip())
    return " ".join(found)


def _create(path: Path, text: str) -> bool:
    """Makes the file with its content at once, unless there is one."""
    made = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    made.write_text(text, encoding="utf-8")
    try:
        os.link(made, path)  # which fails where it exists, on network drives too
    except FileExistsError:
        return False
    except OSError:  # a file system without links
        try:
            with path.open("x", encoding="utf-8") as file:
                file.write(text)
        except FileExistsError:
            return False
    finally:
        made.unlink(missing_ok=True)
    return True


def _give_up_dead(path: Path, stale: float) -> None:
    """Takes a lease off a holder that is dead.

    A lease that has no content, as of a machine that went down while it wrote, is dead
    when it is stale.
    """
    with _alone(path):
        if path.is_file() and (_gone(_read(path)) or _age(path) > stale):
            path.unlink(missing_ok=True)


@contextlib.contextmanager
def _alone(path: Path) -> Iterator[None]:
    """No two processes remove leases at once: one might remove a newer one."""
    lock = take_lock(path.with_name(".lock"), wait=True)
    try:
        yield
    finally:
        lock.release()


def _gone(text: str) -> bool:
    """Whether the holder was a process of this machine that is no more."""
    try:
        found = json.loads(text)
        if found["host"] != _here():
            return False
        os.kill(int(found["process"]), 0)
    except ProcessLookupError:
        return True
    except (OSError, ValueError, KeyError, TypeError):
        return False
    return False


def _age(path: Path) -> float:
    probe = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        before = path.stat().st_mtime
        probe.touch()
        return probe.stat().st_mtime - before
    except OSError:
        return 0.0
    finally:
        probe.unlink(missing_ok=True)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError:
        return ""
