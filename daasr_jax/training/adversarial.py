"""The adversarial part of a step: the discriminator's update and the generator's term.

Section 4.2 of the paper; both are computed from one output of the generator, first the
update, then the term with the new discriminator.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from jaxtyping import Array, Float

from daasr_jax.losses.adversarial import discriminator_loss, generator_loss


@dataclasses.dataclass(frozen=True)
class Adversarial:
    """What adversarial training adds.

    Attributes:
        discriminator: HR-sized images `(B, H, W, 1)` -> map of logits.
        optimiser: The discriminator's.
        objective: `"bce"` or `"wgan-gp"`.
        weight: lambda_adv of the generator's term.
        start_step: Steps that train without it first.
        updates: Updates of the discriminator for each of the generator.
        penalty_weight: Of the gradient penalty of `"wgan-gp"`.
    """

    discriminator: nn.Module
    optimiser: optax.GradientTransformation
    objective: str
    weight: float
    start_step: int = 0
    updates: int = 1
    penalty_weight: float = 10.0


def play(
    setting: Adversarial,
    disc: Any,
    disc_opt: Any,
    sr: Float[Array, "b h w 1"],
    hr: Float[Array, "b h w 1"],
    *,
    step: Array,
    key: Array,
    axis: str | None,
    parts: int = 1,
    rate: Float[Array, ""] | float = 1.0,
) -> tuple[Any, Any, dict[str, Array]]:
    """Updates the discriminator on `sr` and `hr`.

    Args:
        setting: Objective and optimiser.
        disc: Discriminator parameters.
        disc_opt: Its optimiser state.
        sr: The generator's output, without a gradient.
        hr: Ground truth.
        step: Updates done so far; before `start_step` nothing is computed.
        key: Random key of the step, the same on every device.
        axis: Named device axis over which gradients are averaged, or None.
        parts: Equal parts of the batch whose gradients are computed one by one.
        rate: Factor of the learning rate.

    Returns:
        The new parameters and optimiser state, and metrics under `d/`, averaged over
        `axis`.
    """

    def average(tree: Any) -> Any:
        return tree if axis is None else jax.lax.pmean(tree, axis)

    def loss(params: Any, fake: Array, real: Array, mix: Array):
        total, terms = discriminator_loss(
            setting.objective,
            lambda x: _logits(setting, params, x),
            real,
            fake,
            mix=mix,
            penalty_weight=setting.penalty_weight,
        )
        return total, terms | {"total": total}

    gradient_of = optax.microbatch(
        jax.grad(loss, has_aux=True),
        argnums=(1, 2, 3),
        microbatch_size=None if parts == 1 else hr.shape[0] // parts,
        accumulator=optax.microbatching.AccumulationType.MEAN,
    )

    def on(params: Any, state: Any, sr: Array, hr: Array):
        fake, metrics = jax.lax.stop_gradient(sr), {}
        for i in range(setting.updates):
            mix = _mix(jax.random.fold_in(key, i), hr.shape[0], axis)
            gradient, terms = average(gradient_of(params, fake, hr, mix))
            change, state = setting.optimiser.update(gradient, state, params)
            params = optax.apply_updates(params, optax.tree.scale(rate, change))
            metrics = {f"d/{name}": value for name, value in terms.items()}
            metrics["d/gradient_norm"] = optax.global_norm(gradient)
        return params, state, metrics

    if not setting.start_step:
        return on(disc, disc_opt, sr, hr)

    def off(params: Any, state: Any, sr: Array, hr: Array):
        metrics = jax.eval_shape(on, params, state, sr, hr)[2]
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), metrics)
        return params, state, zeros

    return jax.lax.cond(step >= setting.start_step, on, off, disc, disc_opt, sr, hr)


def judge(
    setting: Adversarial, disc: Any, sr: Float[Array, "b h w 1"], *, step: Array
) -> Float[Array, ""]:
    """The generator's term before its weight, 0 before `start_step`.

    Args:
        setting: Objective.
        disc: Discriminator parameters, which get no gradient.
        sr: The generator's output.
        step: Updates done so far.
    """

    def term(sr: Array) -> Array:
        params = jax.lax.stop_gradient(disc)
        return generator_loss(setting.objective, _logits(setting, params, sr))

    if not setting.start_step:
        return term(sr)
    started = step >= setting.start_step
    return jax.lax.cond(started, term, lambda _: jnp.zeros(()), sr)


def _logits(setting: Adversarial, params: Any, x: Array) -> Array:
    return setting.discriminator.apply({"params": params}, x)  # pyright: ignore


def _mix(key: Array, n: int, axis: str | None) -> Float[Array, "b 1 1 1"]:
    """This device's part of the global batch's draw: the same for any device count."""
    if axis is None:
        return jax.random.uniform(key, (n, 1, 1, 1))
    every = jax.random.uniform(key, (jax.lax.axis_size(axis) * n, 1, 1, 1))
    return jax.lax.dynamic_slice_in_dim(every, jax.lax.axis_index(axis) * n, n)
