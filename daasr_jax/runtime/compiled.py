"""Compiled programs, kept for the next start."""

from __future__ import annotations

import errno
import logging
import os
from pathlib import Path

import jax

log = logging.getLogger("daasr_jax")

KEPT_BYTES = 4 * 2**30  # of compiled programs; the least used go


def keep_compiled(cache: Path | None) -> None:
    """Keeps compiled programs for the next start; JAX_COMPILATION_CACHE_DIR moves them.

    None are kept where there is no cache, as for a user without a home.

    The folder is the user's alone: what lies there is run. Several processes keep none,
    unless told to: those that find a program do not take part in the common tuning of
    GPU kernels, for which those that find none wait.
    """
    if jax.config.values["jax_compilation_cache_dir"] or jax.process_count() > 1:
        return
    if cache is None:
        log.warning("compiled programs are not kept: there is no home for a cache")
        return
    folder = cache / "compiled"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if folder.stat().st_uid != os.getuid():
            raise PermissionError(errno.EPERM, "the folder is another user's")
    except OSError as error:
        log.warning("compiled programs are not kept in %s: %s", folder, error.strerror)
        return
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_compilation_cache_max_size", KEPT_BYTES)
