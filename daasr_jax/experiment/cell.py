"""A cell of the paper's tables: an ordinary run, trained, evaluated and summed up."""

from __future__ import annotations

import contextlib
import gc
import json
import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from daasr_jax import data
from daasr_jax.errors import DivergedError
from daasr_jax.evaluation import predict as evaluation
from daasr_jax.evaluation.controls import (
    draw_controls,
    run_controls,
    same_references,
    uses_reference,
)
from daasr_jax.evaluation.controls_report import make_controls_report
from daasr_jax.evaluation.controls_scores import measured
from daasr_jax.evaluation.report import make_report
from daasr_jax.evaluation.tables.cells import NO_TRACK, Cell, Trial
from daasr_jax.experiment import parts
from daasr_jax.experiment.cell_pictures import PICTURES, keep_pictures
from daasr_jax.experiment.cell_setting import TRACK_KEYS, Setting, configuration
from daasr_jax.experiment.opening import EvaluationRequest, Opened, open_split
from daasr_jax.experiment.record import read_record
from daasr_jax.experiment.sessions import peak_of, session
from daasr_jax.experiment.train import train_run
from daasr_jax.files import write_atomically
from daasr_jax.runtime.failures import explained
from daasr_jax.training.writers import read_log

CONTROLS = ("pair", "black", "self")
SCORES = "eval_pairing_{}.json"


def run_trial(
    setting: Setting, trial: Trial, folder: Path, *, steps: int
) -> dict[str, Any]:
    """Trains one learning rate for a short time.

    Args:
        setting: Shared by all.
        trial: Which.
        folder: Of the run.
        steps: Of the training; 0 for a tenth of the epochs.

    Returns:
        `psnr`, the best of validation in dB, None where it diverged; `rate`;
        `images_per_second`, past the warm-up, and `seconds`.

    Raises:
        UserError: If it cannot be trained.
    """
    budget = setting.budget
    config = configuration(
        setting, trial.row, trial.scale, track=trial.track, seed=0, rate=trial.rate,
        steps=steps, epochs=0 if steps else budget.trial_epochs(),
    )  # fmt: skip
    if trial.speed:  # saving would count as training
        with config.unlocked():
            config.train.checkpoint_every = 0
    why = ""
    with session(folder) as spent:
        try:
            train_run(config, str(folder))
        except DivergedError as error:
            why = str(error)
    rows = read_log(folder)
    scores = [float(r["val/psnr"]) for r in rows if "val/psnr" in r]
    scores = [x for x in scores if math.isfinite(x)]
    return {
        "rate": trial.rate,
        "psnr": max(scores) if scores and not why else None,
        "images_per_second": settled_speed(rows),
        "speed": trial.speed,
        "batch": config.train.batch_size,
        "diverged": why,
        "seconds": spent.total(),
    }


def chosen(trials: list[dict[str, Any]]) -> dict[str, Any]:
    """The trial of the highest PSNR of validation; the lowest rate of equals.

    Raises:
        DivergedError: If none of the rates trained (E503).
    """
    good = [t for t in trials if t["psnr"] is not None]
    if not good:
        raise DivergedError(
            "E503",
            "no trial of a learning rate came to its end: the folders in trials/ have "
            "why.",
        )
    return max(good, key=lambda t: (t["psnr"], -t["rate"]))


def steps_in_time(trials: Sequence[Mapping[str, Any]], minutes: float) -> int | None:
    """Steps of a row in a wall time, by the trial of its speed; None without one.

    Other trials have no part in it: an ablation has none, and every row is measured
    alike.
    """
    rates = [t["images_per_second"] / t["batch"] for t in trials
             if t.get("speed") and t["images_per_second"]]  # fmt: skip
    return max(1, math.ceil(60 * minutes * max(rates))) if rates else None


@explained()
def run_cell(
    setting: Setting, cell: Cell, folder: Path, *, steps: int, rate: float, lpips: bool
) -> dict[str, Any]:
    """Trains and evaluates a cell, and keeps scores and pictures in its folder.

    Args:
        setting: Shared by all.
        cell: Which.
        folder: Of the run.
        steps: Of the training; 0 for the epochs of the budget.
        rate: Learning rate.
        lpips: Measure LPIPS too.

    Returns:
        What the table needs beside the scores.

    Raises:
        UserError: If it cannot be trained or evaluated.
    """
    config = configuration(
        setting, cell.row, cell.scale, track=cell.track, seed=cell.seed, rate=rate,
        steps=steps, epochs=setting.budget.epochs,
        validations=setting.budget.validations,
    )  # fmt: skip
    again = (folder / SCORES.format(0)).is_file()  # it was trained before
    with session(folder) as spent:
        with contextlib.nullcontext() if again else peak_of(spent):
            train_run(config, str(folder))
        jax.clear_caches()
        gc.collect()
        seen = setting.track if cell.track == NO_TRACK else cell.track
        about = evaluate_cell(setting, folder, lpips=lpips, track=seen)
    rows = read_log(folder)
    speed = _speed(rows)
    done = max((int(r["step"]) for r in rows), default=steps)
    images = done * read_record(folder)["batch"]["images"]
    return about | {
        "row": cell.row,
        "steps": done,
        "learning_rate": rate,
        "images_per_second": speed,
        "minutes": images / speed / 60 if speed else None,
        "peak_mib": spent.peak_mib or None,
        "pairings": setting.pairings,
        "lpips": lpips,
        "by_place": True,
        "curve": [[r["step"], r["val/psnr"]] for r in rows if "val/psnr" in r],
        "seconds": spent.total(),
    }


