"""The training loop: batches through the step, reports, validation, checkpoints."""

from __future__ import annotations

import contextlib
import functools
import logging
import time
from collections.abc import Callable, Iterable

import jax
import numpy as np
from jax.sharding import Mesh

from daasr_jax.errors import DivergedError, Preempted
from daasr_jax.runtime import hosts
from daasr_jax.runtime.devices import ahead, compile_step, replicate
from daasr_jax.runtime.failures import reading
from daasr_jax.runtime.stopping import StopRequest
from daasr_jax.runtime.watchdog import Watchdog
from daasr_jax.training.checkpoints import Checkpoints
from daasr_jax.training.progress import Progress
from daasr_jax.training.settings import LoopSettings
from daasr_jax.training.state import TrainState
from daasr_jax.training.step import Step
from daasr_jax.training.writers import Writer

log = logging.getLogger("daasr_jax")

MAX_SKIPPED = 20  # updates in a row without a finite loss and gradient

Validate = Callable[[TrainState, Callable[[], None]], dict[str, float]]


def train(
    step_fn: Step,
    state: TrainState,
    batches: Callable[[int], Iterable[dict[str, np.ndarray]]],
    *,
    mesh: Mesh,
    settings: LoopSettings,
    checkpoints: Checkpoints,
    writer: Callable[[int], Writer],
    validate: Validate | None,
    stop: StopRequest,
) -> TrainState:
    """Trains to `settings.steps`, resuming from the newest usable checkpoint.

    Args:
        step_fn: The pure per-device step.
        state: Initial state.
        batches: Steps done -> this process's batches of `hr` and `ref` that follow.
        mesh: Devices.
        settings: Lengths and intervals.
        checkpoints: Where to save.
        writer: Step to resume at -> where to report.
        validate: State -> metrics on the validation split, or None without one; it
            calls its second argument after every slice.
        stop: What asks the run to stop.

    Returns:
        The final state.

    An update whose loss or gradient is not finite is left out. After `MAX_SKIPPED` of
    them in a row, seen at a report, the run goes back to the last checkpoint that was
    saved without trouble, with the data that follow; the second time it stops.

    Raises:
        DivergedError: The second time, or where there is no such checkpoint.
        Preempted: After SIGTERM, SIGUSR1 or Ctrl-C, once the state is saved; on
            several processes any of them may have been asked.
        ResourceError: If a device, a reader of the data or another process fails.
    """
    start = checkpoints.latest()
    state = replicate(state, mesh)
    if start is not None:
        state = checkpoints.restore(start, state)
        log.info("resuming at step %d of %d", start, settings.steps)
    start = start or 0
    if start >= settings.steps:
        log.info("all %d steps are done already", settings.steps)
        return state
    run_step = compile_step(step_fn, mesh)
    skipped = int(state.skipped)
    last_saved = start
    vote = hosts.Vote(mesh)
    stop.begin()
    with (
        contextlib.closing(writer(start)) as out,
        Progress(start, settings) as progress,
        Watchdog(settings.watchdog, *hosts.lost_notice()) as watchdog,
        contextlib.closing(reading(batches(start))) as source,
    ):
        following = ahead(source, mesh)
        for step in range(start + 1, settings.steps + 1):
            watchdog.beat(f"step {step}, reading")
            batch = next(following)
            watchdog.beat(f"step {step}", short=step > start + 1)  # not the compilation
            state, metrics = run_step(state, batch)
            if jax.default_backend() == "cpu":
                jax.block_until_ready(metrics)  # collectives of CPU devices may starve
            done = step == settings.steps
            if step % settings.log_every == 0 or done or step == start + 1:
                values = {k: float(v) for k, v in jax.device_get(metrics).items()}
                values |= progress.rates(step)
                out.write(step, values)
                progress.report(step, values)
                if values["skipped"] > skipped:
                    _warn_of_skipped(step, values, skipped)
                    skipped = int(values["skipped"])
                stuck = values["skipped_in_a_row"] >= MAX_SKIPPED
                if stuck and (done or step % settings.log_every == 0):
                    state = _go_back(step, state, checkpoints, mesh)
            scores: dict[str, float] = {}
            if step % settings.validate_every == 0 or done:
                if validate is not None:
                    begin = time.monotonic()
                    at = f"the validation of step {step}"
                    scores = validate(state, functools.partial(watchdog.beat, at))
                    out.write(step, {f"val/{k}": v for k, v in scores.items()})
                    progress.validated(step, scores, time.monotonic() - begin)
                watchdog.beat(f"the checkpoint of step {step}")
                checkpoints.save(step, state, scores)
                last_saved = step
            elif settings.checkpoint_every and step % settings.checkpoint_every == 0:
                watchdog.beat(f"the checkpoint of step {step}")
                checkpoints.save(step, state, {})
                last_saved = step
            if vote(bool(stop.requested)) and not done:
                if last_saved != step:
                    checkpoints.save(step, state, {})
                raise Preempted(
                    "E701",
                    f"stopped by {stop.requested or 'another process'} at step {step}, "
                    "saved; run the same command to resume.",
                )
    return state


def _warn_of_skipped(step: int, values: dict[str, float], before: int) -> None:
    log.warning(
        "%d updates up to step %d were not finite and left out (%d so far, %d in a "
        "row at the end)",
        values["skipped"] - before,
        step,
        values["skipped"],
        values["skipped_in_a_row"],
    )


def _go_back(
    step: int, state: TrainState, checkpoints: Checkpoints, mesh: Mesh
) -> TrainState:
    """The newest checkpoint saved while updates were finite, as the state of `step`.

    Raises:
        DivergedError: If the run went back before, or there is no such checkpoint.
    """
    trouble = f"{MAX_SKIPPED} updates in a row up to step {step} were not finite"
    remedy = (
        "give another --workdir and a lower --config.optimiser.learning_rate or a "
        "longer --config.optimiser.warmup_steps."
    )
    if int(state.restores):
        raise DivergedError(
            "E501",
            f"{trouble}, again after going back to a checkpoint; the checkpoints are "
            f"finite; {remedy}",
        )
    for saved in reversed(checkpoints.steps()):
        good = checkpoints.restore(saved, state)
        if not int(good.skipped_in_a_row):
            log.warning("%s: going back to checkpoint %d, once", trouble, saved)
            counters = {
                "step": state.step,
                "skipped": state.skipped,
                "restores": np.int32(int(state.restores) + 1),
            }
            return good.replace(**replicate(counters, mesh))
    raise DivergedError(
        "E502", f"{trouble} and there is no checkpoint to go back to; {remedy}"
    )
