"""The disk that checkpoints are written to: asked first, reported in one line."""

from __future__ import annotations

import contextlib
import errno
import shutil
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import logging as absl_logging
from jax.experimental import multihost_utils

from daasr_jax.errors import FULL, ResourceError

# Beside the arrays: what orbax writes of their names and places, and a log.
_BESIDE_BYTES, _BESIDE_EACH = 2**18, 2**12


def require(folder: Path, state: Any) -> None:
    """Asks whether a checkpoint fits on the disk, before anything is written.

    Args:
        folder: Of the checkpoints.
        state: What is saved.

    Raises:
        ResourceError: If it does not fit (E616).
    """
    leaves = jax.tree.leaves(state)
    need = _BESIDE_BYTES + sum(x.nbytes + _BESIDE_EACH for x in leaves)
    free = shutil.disk_usage(folder).free
    lacking = free < need
    if jax.process_count() > 1:  # one answer to all, who save together
        lacking = bool(multihost_utils.broadcast_one_to_all(np.int32(lacking)))
    if lacking:
        raise ResourceError(
            "E616",
            f"a checkpoint needs {need / 2**20:.1f} MiB and {folder} has "
            f"{free / 2**20:.1f} MiB free; free disk space and run the same command "
            "again.",
        )


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keeps threads of orbax and tensorstore from printing what the caller reports.

    After a failure within, they stay quiet: some speak only later.
    """
    level, hook = absl_logging.get_verbosity(), sys.unraisablehook

    def of_main_thread(error: Any) -> None:
        if threading.current_thread() is threading.main_thread():
            hook(error)

    absl_logging.set_verbosity(absl_logging.FATAL)
    sys.unraisablehook = of_main_thread
    yield
    sys.unraisablehook = hook
    absl_logging.set_verbosity(level)


def refused(error: Exception) -> bool:
    """Whether the disk refused, as orbax and tensorstore have it."""
    text = str(error)
    return (
        isinstance(error, OSError)
        or "RESOURCE_EXHAUSTED" in text
        or "No space left" in text
    )


def remedy(error: Exception) -> str:
    """What helps against a refusal of the system."""
    number = getattr(error, "errno", None)
    if number in (errno.EACCES, errno.EPERM, errno.EROFS):
        return "correct its permissions"
    if number is None or number in FULL:
        return "free disk space"
    return "see to the disk"
