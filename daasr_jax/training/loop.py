"""The training loop: batches through the step, reports, validation, checkpoints."""

from __future__ import annotations

import contextlib
import logging
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from daasr_jax.errors import DivergedError, Preempted
from daasr_jax.training.checkpoints import Checkpoints
from daasr_jax.training.parallel import compile_step, replicate, shard_batch
from daasr_jax.training.progress import Progress
from daasr_jax.training.settings import LoopSettings
from daasr_jax.training.state import TrainState
from daasr_jax.training.step import Step
from daasr_jax.training.writers import Writer

log = logging.getLogger("daasr_jax")

MAX_SKIPPED = 20  # updates in a row without a finite loss and gradient


def train(
    step_fn: Step,
    state: TrainState,
    batches: Iterator[dict[str, np.ndarray]],
    *,
    mesh: Mesh,
    settings: LoopSettings,
    checkpoints: Checkpoints,
    writer: Callable[[int], Writer],
    validate: Callable[[TrainState], dict[str, float]] | None,
) -> TrainState:
    """Trains to `settings.steps`, resuming from the newest usable checkpoint.

    Args:
        step_fn: The pure per-device step.
        state: Initial state.
        batches: Grain iterator of `hr` and `ref`; its state is saved and restored.
        mesh: Devices.
        settings: Lengths and intervals.
        checkpoints: Where to save.
        writer: Step to resume at -> where to report.
        validate: State -> metrics on the validation split, or None without one.

    Returns:
        The final state.

    Raises:
        DivergedError: After `MAX_SKIPPED` updates in a row that were not finite, seen
            at the next report.
        Preempted: After SIGTERM, SIGUSR1 or Ctrl-C, once the state is saved.
    """
    start = checkpoints.latest()
    if start is not None:
        state, batches = checkpoints.restore(start, state, batches)
        log.info("resuming at step %d of %d", start, settings.steps)
    start = start or 0
    state = replicate(state, mesh)
    if start >= settings.steps:
        log.info("all %d steps are done already", settings.steps)
        return state
    run_step = compile_step(step_fn, mesh)
    guard = _Divergence()
    last_saved = start
    with (
        contextlib.closing(writer(start)) as out,
        _StopRequest() as stop,
        Progress(start, settings) as progress,
    ):
        for step in range(start + 1, settings.steps + 1):
            batch = shard_batch(next(batches), mesh)
            state, metrics = run_step(state, batch)
            if jax.default_backend() == "cpu":
                jax.block_until_ready(metrics)  # collectives of CPU devices may starve
            guard.note(metrics["skipped"])
            done = step == settings.steps
            if step % settings.log_every == 0 or done or step == start + 1:
                values = {k: float(v) for k, v in jax.device_get(metrics).items()}
                values |= progress.rates(step)
                out.write(step, values)
                progress.report(step, values)
                guard.check(step)
            scores: dict[str, float] = {}
            if step % settings.validate_every == 0 or done:
                if validate is not None:
                    begin = time.monotonic()
                    scores = validate(state)
                    out.write(step, {f"val/{k}": v for k, v in scores.items()})
                    progress.validated(step, scores, time.monotonic() - begin)
                checkpoints.save(step, state, batches, scores)
                last_saved = step
            elif settings.checkpoint_every and step % settings.checkpoint_every == 0:
                checkpoints.save(step, state, batches, {})
                last_saved = step
            if stop.requested and not done:
                if last_saved != step:
                    checkpoints.save(step, state, batches, {})
                raise Preempted(
                    "E701",
                    f"stopped by {stop.requested} at step {step}, saved; "
                    "run the same command to resume.",
                )
    return state


class _Divergence:
    """Counts skipped updates in a row; reads them from the device at reports only."""

    def __init__(self) -> None:
        self._unread: list[jax.Array] = []
        self._in_a_row = 0

    def note(self, skipped: jax.Array) -> None:
        """Keeps the mark of one step."""
        self._unread.append(skipped)

    def check(self, step: int) -> None:
        """Raises DivergedError once `MAX_SKIPPED` in a row were skipped."""
        marks, self._unread = jax.device_get(self._unread), []
        for mark in marks:
            self._in_a_row = self._in_a_row + 1 if mark else 0
            if self._in_a_row >= MAX_SKIPPED:
                raise DivergedError(
                    "E501",
                    f"loss or gradient were not finite in {MAX_SKIPPED} updates in a "
                    f"row up to step {step}; the checkpoints are finite. Give another "
                    "--workdir and a lower --config.optimiser.learning_rate.",
                )
        if any(marks):
            log.warning("%d updates up to step %d were not finite", sum(marks), step)


class _StopRequest:
    """Turns the first SIGTERM, SIGUSR1 or Ctrl-C into a flag; a second one acts."""

    def __init__(self) -> None:
        self.requested = ""
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> _StopRequest:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
                self._previous[number] = signal.signal(number, self._note)
        return self

    def _note(self, number: int, frame: Any) -> None:
        self.requested = signal.Signals(number).name
        for known, handler in self._previous.items():
            signal.signal(known, handler)

    def __exit__(self, *_: Any) -> None:
        for known, handler in self._previous.items():
            signal.signal(known, handler)
