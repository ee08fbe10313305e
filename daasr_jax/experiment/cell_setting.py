"""What the cells of the paper's tables share, and whether the data serve them."""

from __future__ import annotations

import ast
import dataclasses
import math
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from daasr_jax import data
from daasr_jax.data.masks import Masks
from daasr_jax.errors import ConfigError, DataError, UserError
from daasr_jax.evaluation.tables.budgets import Budget
from daasr_jax.evaluation.tables.cells import NO_TRACK, ROWS, TRACKS, Cell, Trial
from daasr_jax.experiment import checks, parts
from daasr_jax.experiment.configuration import load

Config = Any  # an ml_collections.ConfigDict, whose attributes no checker knows

TRACK_KEYS = {
    # It looks at no reference, so any slice will do, and no subject is lost for it.
    NO_TRACK: {"track": "random", "exclude": "slice"},
    "random": {"track": "random"},
    "neighbour": {"track": "aligned", "aligned": "neighbour"},
    "contrast": {"track": "aligned", "aligned": "contrast"},
}
_NO_REFERENCE = ("E307", "E312")  # of the whole track
PHASES = 10  # of the paper's schedule: the rate is halved after each, section 4.2


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
        tried_on: Track of all trials of the folder; empty for `track`.
    """

    data: Config
    budget: Budget
    changes: Mapping[str, str] = dataclasses.field(default_factory=dict)
    pairings: int = 3
    masks: str = ""
    track: str = "random"
    tried_on: str = ""


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
    validations: int = 1,
) -> Config:
    """The configuration of a run of a row.

    Where the paper's schedule halves the rate, it does so after each tenth of this run,
    however long it is.

    Args:
        setting: Shared by all.
        row: Key of `ROWS`.
        scale: s.
        track: See `cells.TRACKS`.
        seed: Of the training.
        rate: Learning rate.
        steps, epochs: Of the training; the one that is not 0.
        validations: Of a run whose length is in steps.

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
        config.train.crop = crop_of(crop, config.data.size)
    config.train.crop = min(config.train.crop, config.data.size // scale)
    config.data.slice_step *= budget.sparser
    config.train.batch_size = budget.batch or config.train.batch_size
    config.optimiser.learning_rate = rate
    config.train.steps, config.train.epochs = steps, epochs or 1
    halving = (
        config.optimiser.schedule == "halving"
        and "optimiser.halve_every_epochs" not in setting.changes
    )
    if halving and not steps:
        config.optimiser.halve_every_epochs = max(1, config.train.epochs // PHASES)
    if steps:
        tenth = max(1, steps // 10)
        config.optimiser.warmup_steps = min(config.optimiser.warmup_steps, tenth)
        config.train.checkpoint_every = tenth
        config.train.log_every = min(config.train.log_every, tenth)
        if "train.validate_every_epochs" not in setting.changes:
            config.train.validate_every = math.ceil(steps / validations)
        if halving:
            ends = {max(1, steps * k // PHASES) for k in range(1, PHASES)}
            config.optimiser.schedule = "milestones"
            config.optimiser.milestones = tuple(sorted(ends))
    for key, text in setting.changes.items():
        _change(config, key, text)
    return config.lock()


def crop_of(crop: int, side: int) -> int:
    """LR crop of a row of Table 5 on slices of a side in pixels, 4 at least."""
    return max(4, round(crop * min(1.0, side / 256)))


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
