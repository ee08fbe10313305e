"""A run that was trained: its best checkpoint and what it was made by."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from daasr_jax.errors import CheckpointError, ConfigError
from daasr_jax.experiment import parts
from daasr_jax.experiment.record import read_record
from daasr_jax.files import file_hash
from daasr_jax.runtime import devices
from daasr_jax.training.checkpoints import Checkpoints
from daasr_jax.training.state import generator_variables

Config = Any  # an ml_collections.ConfigDict, whose attributes no checker knows


@dataclasses.dataclass(frozen=True)
class TrainedRun:
    """The best checkpoint of a run, with the configuration it was trained by.

    Attributes:
        config: From the run's `config.json`.
        step: Of the checkpoint.
        variables: `params` and `batch_stats` of the generator, to evaluate.
        source: What names it in reports: hashes of configuration and checkpoint.
    """

    config: ConfigDict
    step: int
    variables: dict[str, Any]
    source: dict[str, Any]


def load_run(folder: Path) -> TrainedRun:
    """Reads a run that `train_run` made.

    Raises:
        CheckpointError: If there is none, or it has no usable checkpoint.
    """
    record = read_record(folder)
    if not record:
        raise CheckpointError("E404", f"{folder} is no run: no config.json there.")
    config = ConfigDict(record["config"])
    try:
        step, variables = restore(config, folder)
    except (AttributeError, KeyError, ConfigError) as error:
        raise CheckpointError(
            "E405", f"{folder}/config.json is of another version: {error}."
        ) from None
    source = {
        "config_sha256": record["config_sha256"],
        "checkpoint_step": step,
        "manifest_sha256": file_hash(folder / "manifests" / f"{step}.json"),
    }
    return TrainedRun(config, step, variables, source)


def restore(config: Config, folder: Path) -> tuple[int, dict[str, Any]]:
    """`(step, variables)` of the best usable checkpoint."""
    training = parts.make_training(config, steps=1, steps_per_epoch=1)
    template = jax.eval_shape(lambda: parts.make_state(config, *training))
    checkpoints = Checkpoints(folder, read_only=True)
    try:
        step = checkpoints.best()
        if step is None:
            raise CheckpointError(
                "E403", f"{folder} holds no finished checkpoint; train into it first."
            )
        state = checkpoints.restore(step, devices.replicated(template))
    finally:
        checkpoints.close()
    mesh = devices.local_mesh(config.train.devices)
    return step, devices.to_local(generator_variables(state), mesh)
