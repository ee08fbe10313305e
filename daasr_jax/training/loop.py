"""The training loop: batches through the step, reports, validation, checkpoints."""

from __future__ import annotations

import contextlib
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
from daasr_jax.training.step import LOWERED, Step
from daasr_jax.training.writers import Writer

log = logging.getLogger("daasr_jax")

MAX_SKIPPED = 20  # updates in a row without a finite loss and gradient


class _StoppedError(Exception):
    """Ends a validation within."""


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
    blame: Callable[[range], None] | None = None,
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
            calls its second argument after every slice, in every process as often,
            which ends it where the run was asked to stop.
        stop: What asks the run to stop.
        blame: Is told the steps of a row of updates that were not finite.

    Returns:
        The final state.

    An update whose loss or gradient is not finite is left out. After `MAX_SKIPPED` of
    them in a row, seen at a report, the run goes back to the last checkpoint that was
    saved without trouble, with the data that follow and half the learning rates; the
    second time it stops.

    A validation that a stop has cut short, or that was due then, is made up for when
    the run resumes, and its scores are stored with the checkpoint that lacks them.

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

    def due(step: int) -> bool:
        return step % settings.validate_every == 0 or step == settings.steps

    unscored = validate is not None and start > 0 and due(start)
    unscored = unscored and not checkpoints.scored(start)
    if start >= settings.steps and not unscored:
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

        def score(step: int, state: TrainState) -> dict[str, float] | None:
            """Metrics of a step, reported; None where the run was asked to stop."""
            assert validate is not None
            at = f"the validation of step {step}"
            begin = time.monotonic()

            def beat() -> None:
                watchdog.beat(at)
                if vote(bool(stop.requested)):
                    raise _StoppedError

            try:
                beat()
                scores = validate(state, beat)
            except _StoppedError:
                return None
            out.write(step, {f"val/{k}": v for k, v in scores.items()})
            progress.validated(step, scores, time.monotonic() - begin)
            return scores

        def preempted(step: int) -> Preempted:
            return Preempted(
                "E701",
                f"stopped by {stop.requested or 'another process'} at step {step}, "
                "saved; run the same command to resume.",
            )

        if unscored:
            log.info("validating step %d, which a stop had cut short", start)
            scores = score(start, state)
            if scores is None:
                raise preempted(start)
            checkpoints.save(start, state, scores)
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
                    row = int(values["skipped_in_a_row"])
                    if blame is not None:
                        blame(range(step - row + 1, step + 1))
                    state = _go_back(step, state, checkpoints, mesh)
            scores: dict[str, float] | None = {}
            if due(step):
                if validate is not None:
                    scores = score(step, state)
                watchdog.beat(f"the checkpoint of step {step}")
                checkpoints.save(step, state, scores or {})
                last_saved = step
            elif settings.checkpoint_every and step % settings.checkpoint_every == 0:
                watchdog.beat(f"the checkpoint of step {step}")
                checkpoints.save(step, state, {})
                last_saved = step
            if scores is None or (vote(bool(stop.requested)) and not done):
                if last_saved != step:
                    checkpoints.save(step, state, {})
                raise preempted(step)
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
    for saved in reversed(checkpoints.clean_steps()):
        good = checkpoints.restore(saved, state)
        if not int(good.skipped_in_a_row):  # runs of before did not mark the others
            log.warning(
                "%s: going back to checkpoint %d, once, with learning rates times %g",
                trouble,
                saved,
                LOWERED,
            )
            counters = {
                "step": state.step,
                "skipped": state.skipped,
                "restores": np.int32(int(state.restores) + 1),
            }
            return good.replace(**replicate(counters, mesh))
    raise DivergedError(
        "E502", f"{trouble} and there is no checkpoint to go back to; {remedy}"
    )
