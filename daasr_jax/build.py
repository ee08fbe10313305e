"""From a configuration to the parts of a run; nothing else reads a ConfigDict."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax

import daasr_jax
from daasr_jax import data
from daasr_jax.errors import CheckpointError, ConfigError, ResourceError
from daasr_jax.evaluation import run as evaluation
from daasr_jax.evaluation.panel import draw_panel, typical
from daasr_jax.evaluation.report import device_description, make_report
from daasr_jax.files import write_atomically
from daasr_jax.metrics.ssim import WINDOW
from daasr_jax.models.outputs import SuperResolutionModel
from daasr_jax.provenance import (
    commit_id,
    config_sha256,
    record_config,
    warn_of_other_model,
)
from daasr_jax.registry import LOSSES, MODELS
from daasr_jax.training import loop, parallel
from daasr_jax.training.checkpoints import Checkpoints
from daasr_jax.training.schedules import make_schedule
from daasr_jax.training.state import TrainState, create_state, generator_variables
from daasr_jax.training.step import make_train_step
from daasr_jax.training.writers import NullWriter, RunWriter

log = logging.getLogger("daasr_jax")

Config = Any  # an ml_collections.ConfigDict, whose attributes no checker knows


def train_run(config: Config, workdir: str) -> None:
    """Trains what the configuration says into `workdir`, resuming where it left off.

    Raises:
        UserError: For anything a user can mend, see `daasr_jax.errors`.
    """
    _setup(config)
    model = make_model(config, axis_name=parallel.AXIS)
    losses = make_losses(config)
    folder = _make_folder(workdir)
    prepared = data.prepare(data_settings(config))
    record_config(config.to_dict(), folder, prepared.key)
    table = prepared.splits["train"]
    train = config.train
    mesh = parallel.make_mesh(train.batch_size, train.devices)
    per_epoch = data.steps_per_epoch(table, train.batch_size)
    steps = train.steps or train.epochs * per_epoch
    schedule = _checked(
        make_schedule,
        config.optimiser.schedule,
        config.optimiser.learning_rate,
        total_steps=steps,
        steps_per_epoch=per_epoch,
        halve_every_epochs=config.optimiser.halve_every_epochs,
        warmup_steps=config.optimiser.warmup_steps,
    )
    optimiser = optax.adam(schedule, b1=config.optimiser.b1, b2=config.optimiser.b2)
    state = _checked(
        create_state,
        make_model(config),
        optimiser,
        scale=config.scale,
        crop=_init_crop(config),
        seed=config.seed,
        ema=train.ema_decay > 0,
    )
    step_fn = make_train_step(
        model,
        optimiser,
        losses,
        scale=config.scale,
        learning_rate=schedule,
        ema_decay=train.ema_decay,
        axis=parallel.AXIS,
    )
    batches = data.training_batches(
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
        process_index=jax.process_index(),
        process_count=jax.process_count(),
        num_threads=train.num_threads,
    )
    parameters = sum(x.size for x in jax.tree.leaves(state.gen))
    log.info(
        "%s x%d, %s parameters, %d steps of %d (epoch: %d steps), %s",
        config.model.name,
        config.scale,
        f"{parameters:,}",
        steps,
        train.batch_size,
        per_epoch,
        device_description(),
    )
    settings = loop.LoopSettings(
        steps=steps,
        steps_per_epoch=per_epoch,
        batch_size=train.batch_size,
        log_every=train.log_every,
        validate_every=per_epoch * train.validate_every_epochs,
        checkpoint_every=train.checkpoint_every,
    )
    checkpoints = Checkpoints(folder)
    try:
        loop.train(
            step_fn,
            state,
            iter(batches),
            mesh=mesh,
            settings=settings,
            checkpoints=checkpoints,
            writer=lambda start: (
                RunWriter(folder, start_step=start)
                if jax.process_index() == 0
                else NullWriter()
            ),
            validate=make_validation(config, prepared.splits["val"]),
        )
    finally:
        checkpoints.close()


def evaluate_run(
    config: Config, workdir: str, split: str, out: str | None
) -> tuple[dict[str, Any], Path, Path]:
    """Evaluates the best checkpoint of `workdir` on a split.

    Args:
        config: Configuration; its data and reference settings are those evaluated.
        workdir: Folder of the run.
        split: `"train"`, `"val"` or `"test"`.
        out: Result file; by default `workdir/eval_<split>.json`. The panel picture
            lies beside it with the ending `.png`.

    Returns:
        The report, and the paths of result file and picture.

    Raises:
        UserError: If data or checkpoint cannot be used.
    """
    _setup(config)
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
    model = make_model(config)
    prepared = data.prepare(data_settings(config))
    table = prepared.splits[split]
    if not len(table):
        raise ConfigError(
            "E228",
            f"the {split} split is empty; give another --split or more subjects.",
        )
    pairing = make_pairing(config, table)
    warn_of_other_model(config.to_dict(), folder)
    step, variables = _restore(config, model, folder)
    method = config.model.name
    border = metric_border(config)
    predict = evaluation.make_predict(
        model, scale=config.scale, border=border, method=method
    )

    def predictions(**kwargs: Any):
        return evaluation.run_split(
            predict, variables, table, pairing, scale=config.scale, **kwargs
        )

    rows = [
        evaluation.without_images(p)
        for p in predictions(show_progress=config.evaluate.show_progress)
    ]
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
            "device": device_description(),
            "versions": {"daasr_jax": daasr_jax.__version__, "jax": jax.__version__},
        },
    )
    chosen = typical(rows, method)
    shown = next(predictions(positions=[chosen.position]))
    picture = target.with_suffix(".png")
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


def data_settings(config: Config) -> data.DataSettings:
    """Settings of the data layer; lists are comma-separated in a configuration."""
    d = config.data

    def names(text: str) -> tuple[str, ...]:
        return tuple(x.strip() for x in text.split(",") if x.strip())

    return data.DataSettings(
        root=d.root,
        layout=d.layout,
        cache_dir=d.cache_dir,
        size=d.size,
        resize=d.resize,
        n_volumes=d.n_volumes,
        seed=config.seed,
        val_fraction=d.val_fraction,
        test_fraction=d.test_fraction,
        train_subjects=names(d.subjects.train),
        val_subjects=names(d.subjects.val),
        test_subjects=names(d.subjects.test),
        contrasts=names(d.contrasts),
        folders=names(d.folders),
        target=d.target,
        pattern=d.pattern,
        slice_axis=d.slice_axis,
        slice_range=(d.slice_first, d.slice_last),
        slice_step=d.slice_step,
        exclude=config.reference.exclude,
        track=config.reference.track,
    )


def make_model(config: Config, *, axis_name: str | None = None) -> Any:
    """The model; `axis_name` shares batch statistics over devices in training.

    Raises:
        ConfigError: If the model does not know a keyword.
    """
    return _checked(
        MODELS.get(config.model.name),
        scale=config.scale,
        axis_name=axis_name,
        dtype=_checked(jnp.dtype, config.model.dtype),
        **config.model.kwargs.to_dict(),
    )


def make_losses(config: Config) -> dict[str, tuple[float, Callable[..., Any]]]:
    """Name -> (weight, loss)."""
    return {
        name: (float(term.weight), LOSSES.get(term.name))
        for name, term in sorted(config.losses.items())
    }


def make_pairing(config: Config, table: data.SliceTable) -> data.Pairing:
    """The fixed references of a split."""
    r = config.reference
    return data.draw_pairing(
        table, track=r.track, exclude=r.exclude, aligned=r.aligned, seed=r.seed
    )


def metric_border(config: Config) -> int:
    """Pixels cut off every side before the metrics: the scale unless one is given."""
    border = config.evaluate.border
    return config.scale if border < 0 else border


def make_validation(
    config: Config, table: data.SliceTable
) -> Callable[[TrainState], dict[str, float]] | None:
    """Scores of a state on full validation slices, None where there are none."""
    if not len(table):
        log.warning(
            "no validation split: no best checkpoint is chosen, the last one counts."
        )
        return None
    model, scale, method = make_model(config), config.scale, config.model.name
    predict = evaluation.make_predict(
        model, scale=scale, border=metric_border(config), method=method
    )
    pairing = make_pairing(config, table)

    def validate(state: TrainState) -> dict[str, float]:
        variables = generator_variables(state)
        rows = evaluation.run_split(predict, variables, table, pairing, scale=scale)
        return evaluation.mean_scores(rows, method)

    return validate


def _setup(config: Config) -> None:
    _check_ranges(config)
    if config.distributed:
        _checked(jax.distributed.initialize)
    _checked(jax.config.update, "jax_default_matmul_precision", config.matmul_precision)


def _check_ranges(config: Config) -> None:
    """Numbers that would fail late or not at all, before the data are touched."""
    train, evaluate = config.train, config.evaluate
    least = {
        "train.log_every": (train.log_every, 1),
        "train.validate_every_epochs": (train.validate_every_epochs, 1),
        "train.checkpoint_every": (train.checkpoint_every, 0),
        "train.steps": (train.steps, 0),
        "train.epochs": (train.epochs, 0 if train.steps else 1),
        "train.crop": (train.crop, 0),
        "train.devices": (train.devices, 0),
        "train.num_threads": (train.num_threads, 0),
        "reference.seed": (config.reference.seed, 0),
        "evaluate.seed": (evaluate.seed, 0),
        "evaluate.resamples": (evaluate.resamples, 1),
    }
    for name, (value, bound) in least.items():
        if value < bound:
            raise ConfigError(
                "E210", f"config.{name} is {value}; it must be {bound} or more."
            )
    if config.scale not in (2, 3, 4):
        raise ConfigError(
            "E210", f"config.scale is {config.scale}; it must be 2, 3, 4."
        )
    if not 0 <= train.ema_decay < 1:
        raise ConfigError(
            "E210",
            f"config.train.ema_decay is {train.ema_decay}; it must be in [0, 1).",
        )
    side = config.data.size // config.scale * config.scale
    if side - 2 * metric_border(config) < WINDOW:
        raise ConfigError(
            "E210",
            f"slices of {side} pixels less a border of {metric_border(config)} are "
            f"smaller than the {WINDOW}x{WINDOW} window of SSIM; raise "
            "--config.data.size.",
        )


def _init_crop(config: Config) -> int:
    """Side of the LR window that shapes the parameters; they do not depend on it."""
    return config.train.crop or config.data.size // config.scale


def _make_folder(workdir: str) -> Path:
    folder = Path(workdir)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            "E209", f"--workdir={workdir} cannot be made: {error.strerror}."
        ) from None
    return folder


def _restore(config: Config, model: SuperResolutionModel, folder: Path):
    """`(step, variables)` of the best usable checkpoint."""
    ema = config.train.ema_decay > 0
    schedule = optax.constant_schedule(0.0)
    template = jax.eval_shape(
        lambda: create_state(
            model,
            optax.adam(schedule),
            scale=config.scale,
            crop=_init_crop(config),
            seed=0,
            ema=ema,
        )
    )
    checkpoints = Checkpoints(folder, read_only=True)
    try:
        step = checkpoints.best()
        if step is None:
            raise CheckpointError(
                "E403", f"{folder} holds no finished checkpoint; train into it first."
            )
        state = checkpoints.restore_state(step, _on_one_device(template))
    finally:
        checkpoints.close()
    return step, generator_variables(state)


def _on_one_device(template: Any) -> Any:
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), template
    )


def _checked(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Calls a library function whose complaint is about the configuration."""
    try:
        return function(*args, **kwargs)
    except (ValueError, TypeError, ArithmeticError, RuntimeError) as error:
        text = " ".join(str(error).split())
        raise ConfigError("E210", f"the configuration does not fit: {text}") from error
