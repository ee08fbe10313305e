"""A cell of the paper's tables: an ordinary run, trained, evaluated and summed up."""

from __future__ import annotations

import ast
import dataclasses
import gc
import json
import math
import statistics
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from daasr_jax import data
from daasr_jax.data.masks import Masks
from daasr_jax.errors import ConfigError, DataError, DivergedError, UserError
from daasr_jax.evaluation import predict as evaluation
from daasr_jax.evaluation.controls import (
    draw_controls,
    measured,
    run_controls,
    uses_reference,
)
from daasr_jax.evaluation.controls_report import make_controls_report
from daasr_jax.evaluation.report import make_report
from daasr_jax.evaluation.tables.budgets import Budget
from daasr_jax.evaluation.tables.cells import NO_TRACK, ROWS, TRACKS, Cell, Trial
from daasr_jax.experiment import checks, parts
from daasr_jax.experiment.cell_pictures import PICTURES, keep_pictures
from daasr_jax.experiment.configuration import load
from daasr_jax.experiment.opening import EvaluationRequest, Opened, open_split
from daasr_jax.experiment.record import read_record
from daasr_jax.experiment.sessions import peak_of, session
from daasr_jax.experiment.train import train_run
from daasr_jax.files import write_atomically
from daasr_jax.runtime.failures import explained
from daasr_jax.training.writers import read_log

Config = Any  # an ml_collections.ConfigDict, whose attributes no checker knows

CONTROLS = ("pair", "black", "self")
TRACK_KEYS = {
    # It looks at no reference, so any slice will do, and no subject is lost for it.
    NO_TRACK: {"track": "random", "exclude": "slice"},
    "random": {"track": "random"},
    "neighbour": {"track": "aligned", "aligned": "neighbour"},
    "contrast": {"track": "aligned", "aligned": "contrast"},
}
SCORES = "eval_pairing_{}.json"
_NO_REFERENCE = ("E307", "E312")  # of the whole track


@dataclasses.dataclass(frozen=True)
class Setting:
    """What all cells of a work folder share.

    Attributes:
        data: Configuration whose data and references all cells have.
        budget: Lengths and sizes.
        changes: Key -> value of every cell's configuration; a keyword of a network is
            left out where the network has none of that name.
        pairings: Reference pairings that are evaluated, fewer where a track has fewer.
        masks: Folder of brain masks, see `data.masks.Masks`; empty for none.
        track: The first that is asked for. A network without reference is pictured on
            slices that have one there.
    """

    data: Config
    budget: Budget
    changes: Mapping[str, str] = dataclasses.field(default_factory=dict)
    pairings: int = 3
    masks: str = ""
    track: str = "random"


