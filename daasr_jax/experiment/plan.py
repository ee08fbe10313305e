"""The plan of a training run: data and parts, before the first step."""

from __future__ import annotations

import dataclasses
import functools
import logging
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from daasr_jax import data
from daasr_jax.errors import checked
from daasr_jax.evaluation.words import perceptual_words
from daasr_jax.experiment import parts
from daasr_jax.experiment.batch import Layout, lay_out
from daasr_jax.experiment.places import place
from daasr_jax.experiment.saved_run import load_run
from daasr_jax.runtime import devices, memory
from daasr_jax.training.settings import LoopSettings
from daasr_jax.training.state import TrainState, start_from
from daasr_jax.training.step import Step, make_train_step

log = logging.getLogger("daasr_jax")

AHEAD = 8  # batches that each worker of the data layer holds ready

Config = Any  # an ml_collections.ConfigDict, whose attributes no checker knows


@dataclasses.dataclass(frozen=True)
class Plan:
    """The parts of a training run, before its first step.

    Attributes:
        name: Of the model.
        scale: s.
        step_fn: The per-device step.
        state: The initial state.
        layout: Devices of all processes, and the images of a step on them.
        batches: Steps done -> this process's batches that follow.
        settings: Lengths and intervals.
        prepared: The data.
        samples: Number of a step, from 1 -> index in the training split of each target
            and those of its references.
        inputs: What the run is made from beside its configuration, for the record.
    """

    name: str
    scale: int
    step_fn: Step
    state: TrainState
    layout: Layout
    batches: Callable[[int], Iterable[dict[str, Any]]]
    settings: LoopSettings
    prepared: data.PreparedSet
    samples: Callable[[int], list[tuple[int, list[int]]]]
    inputs: dict[str, Any]

    @property
    def mesh(self) -> Mesh:
        """Devices of all processes."""
        return self.layout.mesh


def check_memory(config: Config, mesh: Mesh, batch: int = 0) -> None:
    """Refuses a run that no device can hold, before anything large is made.

    What is counted is less than a step takes: the parameters, their gradient and the
    optimiser's state, the outputs of all layers once, and the batches of workers.

    Args:
        config: The configuration.
        mesh: Devices of all processes.
        batch: Images of a step on all of them; 0 for `train.batch_size`.

    Raises:
        ConfigError: If the model cannot be built as configured.
        ResourceError: If there is too little memory (E612, E613).
    """
    train, scale = config.train, config.scale
    side = train.crop or config.data.size // scale
    batch = batch or train.batch_size
    share = batch // mesh.size
    model = parts.make_model(config)

    def create(lr: jax.Array, ref: jax.Array) -> Any:
        key = jax.random.key(0)
        return model.init(key, lr, ref, train=False, capture_intermediates=True)

    lr, ref = (
        jax.ShapeDtypeStruct((share // train.accumulate, n, n, 1), jnp.float32)
        for n in (side, side * scale)
    )
    made = checked(jax.eval_shape, create, lr, ref)
    optimiser, _ = parts.make_training(config, steps=1, steps_per_epoch=1)
    learned = _bytes(made["params"])
    ema = learned if train.ema_decay else 0
    state = learned + ema + _bytes(jax.eval_shape(optimiser.init, made["params"]))
    # With `remat` most are computed again, and only ends of groups are held.
    layers = 0 if config.model.kwargs.get("remat") else _bytes(made["intermediates"])
    own = len([d for d in mesh.devices.flat if d.process_index == jax.process_index()])
    together = own if jax.default_backend() == "cpu" else 1  # its devices share memory
    memory.require(
        {
            "parameters and optimiser": together * state,
            "gradient": together * learned,
            f"layers of {together * lr.shape[0]} images": together * layers,
        },
        remedy="give a larger --config.train.accumulate, a smaller --config.train."
        f"{'batch_per_device' if train.batch_per_device else 'batch_size'} or "
        "--config.train.crop, or a smaller network",
    )
    rows = len(devices.rows_of(mesh, batch))
    images = 1 + config.reference.count  # hr and its references, float32
    size = images * 4 * rows * (side * scale) ** 2
    memory.require_shared(AHEAD * train.workers * size, workers=train.workers)


def _bytes(tree: Any) -> int:
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))


