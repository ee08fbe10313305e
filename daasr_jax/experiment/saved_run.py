"""A run that was trained: what it was made by, and its best checkpoint."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from daasr_jax.errors import CheckpointError, ConfigError
from daasr_jax.experiment import checks, parts
from daasr_jax.experiment.configuration import load
from daasr_jax.experiment.installation import command
from daasr_jax.experiment.record import RECORD, no_run, read_record
from daasr_jax.files import file_hash
from daasr_jax.runtime import devices
from daasr_jax.training.checkpoints import Checkpoints

Config = Any  # an ml_collections.ConfigDict, whose attributes no checker knows


@dataclasses.dataclass(frozen=True)
class TrainedRun:
    """The best checkpoint of a run, with the configuration it was trained by.

    Attributes:
        config: From the run's `config.json`.
        step: Of the checkpoint.
        rule: What it is the best by: a name of `checks.best_rule`.
        last_step: Of the newest checkpoint.
        variables: `params` and `batch_stats` of the generator, to evaluate.
        source: What names it in reports: hashes of configuration and checkpoint.
    """

    config: Config
    step: int
    rule: str
    last_step: int
    variables: dict[str, Any]
    source: dict[str, Any]


def open_record(folder: Path) -> dict[str, Any]:
    """`config.json` of a run of this version.

    Raises:
        CheckpointError: If there is none (E404), or a key is missing that this version
            reads (E405).
    """
    record = read_record(folder)
    if not record:
        raise no_run(folder)
    # the keys of these two are of the model and of the objective
    free = ("model.kwargs", "losses")
    wrong = next(_misfits(record["config"], load("fastmri_x4").to_dict(), free), "")
    if not wrong:
        term = {"name": "", "weight": 0.0}
        terms = record["config"]["losses"]
        wrong = next(_misfits(terms, dict.fromkeys(terms, term), (), "losses."), "")
    if wrong:
        raise CheckpointError(
            "E405",
            f"{folder / RECORD} is of another version: {wrong}; train the run again "
            "with this one.",
        )
    return record


def _misfits(
    own: dict[str, Any], like: dict[str, Any], free: tuple[str, ...], above: str = ""
) -> Iterator[str]:
    """Keys that a configuration lacks, or whose values are of another kind, in words.

    Args:
        own: A configuration of a run.
        like: One that this version reads. Where it has None, any value fits.
        free: Keys whose own keys may be any.
        above: What the keys begin with, for the words.
    """
    for key, value in like.items():
        name, found = f"{above}{key}", own.get(key)
        if key not in own:
            yield f"it has no {name}"
        elif isinstance(value, dict) and isinstance(found, dict):
            if name not in free:
                yield from _misfits(found, value, free, f"{name}.")
        elif value is not None and not isinstance(found, _fitting(value)):
            yield f"{name} is {found!r:.99}"
        elif isinstance(found, bool) != isinstance(value, bool) and value is not None:
            yield f"{name} is {found!r}"


def _fitting(value: Any) -> tuple[type, ...]:
    """The types that JSON may have for a value."""
    if isinstance(value, float):
        return (int, float)
    return (list,) if isinstance(value, tuple | list) else (type(value),)


def load_run(folder: Path) -> TrainedRun:
    """Reads a run that `train_run` made.

    Raises:
        CheckpointError: If there is none, or it has no usable checkpoint.
    """
    return restore(open_record(folder), folder)


def restore(record: dict[str, Any], folder: Path) -> TrainedRun:
    """`load_run` of a run whose record is open.

    Args:
        record: From `open_record`.
        folder: Of the run.

    Raises:
        CheckpointError: If it has no usable checkpoint.
    """
    config = ConfigDict(record["config"])
    try:
        step, last, variables = _restore(config, folder)
        rule = checks.best_rule(config)[0]
    except (AttributeError, KeyError, ConfigError) as error:
        raise CheckpointError(
            "E405", f"{folder}/config.json is of another version: {error}."
        ) from None
    source = {
        "config_sha256": record["config_sha256"],
        "checkpoint_step": step,
        "manifest_sha256": file_hash(folder / "manifests" / f"{step}.json"),
    }
    return TrainedRun(config, step, rule, last, variables, source)


def list_runs(place: Path) -> str:
    """The runs in a folder, in its folders and in those of `runs/`, a line each.

    Raises:
        ConfigError: If there is none (E224).
    """
    found = (f for part in ("", "*/", "runs/*/") for f in place.glob(part + RECORD))
    lines = []
    for folder in sorted({file.parent for file in found}):
        config = read_record(folder).get("config", {})
        like = {"name": "", "preset": "", "scale": 0, "model": {"name": ""}}
        if any(_misfits(config, like, ())):
            continue
        steps = [int(m.stem) for m in (folder / "manifests").glob("[0-9]*.json")]
        results = sorted(f.name for f in folder.glob("eval_*.json"))
        results = [name for name in results if not name.endswith(".pairing.json")]
        words = f"{config['name']}:{config['preset']}, {config['model']['name']}"
        words += f" x{config['scale']}, step {max(steps, default=0)}"
        lines.append(f"{folder}: {words}; {', '.join(results) or 'not evaluated'}")
    if not lines:
        raise ConfigError(
            "E224",
            f"no run lies in {place.resolve()} or its folder runs; give --workdir=RUN, "
            f"or train first: {command('train')} --help",
        )
    return "\n".join([*lines, f"evaluate one: {command('eval')} --workdir=RUN"])


def _restore(config: Config, folder: Path) -> tuple[int, int, dict[str, Any]]:
    """`(step, newest step, variables)`, the variables of the best checkpoint."""
    training = parts.make_training(config, steps=1, steps_per_epoch=1)
    template = jax.eval_shape(lambda: parts.make_state(config, *training))
    template = devices.replicated((template.gen, template.batch_stats))
    if not (folder / "checkpoints").is_dir():
        raise CheckpointError(
            "E403",
            f"{folder} holds no checkpoints; train into it first: {command('train')}",
        )
    checkpoints = Checkpoints(folder, read_only=True)
    try:
        step = checkpoints.best()
        if step is None:
            raise CheckpointError(
                "E403", f"{folder} holds no finished checkpoint; train into it first."
            )
        last = checkpoints.steps()[-1]
        variables = checkpoints.restore_generator(step, *template)
    finally:
        checkpoints.close()
    mesh = devices.local_mesh(config.train.devices)
    return step, last, devices.to_local(variables, mesh)
