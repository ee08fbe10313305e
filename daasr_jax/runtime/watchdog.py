"""Ends a run that hangs, with the stacks of all its threads."""

from __future__ import annotations

import faulthandler
import os
import threading
import time
from typing import Any

from daasr_jax.errors import ResourceError


class Watchdog:
    """Ends the process with exit code 6 where nothing happens for too long.

    A collective that waits for a machine that is gone, a driver or a network file
    system may block for ever and raise nothing. Used as a context; what is watched
    calls `beat`.

    Args:
        seconds: Longest time between two beats; 0 ends nothing.
        notice: Time after which `hint` is printed, once for a beat that asks for it;
            doubled each time, since what goes on after all may be slow by nature.
        hint: What the reason may be.
    """

    def __init__(self, seconds: float, notice: float = 0, hint: str = "") -> None:
        self._seconds, self._notice, self._hint = seconds, notice, hint
        self._state = time.monotonic(), "start", False
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Watchdog:
        self.beat("start")
        if self._seconds or self._notice:
            self._thread.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._over.set()

    def beat(self, doing: str, *, short: bool = False) -> None:
        """Says that something was done, what comes next and whether that is short."""
        self._state = time.monotonic(), doing, short

    def _watch(self) -> None:
        noticed, notice = -1.0, self._notice
        while not self._over.wait(min(x / 4 for x in self._limits())):
            last, doing, short = self._state
            silent = time.monotonic() - last
            if short and 0 < notice < silent and noticed != last:
                noticed, notice = last, 2 * notice
                text = f"nothing happened for {silent:.0f} s in {doing}: {self._hint}\n"
                os.write(2, text.encode())
            if not 0 < self._seconds < silent:
                continue
            error = ResourceError(
                "E607",
                f"nothing happened for {self._seconds:g} s in {doing}; the "
                "stacks above show where; run the same command to resume from the last "
                "checkpoint (--config.train.watchdog sets the time, 0 none).",
            )
            faulthandler.dump_traceback(file=2)  # whatever became of sys.stderr
            os.write(2, f"{error}\n".encode())
            os._exit(error.exit_code)

    def _limits(self) -> list[float]:
        return [x for x in (self._seconds, self._notice) if x]
