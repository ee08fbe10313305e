"""The plan of a training run: data and parts, before the first step."""

from __future__ import annotations

import dataclasses
import functools
import logging
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from daasr_jax import data
from daasr_jax.errors import checked
from daasr_jax.experiment import parts
from daasr_jax.experiment.saved_run import load_run
from daasr_jax.runtime import devices
from daasr_jax.training.settings import LoopSettings
from daasr_jax.training.state import TrainState, start_from
from daasr_jax.training.step import Step, make_train_step

log = logging.getLogger("daasr_jax")

Config = Any  # an ml_collections.ConfigDict, whose attributes no checker knows


@dataclasses.dataclass(frozen=True)
class Plan:
    """The parts of a training run, before its first step.

    Attributes:
        name: Of the model.
        scale: s.
        step_fn: The per-device step.
        state: The initial state.
        mesh: Devices of all processes.
        batches: Steps done -> this process's batches that follow.
        settings: Lengths and intervals.
        prepared: The data.
        inputs: What the run is made from beside its configuration, for the record.
    """

    name: str
    scale: int
    step_fn: Step
    state: TrainState
    mesh: Mesh
    batches: Callable[[int], Iterable[dict[str, Any]]]
    settings: LoopSettings
    prepared: data.PreparedSet
    inputs: dict[str, Any]


def make_plan(config: Config, *, begun: bool = False) -> Plan:
    """Reads the data and builds the parts of a run.

    Args:
        config: The configuration.
        begun: Whether the run has checkpoints, so that its start is no longer needed.

    Raises:
        UserError: For anything a user can mend, see `daasr_jax.errors`.
    """
    model = parts.make_model(config, axis_name=devices.AXIS)
    vgg = parts.read_vgg(config)
    losses = parts.make_losses(config, vgg)
    start = None
    if config.train.start_from and not begun:
        start = load_run(Path(config.train.start_from))
        log.info("starting from %s, step %d", config.train.start_from, start.step)
    prepared = data.prepare(parts.data_settings(config), check=jax.process_index() == 0)
    table = prepared.splits["train"]
    train = config.train
    mesh = devices.make_mesh(train.batch_size, train.devices, train.accumulate)
    per_epoch = data.steps_per_epoch(table, train.batch_size)
    steps = train.steps or train.epochs * per_epoch
    optimiser, adversarial = parts.make_training(
        config, steps=steps, steps_per_epoch=per_epoch
    )
    state = parts.make_state(config, optimiser, adversarial)
    source = start and start.source
    if start:
        state = checked(start_from, state, start.variables)
    elif config.model.pretrained and not begun:
        params, source = parts.pretrained_params(config, state.gen)
        variables = {"params": params, "batch_stats": state.batch_stats}
        state = checked(start_from, state, variables)
    step_fn = make_train_step(
        model,
        optimiser,
        losses,
        scale=config.scale,
        ema_decay=train.ema_decay,
        axis=devices.AXIS,
        adversarial=adversarial,
        accumulate=train.accumulate,
    )
    settings = LoopSettings(
        steps=steps,
        steps_per_epoch=per_epoch,
        batch_size=train.batch_size,
        log_every=train.log_every,
        validate_every=per_epoch * train.validate_every_epochs,
        checkpoint_every=train.checkpoint_every,
        watchdog=train.watchdog,
    )
    batches = functools.partial(
        data.training_batches,
        table,
        batch_size=train.batch_size,
        crop=train.crop,
        scale=config.scale,
        steps=steps,
        seed=config.seed,
        track=config.reference.track,
        exclude=config.reference.exclude,
        aligned=config.reference.aligned,
        augment=train.augment,
        rows=devices.rows_of(mesh, train.batch_size),
        num_threads=train.num_threads,
        workers=train.workers,
    )
    inputs = {
        "prepared_sha256": prepared.key,
        "perceptual": parts.describe_perceptual(config, vgg),
        "start": source,
    }
    return Plan(
        name=config.model.name,
        scale=config.scale,
        step_fn=step_fn,
        state=state,
        mesh=mesh,
        batches=lambda start: batches(start=start),
        settings=settings,
        prepared=prepared,
        inputs=inputs,
    )
