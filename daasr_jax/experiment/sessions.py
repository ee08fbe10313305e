"""What a run took, added up over the sessions that it was stopped between."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import time
from collections.abc import Iterator
from pathlib import Path

from daasr_jax.files import kept, write_atomically
from daasr_jax.runtime import memory

SESSIONS = "sessions.json"


@dataclasses.dataclass
class Spent:
    """Of all sessions up to now.

    Attributes:
        seconds: Wall time of those that ended, also of those that failed.
        peak_mib: Largest peak of training, see `runtime.memory.peak_mib`.
        begin: Of this session, by `time.monotonic`.
        path: The file that keeps them.
    """

    seconds: float
    peak_mib: float
    begin: float
    path: Path

    def total(self) -> float:
        """Seconds with those of this session."""
        return self.seconds + time.monotonic() - self.begin

    def save(self) -> None:
        """Writes the file, where the disk takes it."""
        found = {"seconds": self.total(), "peak_mib": self.peak_mib}
        with contextlib.suppress(OSError):
            write_atomically(self.path, json.dumps(found))


@contextlib.contextmanager
def session(folder: Path) -> Iterator[Spent]:
    """Counts this session to those before it, however it ends but by a kill.

    Args:
        folder: Of the run, which has them in a file.

    Yields:
        What was spent.
    """
    before = kept(folder / SESSIONS) or {}
    spent = Spent(
        before.get("seconds", 0.0),
        before.get("peak_mib", 0.0),
        time.monotonic(),
        folder / SESSIONS,
    )
    try:
        yield spent
    finally:
        spent.save()


@contextlib.contextmanager
def peak_of(spent: Spent) -> Iterator[None]:
    """Takes the peak of what runs inside, and saves it: what follows may be killed."""
    memory.restart_peak()
    try:
        yield
    finally:
        spent.peak_mib = max(spent.peak_mib, memory.peak_mib())
        spent.save()
