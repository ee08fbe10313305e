"""Log of a run: one JSON line and TensorBoard scalars per report, TensorFlow-free."""

from __future__ import annotations

import json
import logging
import math
from pathlib import Path
from typing import Any, Protocol

from tensorboardX import SummaryWriter

from daasr_jax.files import write_atomically

log = logging.getLogger("daasr_jax")


class Writer(Protocol):
    """Where a loop reports scalars."""

    def write(self, step: int, scalars: dict[str, float]) -> None:
        """Records scalars of a step."""
        ...

    def close(self) -> None:
        """Flushes and closes."""
        ...


class NullWriter:
    """Records nothing: the writer of every process but the first."""

    def write(self, step: int, scalars: dict[str, float]) -> None:
        """Does nothing."""

    def close(self) -> None:
        """Does nothing."""


class RunWriter:
    """Appends to `metrics.jsonl` and to TensorBoard events under `workdir`.

    On resume, lines past `start_step` (written after the checkpoint that the run
    continues from) are dropped, so the log has no step twice. A disk that refuses is
    reported once; training goes on.
    """

    def __init__(self, workdir: str | Path, *, start_step: int = 0) -> None:
        self._path = Path(workdir) / "metrics.jsonl"
        self._failed = False
        if self._path.exists():
            kept = [x for x in _lines(self._path) if x.get("step", 0) <= start_step]
            text = "".join(json.dumps(x) + "\n" for x in kept)
            write_atomically(self._path, text)
        self._file = self._path.open("a", encoding="utf-8")
        self._board = SummaryWriter(str(workdir), purge_step=start_step + 1)

    def write(self, step: int, scalars: dict[str, float]) -> None:
        """Records scalars of a step; a non-finite value is written as a string."""
        row: dict[str, Any] = {"step": step}
        row |= {k: v if math.isfinite(v) else str(v) for k, v in scalars.items()}
        try:
            self._file.write(json.dumps(row) + "\n")
            self._file.flush()
            for name, value in scalars.items():
                self._board.add_scalar(name, value, step)
        except OSError as error:
            self._complain(error)

    def close(self) -> None:
        """Flushes and closes both files."""
        for file in (self._file, self._board):
            try:
                file.close()
            except OSError as error:
                self._complain(error)

    def _complain(self, error: OSError) -> None:
        if not self._failed:
            log.error("cannot write the log %s: %s", self._path, error)
        self._failed = True


def _lines(path: Path) -> list[dict[str, Any]]:
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            rows.append(json.loads(line))
        except ValueError:
            continue  # the last line of a killed run may be cut short
    return rows
