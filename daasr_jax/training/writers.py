"""Log of a run: one JSON line and TensorBoard scalars per report, TensorFlow-free."""

from __future__ import annotations

import json
import logging
import math
import os
import time
from pathlib import Path
from typing import Any, Protocol, TextIO

from tensorboardX.proto import event_pb2
from tensorboardX.record_writer import RecordWriter
from tensorboardX.summary import scalar

from daasr_jax.files import write_atomically

log = logging.getLogger("daasr_jax")

_messages: Any = event_pb2  # its classes are made as it is imported

_LOG = "metrics.jsonl"
FLUSH_SECONDS = 30  # of TensorBoard events, whose every flush waits for the disk


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
    reported once; training goes on, and the log with it once the disk accepts it.
    """

    def __init__(self, workdir: str | Path, *, start_step: int = 0) -> None:
        self._path = Path(workdir) / _LOG
        self._last = start_step
        self._failed = False
        self._file: TextIO | None = None
        self._events: _Events | None = None
        try:
            self._open()
        except OSError as error:
            self._give_up(error)

    def write(self, step: int, scalars: dict[str, float]) -> None:
        """Records scalars of a step; a non-finite value is written as a string."""
        row: dict[str, Any] = {"step": step}
        row |= {k: v if math.isfinite(v) else str(v) for k, v in scalars.items()}
        try:
            file, events = self._open()
            file.write(json.dumps(row) + "\n")
            file.flush()
            events.write(step, scalars)
            self._last = step
        except OSError as error:
            self._give_up(error)

    def close(self) -> None:
        """Flushes and closes both files."""
        for file in (self._file, self._events):
            try:
                if file is not None:
                    file.close()
            except OSError as error:
                self._complain(error)

    def _open(self) -> tuple[TextIO, _Events]:
        """Both files; what a killed or refused write has left is dropped first."""
        if self._file is None:
            if self._path.exists():
                kept = [
                    x
                    for x in read_log(self._path.parent)
                    if x.get("step", 0) <= self._last
                ]
                text = "".join(json.dumps(x) + "\n" for x in kept)
                write_atomically(self._path, text)
            self._file = self._path.open("a", encoding="utf-8")
        if self._events is None:
            self._events = _Events(self._path.parent, self._last + 1)
        return self._file, self._events

    def _give_up(self, error: OSError) -> None:
        """Closes both files, to be opened anew by the next write."""
        self._complain(error)
        self.close()
        self._file = self._events = None

    def _complain(self, error: OSError) -> None:
        if not self._failed:
            log.error("cannot write the log %s: %s", self._path, error)
        self._failed = True


class _Events:
    """TensorBoard events of a folder, written by the caller's thread.

    That of `SummaryWriter` dies of a full disk; its queue then blocks the training.

    Args:
        folder: Where to write.
        purge_step: From here on TensorBoard forgets what other files there say.
    """

    def __init__(self, folder: Path, purge_step: int) -> None:
        name = f"events.out.tfevents.{time.time():.6f}.{os.uname().nodename}"
        self._writer = RecordWriter(str(folder / name))
        self._flushed = time.monotonic()
        begin = _messages.SessionLog(status=_messages.SessionLog.START)
        for content in ({"file_version": "brain.Event:2"}, {"session_log": begin}):
            self._put(purge_step, **content)

    def write(self, step: int, scalars: dict[str, float]) -> None:
        """Adds scalars; they are on the disk after `FLUSH_SECONDS`."""
        for name, value in scalars.items():
            self._put(step, summary=scalar(name, value))
        if time.monotonic() - self._flushed > FLUSH_SECONDS:
            self._writer.flush()
            self._flushed = time.monotonic()

    def close(self) -> None:
        """Flushes and closes the file."""
        self._writer.close()

    def _put(self, step: int, **content: Any) -> None:
        event = _messages.Event(wall_time=time.time(), step=step, **content)
        self._writer.write(event.SerializeToString())


def read_log(workdir: str | Path) -> list[dict[str, Any]]:
    """The reports of a run, in order; none where it has no log.

    A line that cannot be read, or has no step, is passed over: the last one of a killed
    run may be cut short.
    """
    path = Path(workdir) / _LOG
    if not path.is_file():
        return []
    rows = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            rows.append(json.loads(line))
        except (ValueError, RecursionError):
            continue
    rows = [row for row in rows if isinstance(row, dict)]
    return [row for row in rows if isinstance(row.get("step"), int)]
