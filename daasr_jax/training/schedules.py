"""Learning-rate schedules, by name, and the optimiser that follows one."""

from __future__ import annotations

import jax.numpy as jnp
import optax

# Arguments of Adam that are constants, not part of its state.
_FIXED = ("b1", "b2", "eps", "eps_root", "mu_dtype", "nesterov")


def make_schedule(
    name: str,
    learning_rate: float,
    *,
    total_steps: int,
    steps_per_epoch: int,
    halve_every_epochs: int,
    warmup_steps: int = 0,
) -> optax.Schedule:
    """The schedule of a run.

    Args:
        name: `"halving"`: halved every `halve_every_epochs` epochs (the paper);
            `"cosine"`: to zero at `total_steps`; `"constant"`.
        learning_rate: Initial value.
        total_steps: Updates of the whole run.
        steps_per_epoch: Updates of an epoch.
        halve_every_epochs: Of `"halving"`.
        warmup_steps: Updates over which the rate first rises linearly, 0 for none.

    Raises:
        ValueError: If `name` is unknown or a length is out of range.
    """
    if halve_every_epochs < 1:
        raise ValueError(
            f"halve_every_epochs must be 1 or more, got {halve_every_epochs}."
        )
    if warmup_steps < 0:
        raise ValueError(f"warmup_steps must be 0 or more, got {warmup_steps}.")
    if warmup_steps:
        full = make_schedule(
            name,
            learning_rate,
            total_steps=total_steps,
            steps_per_epoch=steps_per_epoch,
            halve_every_epochs=halve_every_epochs,
        )
        return lambda step: full(step) * jnp.minimum(1.0, (step + 1) / warmup_steps)
    if name == "halving":
        every = halve_every_epochs * steps_per_epoch
        # In whole numbers: XLA divides floats by a constant as a product with its
        # rounded inverse, which puts some boundaries one step late.
        return lambda step: jnp.ldexp(
            jnp.float32(learning_rate), -(jnp.asarray(step, jnp.int32) // every)
        )
    if name == "cosine":
        return optax.cosine_decay_schedule(learning_rate, total_steps)
    if name == "constant":
        return optax.constant_schedule(learning_rate)
    raise ValueError(
        f"schedule must be 'halving', 'cosine' or 'constant', got {name!r}."
    )


def make_adam(
    schedule: optax.Schedule, *, b1: float, b2: float
) -> optax.GradientTransformation:
    """Adam (epsilon 1e-8) whose state tells the learning rate of its last update.

    The schedule counts the updates that were made: one that is skipped, or undone by
    going back to a checkpoint, is not counted.
    """
    return optax.inject_hyperparams(optax.adam, static_args=_FIXED)(
        learning_rate=schedule, b1=b1, b2=b2
    )
