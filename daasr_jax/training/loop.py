"""The training loop: batches through the step, reports, validation, checkpoints."""

from __future__ import annotations

import dataclasses
import logging
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from daasr_jax.errors import Preempted
from daasr_jax.training.checkpoints import Checkpoints
from daasr_jax.training.parallel import compile_step, replicate, shard_batch
from daasr_jax.training.progress import Progress
from daasr_jax.training.state import TrainState
from daasr_jax.training.step import Step
from daasr_jax.training.writers import Writer

log = logging.getLogger("daasr_jax")


@dataclasses.dataclass(frozen=True)
class LoopSettings:
    """Lengths and intervals of a run, in steps.

    Attributes:
        steps: Updates of the whole run.
        steps_per_epoch: Updates of an epoch, for the reports.
        batch_size: Global batch, for the reports.
        log_every: Interval of reports.
        validate_every: Interval of validation and checkpoint.
        checkpoint_every: Interval of further checkpoints, 0 for none.
    """

    steps: int
    steps_per_epoch: int
    batch_size: int
    log_every: int
    validate_every: int
    checkpoint_every: int = 0


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
        Preempted: After SIGTERM, SIGUSR1 or Ctrl-C, once the state is saved.
    """
    start = checkpoints.latest()
    if start is not None:
        state, batches = checkpoints.restore(start, state, batches)
        log.info("resuming at step %d of %d", start, settings.steps)
    start = start or 0
    state = replicate(state, mesh)
    run_step = compile_step(step_fn, mesh)
    out = writer(start)
    last_saved = start if start else -1
    with _StopRequest() as stop, Progress(start, settings) as progress:
        for step in range(start + 1, settings.steps + 1):
            batch = shard_batch(next(batches), mesh)
            state, metrics = run_step(state, batch)
            if jax.default_backend() == "cpu":
                jax.block_until_ready(metrics)  # collectives of CPU devices may starve
            done = step == settings.steps
            if step % settings.log_every == 0 or done or step == start + 1:
                values = {k: float(v) for k, v in jax.device_get(metrics).items()}
                values |= progress.rates(step)
                out.write(step, values)
                progress.report(step, values)
            scores: dict[str, float] = {}
            if step % settings.validate_every == 0 or done:
                if validate is not None:
                    begin = time.monotonic()
                    scores = validate(state)
                    out.write(step, {f"val/{k}": v for k, v in scores.items()})
                    progress.validated(step, scores, time.monotonic() - begin)
                _save(checkpoints, step, state, batches, scores)
                last_saved = step
            elif settings.checkpoint_every and step % settings.checkpoint_every == 0:
                _save(checkpoints, step, state, batches, {})
                last_saved = step
            if stop.requested and not done:
                if last_saved != step:
                    _save(checkpoints, step, state, batches, {})
                out.close()
                raise Preempted(
                    "E701",
                    f"stopped by {stop.requested} at step {step}, saved; "
                    "run the same command to resume.",
                )
    out.close()
    return state


def _save(checkpoints, step, state, batches, scores) -> None:
    checkpoints.save(step, state, batches, scores)


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
