"""Rates and lengths of the paper's cells and trials, from the trials before them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from daasr_jax.errors import ConfigError
from daasr_jax.evaluation.tables.cells import ROWS, Cell, TablePlan, Trial
from daasr_jax.experiment import cell as runs
from daasr_jax.experiment.record import RECORD
from daasr_jax.experiment.reproduce_request import ReproduceRequest, equal_steps_file
from daasr_jax.files import kept, write_atomically

CHOSEN = "chosen.json"  # rate and steps of a cell, since it began


def trial_steps(
    request: ReproduceRequest, trial: Trial, ready: Sequence[Mapping[str, Any]]
) -> int:
    """The steps of a trial: with minutes those of a tenth of them, if that is longer.

    Raises:
        ConfigError: If the speed is not known (E286).
    """
    budget = request.setting.budget
    if trial.speed or not budget.minutes:
        return budget.trial_steps
    steps = runs.steps_in_time(ready, budget.minutes / 10)
    if steps is None:
        raise _no_speed(request, trial)
    return max(budget.trial_steps, steps)


def _no_speed(request: ReproduceRequest, job: Trial | Cell) -> ConfigError:
    return ConfigError(
        "E286",
        f"no trial of {job.row} at x{job.scale} came far enough to tell how many steps "
        f"{request.setting.budget.minutes:g} minutes are: the folders in trials/ have "
        "why. The next command tries them again.",
    )


def begun_with(
    request: ReproduceRequest, plan: TablePlan, job: Cell, ready: list[dict[str, Any]]
) -> dict[str, Any]:
    """Rate and steps of a cell: those of its run, else what the trials say now.

    A trial that failed may succeed later. A run that has begun keeps what it has.

    Returns:
        `rate`, `steps`, `trials`, rate -> PSNR of those that were tried, and
        `without`, the rows of which equal steps know no speed.

    Raises:
        UserError: If no rate trained (E503), or the speed is not known (E286).
    """
    folder, budget = request.workdir / job.name, request.setting.budget
    found = kept(folder / CHOSEN) if (folder / RECORD).is_file() else None
    if found is None:
        tuned = ROWS[job.row].tuned_with(job.row, budget.size)
        own = [
            t
            for t in ready
            if (t["row"], t["scale"]) == (tuned, job.scale) and not t.get("speed")
        ]
        rate, steps, without = runs.chosen(own)["rate"], budget.steps, []
        if budget.minutes:
            rows = {t.row for t in plan.trials if t.scale == job.scale}
            given = {
                row: runs.steps_in_time(
                    [t for t in ready if t["row"] == row], budget.minutes
                )
                for row in sorted({job.row, *rows})
            }
            steps = given[job.row]
            if steps is None:
                raise _no_speed(request, job)
            if job.match == "steps":
                given |= _begun_at_equal_time(request, plan, job.scale)
                steps, without = equal_steps(request.workdir, job.scale, given)
        found = {
            "rate": rate,
            "steps": steps,
            "trials": {f"{t['rate']:g}": t["psnr"] for t in own},
            "without": without,
        }
        write_atomically(folder / CHOSEN, json.dumps(found, indent=1))
    return found


def _begun_at_equal_time(
    request: ReproduceRequest, plan: TablePlan, scale: int
) -> dict[str, int]:
    """Row -> the fewest steps of its cells of equal time that have begun."""
    found: dict[str, int] = {}
    for cell in plan.cells:
        if (cell.scale, cell.match) != (scale, "time"):
            continue
        if own := kept(request.workdir / cell.name / CHOSEN):
            found[cell.row] = min(own["steps"], found.get(cell.row, own["steps"]))
    return found


def equal_steps(
    folder: Path, scale: int, given: Mapping[str, int | None]
) -> tuple[int, list[str]]:
    """The steps of all equal cells of a scale: what the first of them was given.

    They are those of the row that makes the fewest in its minutes.

    Args:
        folder: Of the work.
        scale: s.
        given: Row -> steps in its minutes; None where no trial told its speed.

    Returns:
        The steps, and the rows that had no part in them.
    """
    path = equal_steps_file(folder, scale)
    found = kept(path)
    if found is None:
        known = {row: n for row, n in given.items() if n is not None}
        without = [row for row in given if row not in known]
        found = {"steps": min(known.values()), "of": [*known], "without": without}
        write_atomically(path, json.dumps(found))
    return found["steps"], found.get("without", [])
