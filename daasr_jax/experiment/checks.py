"""What a configuration is checked for, and what it sets of the process."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import jax

from daasr_jax.data.sources import check_root
from daasr_jax.errors import ConfigError, UserError, checked
from daasr_jax.experiment.parts import data_settings, shares
from daasr_jax.experiment.places import place
from daasr_jax.metrics.ssim import WINDOW
from daasr_jax.models.lpips_backbones import SMALLEST
from daasr_jax.registry import MODELS, PARTS
from daasr_jax.resampling import DEGRADATIONS, SCALES
from daasr_jax.runtime import devices
from daasr_jax.runtime.compiled import keep_compiled
from daasr_jax.training.checkpoints import BEST_BY

Config = Any  # an ml_collections.ConfigDict, whose attributes no checker knows


def setup(config: Config) -> Config:
    """Settings of the process: checked ranges, compiled programs, precision.

    Returns:
        The configuration with the place of its data, see `place_of_data`.

    Raises:
        ConfigError: If a value, or what a variable sets of JAX, cannot be used.
        DataError: If the root of the data cannot be read (E301).
        ResourceError: If there is no device.
    """
    check_ranges(config)
    config = place_of_data(config)
    check_root(data_settings(config))
    devices.find()
    keep_compiled(_cache(config))
    checked(jax.config.update, "jax_default_matmul_precision", config.matmul_precision)
    return config


def place_of_data(config: Config) -> Config:
    """The configuration with its data root filled in, an absolute path.

    That is `data.root`, else `$DAASR_DATA`, else the folder `data.usual_root` of the
    configuration where there is one. The template needs none.

    Raises:
        ConfigError: If none of the three is given (E201).
    """
    d = config.data
    if d.layout == "template":
        return config
    root = d.root or os.environ.get("DAASR_DATA", "")
    if not root and d.usual_root and Path(d.usual_root).is_dir():
        root = d.usual_root
    if not root:
        raise ConfigError(
            "E201",
            "no data: give --config.data.root=DIR, a fastMRI folder or a folder of "
            f"NIfTI files, or set DAASR_DATA=DIR, or put the data in {d.usual_root}",
        )
    config = config.copy_and_resolve_references()
    with config.unlocked():
        config.data.root = str(place(root).absolute())
    return config.lock()


def _cache(config: Config) -> Path | None:
    """Folder of the cache; None without a home, which the data are then asked for."""
    settings = data_settings(config)
    try:
        return settings.cache_path
    except (RuntimeError, UserError):
        return None


def check_ranges(config: Config) -> None:
    """Numbers that would fail late or not at all, before the data are touched."""
    train, evaluate = config.train, config.evaluate
    least = {
        "train.log_every": (train.log_every, 1),
        "train.validate_every_epochs": (train.validate_every_epochs, 1),
        "train.validate_every": (train.validate_every, 0),
        "train.checkpoint_every": (train.checkpoint_every, 0),
        "train.steps": (train.steps, 0),
        "train.epochs": (train.epochs, 0 if train.steps else 1),
        "train.crop": (train.crop, 0),
        "adversarial.start_step": (config.adversarial.start_step, 0),
        "adversarial.updates": (config.adversarial.updates, 1),
        "train.batch_size": (train.batch_size, 1),
        "train.batch_per_device": (train.batch_per_device, 0),
        "train.devices": (train.devices, 0),
        "train.accumulate": (train.accumulate, 1),
        "train.num_threads": (train.num_threads, 0),
        "train.workers": (train.workers, 0),
        "train.watchdog": (train.watchdog, 0),
        "reference.seed": (config.reference.seed, 0),
        "reference.count": (config.reference.count, 1),
        "reference.distance_mm": (config.reference.distance_mm, 0),
        "evaluate.seed": (evaluate.seed, 0),
        "evaluate.resamples": (evaluate.resamples, 1),
    }
    for name, (value, bound) in least.items():
        if value < bound:
            raise ConfigError(
                "E210", f"config.{name} is {value}; it must be {bound} or more."
            )
    if train.batch_per_device and not train.steps and (by := _milestones(config)):
        raise ConfigError(
            "E248",
            f"config.{by}.schedule halves at steps, and with "
            "config.train.batch_per_device the number of steps follows the devices: "
            "give --config.train.steps, or another schedule.",
        )
    shares(config)
    if config.reference.count > 1 and (one := _takes_one(config)):
        raise ConfigError(
            "E217",
            f"config.reference.count is {config.reference.count}, and {one} takes one "
            "reference: give 1, or the model daasr with another alignment.",
        )
    if config.scale not in SCALES:
        raise ConfigError(
            "E210", f"config.scale is {config.scale}; it must be 2, 3, 4."
        )
    if config.degradation not in DEGRADATIONS:
        raise ConfigError(
            "E270",
            f"config.degradation is {config.degradation!r}; it must be one of "
            f"{', '.join(DEGRADATIONS)}.",
        )
    if config.model.data_consistency and config.degradation != "kspace":
        raise ConfigError(
            "E271",
            "config.model.data_consistency is true, but no sample of k-space is known "
            f"of an LR image made by {config.degradation}: give "
            "--config.degradation=kspace, or leave it false.",
        )
    if not 0 <= train.ema_decay < 1:
        raise ConfigError(
            "E210",
            f"config.train.ema_decay is {train.ema_decay}; it must be in [0, 1).",
        )
    if train.best_by not in ("auto", *BEST_BY):
        raise ConfigError(
            "E210",
            f"config.train.best_by is {train.best_by!r}; it must be auto, "
            f"{', '.join(BEST_BY)}.",
        )
    if best_rule(config)[0] == "lpips":
        check_lpips(config)
    side = config.data.size // config.scale * config.scale
    if side - 2 * metric_border(config) < WINDOW:
        raise ConfigError(
            "E210",
            f"slices of {side} pixels less a border of {metric_border(config)} are "
            f"smaller than the {WINDOW}x{WINDOW} window of SSIM; raise "
            "--config.data.size.",
        )


def _milestones(config: Config) -> str:
    """Name of the first optimiser in use whose schedule counts steps, else empty."""
    used = {"optimiser": config.optimiser}
    if config.adversarial.objective != "none":
        used["adversarial.optimiser"] = config.adversarial.optimiser
    return next((k for k, o in used.items() if o.schedule == "milestones"), "")


def _takes_one(config: Config) -> str:
    """Name of the model, or of its alignment, that takes one reference, else empty."""
    if not getattr(MODELS.get(config.model.name), "takes_several", False):
        return config.model.name
    align = config.model.kwargs.align.name
    kind = None if align == "none" else PARTS.get(align)
    return "" if getattr(kind, "takes_several", True) else align


def check_lpips(config: Config) -> None:
    """Refuses slices that are too small for the networks of LPIPS (E231)."""
    side = config.data.size // config.scale * config.scale - 2 * metric_border(config)
    if side < max(SMALLEST.values()):
        raise ConfigError(
            "E231",
            f"slices less the border have {side} pixels a side and LPIPS needs "
            f"{max(SMALLEST.values())}; raise --config.data.size or measure without.",
        )


def best_rule(config: Config) -> tuple[str, int]:
    """What the best checkpoint of a run is by, and its first step that may be.

    `auto` is the last one where the run trains what no PSNR shows, an adversarial term
    or a generator that another run has finished, else the PSNR.
    """
    adversarial = config.adversarial.objective != "none"
    rule = config.train.best_by
    if rule == "auto":
        rule = "last" if adversarial or config.train.start_from else "psnr"
    return rule, config.adversarial.start_step if adversarial else 0


def metric_border(config: Config) -> int:
    """Pixels cut off every side before the metrics: the scale unless one is given."""
    border = config.evaluate.border
    return config.scale if border < 0 else border
