"""Learning-rate schedules and optimisers, by name."""

from __future__ import annotations

import re
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.tree_util import Partial

from daasr_jax.runtime.devices import held

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
) -> Partial:
    """The schedule of a run, step -> learning rate.

    It is a `Partial` that holds the rate and the lengths as arrays. As an argument of a
    compiled program it puts none of them into it: runs of other rates and lengths
    share one program.

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
    rate, total = np.float32(learning_rate), np.float32(total_steps)
    if name == "halving":
        every = np.int32(halve_every_epochs * steps_per_epoch)
        schedule = Partial(_halving, rate, every)
    elif name == "cosine":
        schedule = Partial(_cosine, rate, total)
    elif name == "milestones":
        if not milestones or list(milestones) != sorted(set(milestones)):
            raise ValueError(f"milestones must ascend, got {milestones}.")
        schedule = Partial(_milestones, rate, np.asarray(milestones, np.int32))
    elif name == "constant":
        schedule = Partial(_constant, rate)
    else:
        raise ValueError(
            "schedule must be 'halving', 'cosine', 'milestones' or 'constant', "
            f"got {name!r}."
        )
    if not warmup_steps:
        return schedule
    return Partial(_rising, schedule, np.float32(warmup_steps), np.float32(warmup_from))


def _halving(rate: jax.Array, every: jax.Array, step: jax.Array) -> jax.Array:
    # In whole numbers: a quotient of floats may put some boundaries one step late.
    return jnp.ldexp(rate, -(jnp.asarray(step, jnp.int32) // every))


def _cosine(rate: jax.Array, total: jax.Array, step: jax.Array) -> jax.Array:
    return rate * optax.cosine_decay_schedule(1.0, 1)(step / total)


def _milestones(rate: jax.Array, milestones: jax.Array, step: jax.Array) -> jax.Array:
    return jnp.ldexp(rate, -jnp.sum(jnp.asarray(step, jnp.int32) >= milestones))


def _constant(rate: jax.Array, step: jax.Array) -> jax.Array:
    del step
    return jnp.asarray(rate)


def _rising(
    full: Partial, steps: jax.Array, begin: jax.Array, step: jax.Array
) -> jax.Array:
    rise = 1 - begin
    return full(step) * jnp.minimum(1.0, begin + rise * ((step + 1) / steps))


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
    going back to a checkpoint, is not counted. `update` is a `Partial` with the arrays
    of the schedule, see `make_schedule`.

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

    def by(schedule: optax.Schedule) -> optax.GradientTransformation:
        return optax.inject_hyperparams(optimiser)(learning_rate=schedule)

    def update(
        schedule: Partial,
        updates: optax.Updates,
        state: optax.OptState,
        params: optax.Params | None = None,
    ) -> tuple[optax.Updates, optax.OptState]:
        return by(schedule).update(updates, state, params)

    return optax.GradientTransformation(
        by(schedule).init, Partial(update, held(schedule))
    )