def configuration(
    setting: Setting,
    row: str,
    scale: int,
    *,
    track: str,
    seed: int,
    rate: float,
    steps: int = 0,
    epochs: int = 0,
) -> Config:
    """The configuration of a run of a row.

    Args:
        setting: Shared by all.
        row: Key of `ROWS`.
        scale: s.
        track: See `cells.TRACKS`.
        seed: Of the training.
        rate: Learning rate.
        steps, epochs: Of the training; the one that is not 0.

    Raises:
        ConfigError: If a key of `changes` is none (E282).
    """
    budget = setting.budget
    config: Any = load(ROWS[row].configuration(budget.size))
    config = config.copy_and_resolve_references().unlock()
    source = setting.data.copy_and_resolve_references()
    config.data, config.reference = source.data, source.reference
    config.degradation = source.degradation
    config.reference.update(TRACK_KEYS[track])
    config.scale, config.seed = scale, seed
    config.evaluate.show_progress = False
    config.evaluate.resamples = budget.resamples
    if budget.side:
        config.data.size = budget.side
    if crop := ROWS[row].crop:
        part = min(1.0, config.data.size / 256)
        config.train.crop = max(4, round(crop * part))
    config.train.crop = min(config.train.crop, config.data.size // scale)
    config.data.slice_step *= budget.sparser
    config.train.batch_size = budget.batch or config.train.batch_size
    config.optimiser.learning_rate = rate
    config.train.steps, config.train.epochs = steps, epochs or 1
    if steps:
        tenth = max(1, steps // 10)
        config.optimiser.warmup_steps = min(config.optimiser.warmup_steps, tenth)
        config.train.checkpoint_every = tenth
        config.train.log_every = min(config.train.log_every, tenth)
    for key, text in setting.changes.items():
        _change(config, key, text)
    return config.lock()


def _change(config: Config, key: str, text: str) -> None:
    *path, name = key.split(".")
    inner = config
    for part in path:
        inner = inner.get(part) if hasattr(inner, "get") else None
        if inner is None:
            break
    if inner is None or name not in inner:
        if key.startswith("model.kwargs."):
            return
        raise ConfigError("E282", f"--set {key}: a configuration has no such key.")
    try:
        # A text stays one, such as the number of a subject.
        value = text if isinstance(inner[name], str) else ast.literal_eval(text)
    except (ValueError, SyntaxError):
        value = text
    try:
        inner[name] = value
    except TypeError as error:
        raise ConfigError("E282", f"--set {key}={text}: {error}") from None


def lacking_tracks(setting: Setting, row: str, scale: int) -> dict[str, UserError]:
    """The tracks that the data have no reference for, and why (E307, E312).

    Args:
        setting: Shared by all.
        row: That takes a reference.
        scale: s.

    Raises:
        UserError: For anything else of the data that a user can mend.
    """
    found: dict[str, UserError] = {}
    for track in TRACKS:
        try:
            _look_at_data(setting, row, scale, track)
        except DataError as error:
            if error.code not in _NO_REFERENCE:
                raise
            found[track] = error
    return found


def check_data(setting: Setting, jobs: Collection[Trial | Cell]) -> None:
    """Prepares the data of some jobs, and says what would end them after training.

    Raises:
        ConfigError: If there is no validation or no test split (E283).
        DataError: If the data, references or masks cannot be used.
        UserError: For anything else of the data that a user can mend.
    """
    for track in dict.fromkeys(job.track for job in jobs):
        job = next(job for job in jobs if job.track == track)
        prepared, settings = _look_at_data(setting, job.row, job.scale, track)
        if setting.masks:
            volumes = prepared.splits["test"].volumes.tolist()
            Masks(Path(setting.masks), prepared, settings).check(volumes)


def _look_at_data(
    setting: Setting, row: str, scale: int, track: str
) -> tuple[data.PreparedSet, data.DataSettings]:
    """The prepared data of a track, in which both splits have their references."""
    config = configuration(setting, row, scale, track=track, seed=0, rate=1.0)
    settings = parts.data_settings(checks.place_of_data(config))
    try:
        prepared = data.prepare(settings)
        for split in ("val", "test"):
            table = prepared.splits[split]
            if not len(table):
                raise ConfigError(
                    "E283",
                    f"the data have no {split} split: learning rates are chosen on "
                    "val, and tables are of test. Name the subjects of each, "
                    "--set data.subjects.train=A,B --set data.subjects.val=C "
                    "--set data.subjects.test=D,E.",
                )
            parts.make_pairing(config, table)
    except UserError as error:
        told = str(error.args[0]).replace("set --config.", "give --set ")
        told = told.replace("--config.", "--set ")
        if track != NO_TRACK and error.code != "E283":
            told = f"--tracks {track}: {told}"
        raise type(error)(error.code, told) from None
    return prepared, settings


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
    """Steps of a row in a wall time, by the fastest of its trials; None without one."""
    rates = [t["images_per_second"] / t["batch"] for t in trials
             if t["images_per_second"]]  # fmt: skip
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
    )  # fmt: skip
    with session(folder) as spent:
        with peak_of(spent):
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
        "peak_mib": spent.peak_mib,
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
        `parameters`, `uses_reference`, `pairings_used`, of which no two are alike, and
        what names the data and the code.
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
    had = [run.pairing.references]
    for k in range(1, setting.pairings if used else 1):
        other = run.config.copy_and_resolve_references()
        with other.unlocked():
            other.reference.seed = run.config.reference.seed + k
        pairing = parts.make_pairing(other, run.table)
        if any(np.array_equal(pairing.references, one) for one in had):
            continue
        rows_k = evaluation.of_all_processes(_predicted(run, pairing), len(run.table))
        again = make_report(rows_k, run.table, pairing, **run.measured())
        again["measured_as"] = run.method
        _write(folder / SCORES.format(len(had)), again, run.table)
        had.append(pairing.references)
    gains = [r.scores["pair"]["psnr"] - r.scores["bicubic"]["psnr"] for r in rows]
    order = np.argsort(gains)
    keep_pictures(
        run,
        folder / PICTURES,
        aligned=TRACK_KEYS[track].get("aligned", ""),
        extremes=[int(order[0]), int(order[-1])],
        masks=setting.masks,
    )
    kept = ("dataset", "parameters", "commit", "device", "versions", "config_sha256",
            "uses_reference", "pairing_sha256", "protocol", "training",
            "checkpoint_step")  # fmt: skip
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
