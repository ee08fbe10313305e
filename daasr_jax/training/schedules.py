"""Learning-rate schedules and optimisers, by name."""

from __future__ import annotations

import re
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import optax

OPTIMISERS = ("adam", "rmsprop", "sgd")


def make_schedule(
    name: str,
    learning_rate: float,
    *,
    total_steps: int,
    steps_per_epoch: int,
    halve_every_epochs: int,
    warmup_steps: int = 0,
    warmup_from: float = 0.0,
    milestones: Sequence[int] = (),
) -> optax.Schedule:
    """The schedule of a run.

    Args:
        name: `"halving"`: halved every `halve_every_epochs` epochs (the paper);
            `"cosine"`: to zero at `total_steps`; `"milestones"`: halved at each of
            `milestones`; `"constant"`.
        learning_rate: Initial value.
        total_steps: Updates of the whole run.
        steps_per_epoch: Updates of an epoch.
        halve_every_epochs: Of `"halving"`.
        warmup_steps: Updates over which the rate first rises linearly, 0 for none.
        warmup_from: Where that begins, as part of the rate, in [0, 1).
        milestones: Of `"milestones"`, in updates, ascending.

    Raises:
        ValueError: If `name` is unknown or a length is out of range.
    """
    if halve_every_epochs < 1:
        raise ValueError(
            f"halve_every_epochs must be 1 or more, got {halve_every_epochs}."
        )
    if warmup_steps < 0:
        raise ValueError(f"warmup_steps must be 0 or more, got {warmup_steps}.")
    if not 0 <= warmup_from < 1:
        raise ValueError(f"warmup_from must be in [0, 1), got {warmup_from}.")
    if warmup_steps:
        full = make_schedule(
            name,
            learning_rate,
            total_steps=total_steps,
            steps_per_epoch=steps_per_epoch,
            halve_every_epochs=halve_every_epochs,
            milestones=milestones,
        )
        rise = 1 - warmup_from
        return lambda step: (
            full(step)
            * jnp.minimum(1.0, warmup_from + rise * ((step + 1) / warmup_steps))
        )
    if name == "halving":
        every = halve_every_epochs * steps_per_epoch
        # In whole numbers: XLA divides floats by a constant as a product with its
        # rounded inverse, which puts some boundaries one step late.
        return lambda step: jnp.ldexp(
            jnp.float32(learning_rate), -(jnp.asarray(step, jnp.int32) // every)
        )
    if name == "cosine":
        return optax.cosine_decay_schedule(learning_rate, total_steps)
    if name == "milestones":
        if not milestones or list(milestones) != sorted(set(milestones)):
            raise ValueError(f"milestones must ascend, got {milestones}.")
        return optax.piecewise_constant_schedule(
            learning_rate, {int(step): 0.5 for step in milestones}
        )
    if name == "constant":
        return optax.constant_schedule(learning_rate)
    raise ValueError(
        "schedule must be 'halving', 'cosine', 'milestones' or 'constant', "
        f"got {name!r}."
    )


def make_optimiser(
    name: str,
    schedule: optax.Schedule,
    *,
    b1: float = 0.9,
    b2: float = 0.999,
    slow: str = "",
    slow_factor: float = 1.0,
) -> optax.GradientTransformation:
    """An optimiser whose state tells the learning rate of its last update.

    The schedule counts the updates that were made: one that is skipped, or undone by
    going back to a checkpoint, is not counted.

    Args:
        name: `"adam"` (epsilon 1e-8); `"rmsprop"`, PyTorch's: decay `b2`, epsilon 1e-8
            outside the root; `"sgd"` with momentum `b1`.
        schedule: Step -> learning rate.
        b1: Decay of the first moment.
        b2: Decay of the second moment.
        slow: Regular expression; parameters whose path (`"a/b/kernel"`) it matches
            somewhere have the learning rate times `slow_factor`. Empty for none.
        slow_factor: That factor.

    Raises:
        ValueError: If `name` is unknown or `slow` is no regular expression.
    """
    if name not in OPTIMISERS:
        raise ValueError(f"optimiser must be one of {OPTIMISERS}, got {name!r}.")
    try:
        pattern = re.compile(slow)
    except re.error as error:
        raise ValueError(f"slow={slow!r} is no regular expression: {error}.") from None

    def chosen(params: optax.Params) -> optax.Params:
        def match(path: tuple, _: jax.Array) -> bool:
            return bool(pattern.search("/".join(str(p.key) for p in path)))

        return jax.tree_util.tree_map_with_path(match, params)

    def optimiser(learning_rate: float) -> optax.GradientTransformation:
        inner = {
            "adam": lambda: optax.adam(learning_rate, b1, b2),
            "rmsprop": lambda: optax.rmsprop(learning_rate, b2, eps_in_sqrt=False),
            "sgd": lambda: optax.sgd(learning_rate, b1),
        }[name]()
        if not slow:
            return inner
        return optax.chain(inner, optax.masked(optax.scale(slow_factor), chosen))

    return optax.inject_hyperparams(optimiser)(learning_rate=schedule)
