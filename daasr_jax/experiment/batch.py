"""The batch of a run: as many images as are given, or as the devices take."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
from jax.sharding import Mesh

from daasr_jax.errors import ConfigError
from daasr_jax.runtime import devices
from daasr_jax.training.scaling import LinearRule

Config = Any  # an ml_collections.ConfigDict, whose attributes no checker knows


@dataclasses.dataclass(frozen=True)
class Layout:
    """Where the images of a step lie, and what their number does to the rates.

    Attributes:
        mesh: Devices of all processes.
        rule: The global batch, and the batch that the learning rates are given for.
        warmup: Length of the generator's warm-up, in words.
        words: All of it in one line, for the log.
    """

    mesh: Mesh
    rule: LinearRule
    warmup: str
    words: str

    @property
    def size(self) -> int:
        """The global batch."""
        return self.rule.batch

    def record(self) -> dict[str, Any]:
        """What `config.json` keeps of it."""
        return {
            "images": self.size,
            "devices": self.mesh.size,
            "rates_of": self.rule.of_rates,
            "rates_times": self.rule.factor,
            "warmup": self.warmup,
        }


def lay_out(config: Config, began: dict[str, Any] | None = None) -> Layout:
    """Chooses devices and batch.

    With `train.batch_per_device` of N > 0 the batch is N times the number of devices. A
    run that has begun keeps the batch that it began with.

    Args:
        config: The configuration.
        began: `Layout.record` of the run that goes on; None for a new run.

    Raises:
        ConfigError: If the devices cannot share the batch (E221, E222, E226, E247).
    """
    train = config.train
    follows = train.batch_per_device > 0
    batch = train.batch_size
    if follows:
        number = train.devices or jax.device_count()
        batch = began["images"] if began else train.batch_per_device * number
        if batch % number:
            raise _does_not_divide(batch, number)
    mesh = devices.make_mesh(batch, train.devices, train.accumulate)
    rule = LinearRule(batch, train.batch_size)
    each = f"{batch // mesh.size} on each of {mesh.size} devices"
    warmup = _warmup(config, rule)
    words = f"{batch} images, {each if mesh.size > 1 else 'all on one device'}"
    if follows:
        if began and began.get("devices", mesh.size) != mesh.size:
            words += f" (it began on {began['devices']})"
        words += f"; learning rates times {rule.factor:.4g}, "
        words += f"{batch} / train.batch_size={train.batch_size}; warm-up: {warmup}"
    return Layout(mesh, rule, warmup, words)


def _warmup(config: Config, rule: LinearRule) -> str:
    if given := config.optimiser.warmup_steps:
        return f"{given} steps, as given"
    return f"{rule.warmup_epochs} epochs" if rule.warmup_epochs else "none"


def _does_not_divide(batch: int, number: int) -> ConfigError:
    """The error of a run that goes on where its batch has no equal shares (E247)."""
    most, processes = min(number, jax.device_count()), jax.process_count()
    fits = max(d for d in range(1, most + 1) if batch % d == 0)
    remedy = (
        f"give --config.train.devices={fits}"
        if fits >= processes
        else f"start {fits} process(es)"
    )
    return ConfigError(
        "E247",
        f"the run began with a batch of {batch}, which it keeps and which does not "
        f"divide over {number} devices; {remedy}.",
    )