@explained(evaluating=True)
def evaluate_cell(
    setting: Setting, folder: Path, *, lpips: bool, track: str
) -> dict[str, Any]:
    """Scores of the test split with all pairings and controls, and some pictures.

    Args:
        setting: Shared by all.
        folder: Of the run.
        lpips: Measure LPIPS too.
        track: Pictured are slices that have a reference on it.

    Returns:
        `parameters`, `uses_reference`, `pairings_used`, the number of different
        pairings, and what names the data and the code.
    """
    asked = EvaluationRequest(
        out=str(folder / SCORES.format(0)), force=True, lpips=lpips
    )
    run = open_split(str(folder), asked, "controls")
    scale = run.config.scale
    used = uses_reference(run.model, run.variables, scale=scale)
    controls, left_out = draw_controls(run.table, run.pairing, scale=scale, used=used)
    controls = {name: controls[name] for name in CONTROLS}
    found = run_controls(
        run.predict, run.variables, run.table, run.pairing, controls, scale=scale
    )
    rows = evaluation.of_all_processes(
        (measured(x, run.method) for x in found), len(run.table)
    )
    report = make_controls_report(
        rows, run.table, run.pairing, controls, left_out, used=used, **run.measured()
    )
    report["measured_as"] = "pair"
    _write(folder / SCORES.format(0), report, run.table)
    had = [run.pairing]
    for k in range(1, setting.pairings if used else 1):
        other = run.config.copy_and_resolve_references()
        with other.unlocked():
            other.reference.seed = run.config.reference.seed + k
        pairing = parts.make_pairing(other, run.table)
        if any(same_references(pairing, one) for one in had):
            continue
        rows_k = evaluation.of_all_processes(_predicted(run, pairing), len(run.table))
        again = make_report(rows_k, run.table, pairing, **run.measured())
        again["measured_as"] = run.method
        _write(folder / SCORES.format(len(had)), again, run.table)
        had.append(pairing)
    gains = [r.scores["pair"]["psnr"] - r.scores["bicubic"]["psnr"] for r in rows]
    order = np.argsort(gains)
    keep_pictures(
        run,
        folder / PICTURES,
        aligned=TRACK_KEYS[track].get("aligned", ""),
        extremes=[int(order[0]), int(order[-1])],
        masks=setting.masks,
    )
    kept = ("dataset", "parameters", "commit", "trained_by", "device", "versions",
            "config_sha256", "uses_reference", "pairing_sha256", "protocol",
            "training", "checkpoint_step")  # fmt: skip
    return {"pairings_used": len(had)} | {k: report[k] for k in kept}


def _predicted(run: Opened, pairing: data.Pairing, **kwargs: Any) -> Any:
    return evaluation.run_split(
        run.predict, run.variables, run.table, pairing, scale=run.config.scale, **kwargs
    )


def _speed(rows: list[dict[str, Any]]) -> float | None:
    """Images per second: the harmonic mean of the reports, without the first step."""
    speeds = _speeds(rows)
    return len(speeds) / sum(1 / s for s in speeds) if speeds else None


def settled_speed(rows: list[dict[str, Any]]) -> float | None:
    """Images per second past the warm-up: the median of the later half of reports."""
    speeds = _speeds(rows)
    return statistics.median(speeds[len(speeds) // 2 :]) if speeds else None


def _speeds(rows: list[dict[str, Any]]) -> list[float]:
    speeds = [r["images_per_second"] for r in rows if r.get("images_per_second")]
    return [s for s in speeds if isinstance(s, int | float) and math.isfinite(s)]


def _write(path: Path, report: dict[str, Any], table: data.SliceTable) -> None:
    """Writes scores with what each slice is in every run, see `SliceTable`."""
    known = {"places": table.places.tolist(), "people": table.people.tolist()}
    write_atomically(path, json.dumps(report | known, allow_nan=False))