def make_plan(
    config: Config, layout: Layout | None = None, *, begun: bool = False
) -> Plan:
    """Reads the data and builds the parts of a run.

    Args:
        config: The configuration.
        layout: Devices and batch; None for those of a new run.
        begun: Whether the run has checkpoints, so that its start is no longer needed.

    Raises:
        UserError: For anything a user can mend, see `daasr_jax.errors`.
    """
    model = parts.make_model(config, axis_name=devices.AXIS)
    train = config.train
    layout = layout or lay_out(config)
    check_memory(config, layout.mesh, layout.size)
    if config.degradation == "kspace" and train.crop:
        log.warning(
            "LR images are made from the k-space of training crops, which wraps around "
            "at their edges, and in an evaluation from that of whole slices: "
            "--config.train.crop=0 trains on whole slices"
        )
    vgg = parts.read_vgg(config)
    losses = parts.make_losses(config, vgg)
    start = None
    if config.train.start_from and not begun:
        start = load_run(place(config.train.start_from))
        log.info("starting from %s, step %d", config.train.start_from, start.step)
    prepared = data.prepare(parts.data_settings(config), check=jax.process_index() == 0)
    table = prepared.splits["train"]
    per_epoch = data.steps_per_epoch(table, layout.size)
    steps = train.steps or train.epochs * per_epoch
    optimiser, adversarial = parts.make_training(
        config, steps=steps, steps_per_epoch=per_epoch, rule=layout.rule
    )
    rises, _ = layout.rule.warmup(0, steps_per_epoch=per_epoch)
    if not config.optimiser.warmup_steps and rises > steps:
        log.warning(
            "the warm-up of the learning rate takes %d steps and the run has %d: give "
            "a shorter --config.optimiser.warmup_steps",
            rises,
            steps,
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
        degradation=config.degradation,
        ema_decay=train.ema_decay,
        axis=devices.AXIS,
        adversarial=adversarial,
        accumulate=train.accumulate,
    )
    settings = LoopSettings(
        steps=steps,
        steps_per_epoch=per_epoch,
        batch_size=layout.size,
        log_every=train.log_every,
        validate_every=train.validate_every or per_epoch * train.validate_every_epochs,
        checkpoint_every=train.checkpoint_every,
        watchdog=train.watchdog,
    )
    drawn = {
        "batch_size": layout.size,
        "crop": train.crop,
        "scale": config.scale,
        "steps": steps,
        "seed": config.seed,
        "track": config.reference.track,
        "exclude": config.reference.exclude,
        "aligned": config.reference.aligned,
        "shares": parts.shares(config),
        "distance_mm": config.reference.distance_mm,
        "count": config.reference.count,
        "augment": train.augment,
    }

    def samples(step: int) -> list[tuple[int, list[int]]]:
        triples, size = data.TrainingTriples(table, **drawn), layout.size
        found = [triples.draw(i) for i in range((step - 1) * size, step * size)]
        return [
            (target, [d.reference for d in refs if d.reference is not None])
            for target, refs in found
        ]

    batches = functools.partial(
        data.training_batches,
        table,
        **drawn,
        rows=devices.rows_of(layout.mesh, layout.size),
        num_threads=train.num_threads,
        workers=train.workers,
    )
    inputs = {
        "prepared_sha256": prepared.key,
        "companions_sha256": prepared.companions,
        "files_left_out": prepared.left_out,
        "perceptual": (perceptual := parts.describe_perceptual(config, vgg)),
        "perceptual_words": perceptual_words(perceptual),
        "start": source,
        "batch": layout.record(),
        "deterministic": devices.is_deterministic(),
    }
    return Plan(
        name=config.model.name,
        scale=config.scale,
        step_fn=step_fn,
        state=state,
        layout=layout,
        batches=lambda start: batches(start=start),
        settings=settings,
        prepared=prepared,
        samples=samples,
        inputs=inputs,
    )
