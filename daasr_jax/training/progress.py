"""Progress of a run on the console: a line of rates with an ETA."""

from __future__ import annotations

import logging
import time
from typing import Any

import jax
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
from rich.progress import Progress as Bar

from daasr_jax.runtime.console import console
from daasr_jax.training.settings import LoopSettings

log = logging.getLogger("daasr_jax")


class Progress:
    """Rates and their display: a bar on a terminal, else one line per report.

    The rate excludes the first step (compilation) and validation.
    """

    def __init__(self, start: int, settings: LoopSettings) -> None:
        self._settings = settings
        self._start = start
        self._first = time.monotonic()
        self._mark: tuple[int, float] | None = None
        self._pause = 0.0
        self._rate = float("nan")
        out = console(stderr=True)
        self._bar = None
        if out.is_terminal and jax.process_index() == 0:
            self._bar = Bar(
                TextColumn("training"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[text]}"),
                console=out,
            )

    def __enter__(self) -> Progress:
        if self._bar is not None:
            self._bar.start()
            self._task = self._bar.add_task(
                "", total=self._settings.steps, completed=self._start, text="compiling"
            )
        return self

    def __exit__(self, *_: Any) -> None:
        if self._bar is not None:
            self._bar.stop()

    def rates(self, step: int) -> dict[str, float]:
        """Images per second since the last call, epoch, and the estimated rest in s."""
        now = time.monotonic()
        if self._mark is None:
            self._mark, self._pause = (step, now), 0.0
            compiled = {"seconds_to_first_step": now - self._first}
            return compiled | {"epoch": step / self._settings.steps_per_epoch}
        steps, seconds = step - self._mark[0], now - self._mark[1] - self._pause
        if steps > 0 and seconds > 0:
            self._rate = steps / seconds
        self._mark, self._pause = (step, now), 0.0
        return {
            "images_per_second": self._rate * self._settings.batch_size,
            "epoch": step / self._settings.steps_per_epoch,
            "eta_seconds": (self._settings.steps - step) / self._rate,
        }

    def report(self, step: int, values: dict[str, float]) -> None:
        """Shows the losses and rates of a step."""
        text = f"loss {values['g/total']:.5f}"
        if values.get("d/total"):
            text += f"  D {values['d/total']:.4f}"
        if "confidence/mean" in values:
            text += f"  C {values['confidence/mean']:.3f}"
        if "images_per_second" in values:
            text += f"  {values['images_per_second']:.1f} images/s"
            text += f"  ETA {clock(values['eta_seconds'])}"
        self._show(step, text)

    def validated(self, step: int, scores: dict[str, float], seconds: float) -> None:
        """Shows validation scores and leaves their time out of the rate."""
        self._pause += seconds
        text = "  ".join(f"{k} {v:.4f}" for k, v in scores.items())
        log.info("step %d  validation: %s  (%.0f s)", step, text, seconds)

    def _show(self, step: int, text: str) -> None:
        if self._bar is not None:
            self._bar.update(self._task, completed=step, text=text)
        elif jax.process_index() == 0:
            log.info("step %d/%d  %s", step, self._settings.steps, text)


def clock(seconds: float) -> str:
    """Seconds as m:ss or h:mm:ss."""
    if seconds != seconds:
        return "--"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
