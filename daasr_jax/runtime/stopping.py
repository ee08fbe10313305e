"""A run that is asked to stop: when it leaves at once and when it saves first."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from types import FrameType
from typing import Any

from daasr_jax.errors import Preempted

GRACE_SECONDS = 1.0
_COLLECTING = "_xla_gc_callback"  # of jax
SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


class StopRequest:
    """SIGTERM, SIGUSR1 and Ctrl-C within: the first is a request, a second one acts.

    Before `begin` there is nothing to save, so the first ends the context by
    `Preempted`; after it, the first is noted in `requested` and the run ends itself. A
    second one does what it would do without the context, or ends the process where the
    interpreter cannot act, as in a collective that waits for ever.

    A terminal and a launcher may both pass one Ctrl-C on: what follows within
    `GRACE_SECONDS` is the same request.

    Attributes:
        requested: Name of the first signal, empty without one.
    """

    def __init__(self) -> None:
        self.requested, self._at, self._begun = "", 0.0, False
        self._previous: dict[int, Any] = {}
        self._over = threading.Event()

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            self._read, self._write = socket.socketpair()
            self._write.setblocking(False)
            self._wakeup = signal.set_wakeup_fd(
                self._write.fileno(), warn_on_full_buffer=False
            )
            threading.Thread(target=self._watch, daemon=True).start()
            for number in SIGNALS:
                self._previous[number] = signal.signal(number, self._note)
        return self

    def begin(self) -> None:
        """From here on the run saves before it stops."""
        self._begun = True

    def __exit__(self, kind: type[BaseException] | None, *_: Any) -> None:
        self._restore()
        if kind is KeyboardInterrupt and self.requested and not self._begun:
            raise Preempted(
                "E702",
                f"stopped by {self.requested} before the first step; run the same "
                "command to go on.",
            ) from None

    def _restore(self) -> None:
        if not self._previous:
            return
        self._over.set()
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous.clear()
        signal.set_wakeup_fd(self._wakeup)
        self._write.close()  # which ends the thread

    def _note(self, number: int, frame: FrameType | None) -> None:
        if not self.requested:
            self.requested = signal.Signals(number).name
            self._at = time.monotonic()
            # Out of JAX's collection of garbage nothing is raised, only printed: the
            # run then stops after its first step.
            collecting = frame is not None and frame.f_code.co_name == _COLLECTING
            if not self._begun and not collecting:
                raise KeyboardInterrupt  # which no library takes for an error
        elif time.monotonic() - self._at >= GRACE_SECONDS:
            self._restore()
            signal.raise_signal(number)

    def _watch(self) -> None:
        """Ends the process where a second signal is not acted on within a second."""
        first = None
        while received := self._read.recv(1):
            now = time.monotonic()
            if received[0] not in SIGNALS:
                continue
            first = now if first is None else first
            if now - first < GRACE_SECONDS or self._over.wait(1):
                continue
            name = signal.Signals(received[0]).name
            os.write(2, f"left at once by a second {name}\n".encode())
            os._exit(128 + received[0])
        self._read.close()
