"""One program in a folder at a time."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
from filelock import FileLock, Timeout
from jax.experimental import multihost_utils

from daasr_jax.errors import ResourceError, unwritable
from daasr_jax.files import take_lock, write_atomically

_FREE, _TAKEN, _REFUSED = range(3)


@contextlib.contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Holds the folder of a run, which no other program may write meanwhile.

    The first process of a run holds it for all. It ends with that process, however
    that ends; on a file system without locks nothing is held.

    Raises:
        ConfigError: If the folder cannot be written (E209).
        ResourceError: If another program holds it (E614), or its disk is full (E617).
    """
    lock: FileLock | None = None
    holder = folder / ".running"
    answer, said, refused = _FREE, "", OSError("see the first process")
    if jax.process_index() == 0:
        try:
            lock = take_lock(folder / ".lock", wait=False)
            if lock.is_locked:
                write_atomically(
                    holder,
                    f"process {os.getpid()} on {os.uname().nodename} since "
                    f"{time.strftime('%Y-%m-%d %H:%M')}",
                )
        except Timeout:
            answer, said = _TAKEN, _content(holder)
        except OSError as error:
            answer, refused = _REFUSED, error
    if jax.process_count() > 1:
        answer = int(multihost_utils.broadcast_one_to_all(np.int32(answer)))
    if answer and lock:
        lock.release()
    if answer == _TAKEN:
        raise ResourceError(
            "E614",
            f"{folder} is trained into by {said or 'another program'}: wait for it, "
            "stop it, or give another --workdir.",
        )
    if answer == _REFUSED:
        raise unwritable(folder, refused)
    try:
        yield
    finally:
        if lock:
            if lock.is_locked:
                holder.unlink(missing_ok=True)
            lock.release()


def _content(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except OSError:
        return ""
