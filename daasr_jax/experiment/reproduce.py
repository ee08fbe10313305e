"""The paper's tables and figures: their cells run, resumed and shared."""

from __future__ import annotations

import dataclasses
import gc
import json
import shutil
import time
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from daasr_jax.errors import Preempted, ResourceError, UserError, unwritable
from daasr_jax.evaluation.tables import cells
from daasr_jax.evaluation.tables.cells import Cell, TablePlan, Trial
from daasr_jax.experiment import cell as runs
from daasr_jax.experiment import cell_setting
from daasr_jax.experiment.reproduce_lengths import CHOSEN, begun_with, trial_steps
from daasr_jax.experiment.reproduce_request import (
    DONE,
    FAILED,
    ReproduceRequest,
    as_begun,
    check_identity,
    done_record,
    is_done,
    keep_identity,
    lease_of,
    of_tracks,
)
from daasr_jax.experiment.reproduce_tables import write_tables
from daasr_jax.files import kept, write_atomically
from daasr_jax.runtime.lease import holder, leased
from daasr_jax.training.progress import clock

WAIT_SECONDS = 5.0

Say = Callable[[str], None]


@dataclasses.dataclass(frozen=True)
class Made:
    """What a command made.

    Attributes:
        files: Of tables and report, by name.
        cells: How many were asked for.
        failed: Trial or cell -> why it is not done, in the order of failing.
    """

    files: dict[str, Path] = dataclasses.field(default_factory=dict)
    cells: int = 0
    failed: dict[Trial | Cell, UserError] = dataclasses.field(default_factory=dict)

    def check(self) -> None:
        """Raises the first error, a trial's too, where a cell is not done."""
        number = sum(isinstance(job, Cell) for job in self.failed)
        if number:
            job, error = next(iter(self.failed.items()))
            raise type(error)(
                error.code,
                f"{number} of {self.cells} cells failed and are left out, and the same "
                f"command tries them again; the first to fail was {job.name}: "
                f"{error.args[0]}",
            )


def reproduce(request: ReproduceRequest, say: Say, *, dry_run: bool = False) -> Made:
    """Runs what is missing and writes tables and report.

    A cell that fails is left out, said, and tried again by the next command.

    Args:
        request: What is asked for.
        say: Takes a line of progress.
        dry_run: Say what would be run and how long it may take; run nothing.

    Raises:
        ConfigError: If a name is unknown, or the folder holds cells of other settings.
        UserError: If the data or the masks cannot be used, before anything is trained.
        Preempted: If it was asked to stop; the same command goes on.
    """
    request.check()
    if request.setting.budget.name == "smoke":  # compiling would take most of its time
        jax.config.update("jax_disable_most_optimizations", True)
    check_identity(request)
    if dry_run:
        request = as_begun(request)
        for line in describe(request, request.plan()):
            say(line)
        return Made()
    if not request.tracks:
        request = _on_tracks_of_data(request, say)
    request = as_begun(request)
    plan = request.plan()
    _check_data(request, plan)
    keep_identity(request)
    failed = _run(request, plan, say)
    return Made(write_tables(request), len(plan.cells), failed)


def _on_tracks_of_data(request: ReproduceRequest, say: Say) -> ReproduceRequest:
    """The request on the tracks that its data have; the others are said.

    Raises:
        DataError: If they have none.
    """
    row = cells.full(request.setting.budget.size)
    scale = next(iter(request.scales), cells.SCALES[0])
    lacking = cell_setting.lacking_tracks(request.setting, row, scale)
    for error in lacking.values():
        say(f"left out: {error}")
    tracks = [track for track in cells.TRACKS if track not in lacking]
    if not tracks:
        raise next(iter(lacking.values()))
    return of_tracks(request, tracks, list(lacking))


def _check_data(request: ReproduceRequest, plan: TablePlan) -> None:
    """Looks at the data of what is missing, before any of it is trained."""
    jobs = _jobs(plan, request.setting.budget.size)
    cell_setting.check_data(
        request.setting,
        [
            job
            for job in jobs
            if not is_done(request, job, lpips=wants_lpips(plan, job))
        ],
    )


def _jobs(plan: TablePlan, size: str) -> list[Trial | Cell]:
    """Trials, each before the first cell that needs it."""
    out: dict[Trial | Cell, None] = {}
    equal = [c for c in plan.cells if c.match == "steps"]
    timed = [c for c in plan.cells if c.match == "time"]
    for cell in [*timed, *equal]:
        out |= dict.fromkeys(plan.needed(cell, size))
        out[cell] = None
    return list(out)


