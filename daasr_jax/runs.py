"""Whole runs: training and evaluation, from the parts that `build` makes."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import logging
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

import daasr_jax
from daasr_jax import build, data
from daasr_jax.dry_run import measure, show
from daasr_jax.errors import CheckpointError, ConfigError, ResourceError
from daasr_jax.evaluation import run as evaluation
from daasr_jax.evaluation.panel import draw_panel, typical
from daasr_jax.evaluation.report import device_description, make_report
from daasr_jax.files import write_atomically
from daasr_jax.metrics.lpips import SMALLEST, load_lpips
from daasr_jax.provenance import (
    commit_id,
    config_sha256,
    record_config,
    trained_with,
    warn_of_other_model,
)
from daasr_jax.trained import load_run, restore
from daasr_jax.training import loop, parallel
from daasr_jax.training.checkpoints import Checkpoints
from daasr_jax.training.failures import explained, reading
from daasr_jax.training.state import TrainState, generator_variables, start_from
from daasr_jax.training.step import Step, make_train_step
from daasr_jax.training.stopping import StopRequest
from daasr_jax.training.writers import NullWriter, RunWriter

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
    settings: loop.LoopSettings
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
    model = build.make_model(config, axis_name=parallel.AXIS)
    vgg = build.read_vgg(config)
    losses = build.make_losses(config, vgg)
    start = None
    if config.train.start_from and not begun:
        start = load_run(Path(config.train.start_from))
        log.info("starting from %s, step %d", config.train.start_from, start.step)
    prepared = data.prepare(build.data_settings(config))
    table = prepared.splits["train"]
    train = config.train
    mesh = parallel.make_mesh(train.batch_size, train.devices, train.accumulate)
    per_epoch = data.steps_per_epoch(table, train.batch_size)
    steps = train.steps or train.epochs * per_epoch
    optimiser, adversarial = build.make_training(
        config, steps=steps, steps_per_epoch=per_epoch
    )
    state = build.make_state(config, optimiser, adversarial)
    source = start and start.source
    if start:
        state = build.checked(start_from, state, start.variables)
    elif config.model.pretrained and not begun:
        params, source = build.pretrained_params(config, state.gen)
        variables = {"params": params, "batch_stats": state.batch_stats}
        state = build.checked(start_from, state, variables)
    step_fn = make_train_step(
        model,
        optimiser,
        losses,
        scale=config.scale,
        ema_decay=train.ema_decay,
        axis=parallel.AXIS,
        adversarial=adversarial,
        accumulate=train.accumulate,
    )
    settings = loop.LoopSettings(
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
        rows=parallel.rows_of(mesh, train.batch_size),
        num_threads=train.num_threads,
        workers=train.workers,
    )
    inputs = {
        "prepared_sha256": prepared.key,
        "perceptual": build.describe_perceptual(config, vgg),
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


@explained()
def train_run(config: Config, workdir: str) -> None:
    """Trains what the configuration says into `workdir`, resuming where it left off.

    Raises:
        UserError: For anything a user can mend, see `daasr_jax.errors`.
    """
    with StopRequest() as stop:
        build.setup(config)
        folder = _make_folder(workdir)
        with contextlib.closing(Checkpoints(folder)) as checkpoints:
            _train(config, folder, checkpoints, stop)


def _train(
    config: Config, folder: Path, checkpoints: Checkpoints, stop: StopRequest
) -> None:
    begun = checkpoints.latest() is not None
    plan = make_plan(config, begun=begun)
    record_config(config.to_dict(), folder, plan.inputs, begun=begun)
    settings = plan.settings
    log.info(
        "%s x%d, %s parameters, %d steps of %d (epoch: %d steps), %s",
        plan.name,
        plan.scale,
        f"{sum(x.size for x in jax.tree.leaves(plan.state.gen)):,}",
        settings.steps,
        settings.batch_size,
        settings.steps_per_epoch,
        device_description(),
    )
    loop.train(
        plan.step_fn,
        plan.state,
        plan.batches,
        mesh=plan.mesh,
        settings=settings,
        checkpoints=checkpoints,
        writer=lambda start: (
            RunWriter(folder, start_step=start)
            if jax.process_index() == 0
            else NullWriter()
        ),
        validate=make_validation(config, plan.prepared.splits["val"]),
        stop=stop,
    )


@explained()
def dry_run(config: Config) -> None:
    """Reads and checks the data, compiles the step, times it and prints what it needs.

    Raises:
        UserError: For anything a user can mend, see `daasr_jax.errors`.
    """
    build.setup(config)
    plan = make_plan(config)
    batches = reading(plan.batches(0))
    measured = measure(plan.step_fn, plan.state, batches, plan.mesh)
    if jax.process_index() == 0:
        show(plan, measured, device_description())


@explained()
def evaluate_run(
    config: Config, workdir: str, split: str, out: str | None, *, lpips: bool = False
) -> tuple[dict[str, Any], Path, Path]:
    """Evaluates the best checkpoint of `workdir` on a split.

    Args:
        config: Configuration; its data and reference settings are those evaluated.
        workdir: Folder of the run.
        split: `"train"`, `"val"` or `"test"`.
        out: Result file; by default `workdir/eval_<split>.json`. The panel picture
            lies beside it with the ending `.png`.
        lpips: Measure LPIPS too, with both nets.

    Returns:
        The report, and the paths of result file and picture.

    Raises:
        UserError: If data or checkpoint cannot be used.
    """
    build.setup(config)
    folder = Path(workdir)
    if not (folder / "checkpoints").is_dir():
        raise CheckpointError(
            "E403", f"{folder} holds no checkpoints; train into it first (train.py)."
        )
    if split not in ("train", "val", "test"):
        raise ConfigError("E228", f"--split must be train, val or test, got {split!r}.")
    target = Path(out) if out else folder / f"eval_{split}.json"
    if target.suffix != ".json":
        raise ConfigError("E229", f"--out must end in .json, got {target}.")
    border = build.metric_border(config)
    side = config.data.size // config.scale * config.scale - 2 * border
    if lpips and side < max(SMALLEST.values()):
        raise ConfigError(
            "E231",
            f"slices less the border have {side} pixels a side and --lpips needs "
            f"{max(SMALLEST.values())}; raise --config.data.size or leave --lpips out.",
        )
    weights = {net: load_lpips(net) for net in SMALLEST} if lpips else None
    model = build.make_model(config)
    prepared = data.prepare(build.data_settings(config))
    table = prepared.splits[split]
    if not len(table):
        raise ConfigError(
            "E228",
            f"the {split} split is empty; give another --split or more subjects.",
        )
    pairing = build.make_pairing(config, table)
    warn_of_other_model(config.to_dict(), folder)
    step, variables = restore(config, folder)
    method = config.model.name
    predict = evaluation.make_predict(
        model,
        scale=config.scale,
        border=border,
        method=method,
        lpips=weights,
        mesh=parallel.local_mesh(config.train.devices),
    )

    def predictions(**kwargs: Any):
        return evaluation.run_split(
            predict, variables, table, pairing, scale=config.scale, **kwargs
        )

    rows = evaluation.of_all_processes(
        predictions(show_progress=config.evaluate.show_progress), len(table)
    )
    commit = commit_id()
    report = make_report(
        rows,
        table,
        pairing,
        method=method,
        scale=config.scale,
        border=border,
        resamples=config.evaluate.resamples,
        seed=config.evaluate.seed,
        provenance={
            "dataset": prepared.dataset,
            "prepared_sha256": prepared.key,
            "config": config.name,
            "preset": config.preset,
            "config_sha256": config_sha256(config.to_dict()),
            "commit": commit,
            "checkpoint_step": step,
            "parameters": sum(x.size for x in jax.tree.leaves(variables["params"])),
            "training": trained_with(folder),
            "device": device_description(),
            "versions": {"daasr_jax": daasr_jax.__version__, "jax": jax.__version__},
        },
    )
    chosen = typical(rows, method)
    picture = target.with_suffix(".png")
    if jax.process_index():
        return report, target, picture
    shown = next(predictions(positions=[chosen.position]))
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(target, json.dumps(report, indent=1, allow_nan=False))
        pairing.save(target.with_suffix(".pairing.json"))
        draw_panel(
            shown,
            method=method,
            scale=config.scale,
            titles=(table.keys[shown.position], table.keys[shown.reference]),
            path=picture,
        )
    except OSError as error:
        raise ResourceError(
            "E604",
            f"cannot write beside {target}: {error.strerror}; give another --out.",
        ) from None
    return report, target, picture


def make_validation(config: Config, table: data.SliceTable) -> loop.Validate | None:
    """Scores of a state on full validation slices, None where there are none."""
    if not len(table):
        log.warning(
            "no validation split: no best checkpoint is chosen, the last one counts."
        )
        return None
    model, scale, method = build.make_model(config), config.scale, config.model.name
    mesh = parallel.local_mesh(config.train.devices)
    predict = evaluation.make_predict(
        model, scale=scale, border=build.metric_border(config), method=method, mesh=mesh
    )
    pairing = build.make_pairing(config, table)

    def validate(state: TrainState, beat: Callable[[], None]) -> dict[str, float]:
        variables = parallel.to_local(generator_variables(state), mesh)

        def rows() -> Iterator[evaluation.Prediction]:
            for row in evaluation.run_split(
                predict, variables, table, pairing, scale=scale
            ):
                beat()
                yield row

        return evaluation.mean_scores(
            evaluation.of_all_processes(rows(), len(table)), method
        )

    return validate


def _make_folder(workdir: str) -> Path:
    folder = Path(workdir)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            "E209", f"--workdir={workdir} cannot be made: {error.strerror}."
        ) from None
    return folder
