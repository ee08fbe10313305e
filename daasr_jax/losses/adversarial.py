"""Adversarial objectives: of the discriminator D, and the generator's term.

`"bce"`: I. Goodfellow et al., "Generative adversarial nets", 2014,
https://arxiv.org/abs/1406.2661, the "standard GAN objective" of section 4.2.
`"wgan-gp"`: I. Gulrajani et al., "Improved training of Wasserstein GANs", 2017,
https://arxiv.org/abs/1704.00028; TTSR (F. Yang et al., 2020) trains with it, two
updates of D for one of the generator, a penalty of 10 and Adam's betas 0 and 0.9.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float
from optax.losses import sigmoid_binary_cross_entropy

OBJECTIVES = ("bce", "wgan-gp")


def discriminator_loss(
    objective: str,
    discriminate: Callable[[Array], Array],
    real: Float[Array, "b h w 1"],
    fake: Float[Array, "b h w 1"],
    *,
    mix: Float[Array, "b 1 1 1"],
    penalty_weight: float,
) -> tuple[Array, dict[str, Array]]:
    r"""What D minimises, with the terms it is the sum of.

    `"bce"`: :math:`-E \log\sigma(D(x)) - E \log(1 - \sigma(D(\hat x)))`, means over
    images and patches.

    `"wgan-gp"`: :math:`E D(\hat x) - E D(x) + \lambda E(\|\nabla D(\tilde x)\|_2 -
    1)^2`, where :math:`\tilde x = u x + (1 - u) \hat x`, D of an image is the mean of
    its logits, and gradient and norm are of one image.

    Args:
        objective: One of `OBJECTIVES`.
        discriminate: D, images `(B, H, W, 1)` to logits `(B, h, w, 1)`, each image on
            its own.
        real: x, HR images.
        fake: :math:`\hat x`, SR images; stop their gradient outside.
        mix: u, uniform in [0, 1], one for each image; unused by `"bce"`.
        penalty_weight: :math:`\lambda`; unused by `"bce"`.

    Returns:
        The total and its terms `real` and `fake`, with `"wgan-gp"` also `penalty` (not
        weighted); scalars of float32.

    Raises:
        ValueError: If the objective is unknown.
    """
    _check(objective)
    on_real, on_fake = discriminate(real), discriminate(fake)
    if objective == "bce":
        terms = {
            "real": _cross_entropy(on_real, 1.0),
            "fake": _cross_entropy(on_fake, 0.0),
        }
        return terms["real"] + terms["fake"], terms
    between = mix * real + (1.0 - mix) * fake
    gradient = jax.grad(
        lambda x: jnp.sum(jnp.mean(discriminate(x), axis=(1, 2, 3), dtype=jnp.float32))
    )(between)
    terms = {
        "real": -jnp.mean(on_real, dtype=jnp.float32),
        "fake": jnp.mean(on_fake, dtype=jnp.float32),
        "penalty": jnp.mean((_norm(gradient) - 1.0) ** 2),
    }
    return terms["real"] + terms["fake"] + penalty_weight * terms["penalty"], terms


def generator_loss(objective: str, logits: Float[Array, "b h w 1"]) -> Array:
    r"""The generator's adversarial term, scalar float32.

    `"bce"`: :math:`-E \log\sigma(D(\hat x))`, Goodfellow's non-saturating form;
    `"wgan-gp"`: :math:`-E D(\hat x)`.

    Args:
        objective: One of `OBJECTIVES`.
        logits: :math:`D(\hat x)` of the SR images.

    Raises:
        ValueError: If the objective is unknown.

    Example:
        >>> round(float(generator_loss("bce", jnp.zeros((1, 2, 2, 1)))), 4)
        0.6931
    """
    _check(objective)
    if objective == "bce":
        return _cross_entropy(logits, 1.0)
    return -jnp.mean(logits, dtype=jnp.float32)


def _cross_entropy(logits: Array, label: float) -> Array:
    logits = logits.astype(jnp.float32)
    return jnp.mean(sigmoid_binary_cross_entropy(logits, jnp.full_like(logits, label)))


def _norm(gradient: Array) -> Array:
    """2-norm of each image; its own gradient is 0, not infinite, at zero."""
    square = jnp.sum(gradient.astype(jnp.float32) ** 2, axis=(1, 2, 3))
    nothing = square == 0.0
    return jnp.where(nothing, 0.0, jnp.sqrt(jnp.where(nothing, 1.0, square)))


def _check(objective: str) -> None:
    if objective not in OBJECTIVES:
        known = ", ".join(OBJECTIVES)
        raise ValueError(f"objective must be one of {known}, got {objective!r}.")