def _run(
    request: ReproduceRequest, plan: TablePlan, say: Say
) -> dict[Trial | Cell, UserError]:
    """Runs what is missing; returns what failed and nobody has done since, and why."""
    folder, jobs = request.workdir, _jobs(plan, request.setting.budget.size)
    begin, tried = time.monotonic(), set()
    failed: dict[Trial | Cell, UserError] = {}
    waited, held = False, set()

    def done(job: Trial | Cell) -> bool:
        return is_done(request, job, lpips=wants_lpips(plan, job))

    while True:
        missing = [j for j in jobs if not done(j) and j not in tried]
        if not missing:
            return {job: error for job, error in failed.items() if not done(job)}
        moved = False
        for job in missing:
            with leased(lease_of(folder, job)) as mine:
                if not mine or done(job):
                    continue
                ready = _needs(request, plan, job, tried)
                if ready is None:
                    continue
                tried.add(job)
                try:
                    said, error = _one(request, plan, job, ready)
                except ResourceError as error:
                    if error.code != "E614":
                        raise
                    tried.discard(job)  # it is tried again when the other is done
                    if job not in held:
                        say(f"{job.name}: another program has it: {error}")
                    held.add(job)
                    continue
                if error:
                    failed[job] = error
                moved = True
                left = [j for j in jobs if not done(j) and j not in tried]
                rest = seconds_left(request, left)
                say(
                    f"{clock(time.monotonic() - begin):>8}  {job.name}: {said}; "
                    f"{len(left)} of {len(jobs)} left, "
                    + (f"about {clock(rest)}" if rest is not None else "time unknown")
                )
        if not moved:
            if not waited:
                names = [holder(lease_of(folder, j))
                         for j in missing]  # fmt: skip
                others = ", ".join(sorted({n for n in names if n})) or "others"
                say(f"waiting for {len(missing)} cells of {others}")
            waited = True
            time.sleep(WAIT_SECONDS)


def _needs(
    request: ReproduceRequest,
    plan: TablePlan,
    job: Trial | Cell,
    tried: Collection[Any],
) -> list[dict[str, Any]] | None:
    """Results of the trials that a job needs; None while another makes them."""
    needed = plan.needed(job, request.setting.budget.size)
    minutes = request.setting.budget.minutes
    if isinstance(job, Cell) and job.match == "steps" and minutes:
        twin = job.at_equal_time()
        if holder(lease_of(request.workdir, twin)) and not is_done(request, twin):
            return None  # it may be the same run
        needed = [t for t in plan.trials if t.scale == job.scale]
    found = [kept(request.workdir / t.name / DONE) for t in needed]
    settled = all(f or t in tried for f, t in zip(found, needed, strict=True))
    return [f for f in found if f] if settled else None


def _one(
    request: ReproduceRequest,
    plan: TablePlan,
    job: Trial | Cell,
    ready: list[dict[str, Any]],
) -> tuple[str, UserError | None]:
    """Runs one job, and notes that it is done or why not.

    Returns:
        What to say of it, and why it failed.

    Raises:
        ResourceError: If another program has its folder (E614).
        Preempted: If it was asked to stop.
    """
    folder, setting = request.workdir / job.name, request.setting
    failure = None
    try:
        if isinstance(job, Trial):
            steps = trial_steps(request, job, ready)
            found = runs.run_trial(setting, job, folder, steps=steps)
            score = found["psnr"]
            said = found["diverged"] or f"validation {score:.2f} dB"
            found |= {"row": job.row, "scale": job.scale}
        else:
            found, said = _run_cell(request, plan, job, ready)
        write_atomically(folder / DONE, json.dumps(found, indent=1))
        (folder / FAILED).unlink(missing_ok=True)
    except Preempted:
        raise
    except UserError as error:
        if error.code == "E614":  # another program has the folder
            raise
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / FAILED, json.dumps({"error": f"error {error.code}"}))
        said, failure = f"FAILED: {error}", error
    finally:
        jax.clear_caches()
        gc.collect()
    return said, failure


def _run_cell(
    request: ReproduceRequest, plan: TablePlan, job: Cell, ready: list[dict[str, Any]]
) -> tuple[dict[str, Any], str]:
    begun = begun_with(request, plan, job, ready)
    found = _as_at_equal_time(request, plan, job, begun) or runs.run_cell(
        request.setting,
        job,
        request.workdir / job.name,
        steps=begun["steps"],
        rate=begun["rate"],
        lpips=wants_lpips(plan, job),
    )
    report = kept(request.workdir / job.name / runs.SCORES.format(0)) or {}
    pair = report["methods"]["pair"]["psnr"]["mean"]
    found["trials"] = begun["trials"]
    said = "not finite" if pair is None else f"{pair:.2f} dB"
    if begun["without"]:
        said += f" (equal steps without {', '.join(begun['without'])}: no trial)"
    return found, said


def _as_at_equal_time(
    request: ReproduceRequest, plan: TablePlan, job: Cell, begun: dict[str, Any]
) -> dict[str, Any] | None:
    """What the cell of equal time left, if it is the same run: it is then copied.

    The slowest row makes as many steps in its minutes as all do at equal steps.
    """
    twin, same = job.at_equal_time(), ("steps", "rate")
    found = done_record(request, twin, lpips=wants_lpips(plan, job))
    its = kept(request.workdir / twin.name / CHOSEN) or {}
    if twin == job or found is None or any(its.get(k) != begun[k] for k in same):
        return None
    target = request.workdir / job.name
    beside = target.with_name(f".{target.name}")
    try:
        shutil.rmtree(beside, ignore_errors=True)
        shutil.copytree(
            request.workdir / twin.name, beside,
            ignore=shutil.ignore_patterns(CHOSEN, DONE, ".lock"),
        )  # fmt: skip
        shutil.copy(target / CHOSEN, beside)
        shutil.rmtree(target)  # what a part of the same run left
        beside.rename(target)
    except OSError as error:
        raise unwritable(target, error) from None
    return found


def wants_lpips(plan: TablePlan, job: Trial | Cell) -> bool:
    """Whether a table of the plan has LPIPS of a cell."""
    return any(
        cells.PARTS[part].lpips and job.row in {key for _, key in rows}
        for part, rows in plan.rows.items()
    )


def seconds_left(
    request: ReproduceRequest, left: Sequence[Trial | Cell]
) -> float | None:
    """Seconds that jobs may take here, from those that are done; None if unknown.

    A job is taken to last as the mean of its row, else of all of its kind. Where none
    is done, minutes of the budget count, else the trials and the lengths.
    """
    budget = request.setting.budget
    spent: dict[tuple[str, str], list[float]] = {}
    for path in request.workdir.glob(f"*/*/{DONE}"):
        found = kept(path) or {}
        if "seconds" in found:
            kind = "speed" if found.get("speed") else path.parts[-3]
            for row in (found["row"], ""):
                spent.setdefault((kind, row), []).append(found["seconds"])
    total = 0.0
    for job in left:
        kind = "cells" if isinstance(job, Cell) else "speed" if job.speed else "trials"
        known = spent.get((kind, job.row)) or spent.get((kind, ""))
        if known:
            total += float(np.mean(known))
        elif kind != "speed" and budget.minutes:
            total += (60 if kind == "cells" else 6) * budget.minutes
        elif kind == "cells" and spent.get(("trials", "")):
            part = (
                budget.steps / budget.trial_steps
                if budget.trial_steps
                else budget.epochs / budget.trial_epochs()
            )
            total += part * float(np.mean(spent["trials", ""]))
        else:
            return None
    return total


def describe(request: ReproduceRequest, plan: TablePlan) -> list[str]:
    """The lines of a dry run: every job with its state, the cost and the time left."""
    folder, jobs = request.workdir, _jobs(plan, request.setting.budget.size)
    lines, left = [], []
    for job in jobs:
        state = "missing"
        if is_done(request, job, lpips=wants_lpips(plan, job)):
            spent = (kept(folder / job.name / DONE) or {}).get("seconds", 0.0)
            state = f"done in {clock(spent)}"
        else:
            left.append(job)
            who = holder(lease_of(folder, job))
            failed = kept(folder / job.name / FAILED)
            if who:
                state = f"held by {who}"
            elif failed:
                state = failed["error"]
            elif (folder / job.name).is_dir():
                state = "begun"
        lines.append(f"{job.name}: {state}")
    trials = sum(isinstance(j, Trial) for j in jobs)
    budget = request.setting.budget
    each = f"{budget.minutes:g} minutes" if budget.minutes else (
        f"{budget.steps:,} steps" if budget.steps else f"{budget.epochs} epochs"
    )  # fmt: skip
    rest = seconds_left(request, left)
    if not request.tracks:
        lines.append("at most: tracks that the data do not have will be left out")
    lines.append(
        f"{trials} trials and {len(jobs) - trials} cells of {each}, {len(left)} left: "
        + (f"about {clock(rest)} in one process" if rest is not None else
           "the time is known when the first of them is done")
    )  # fmt: skip
    return lines
