"""Grey images through networks whose official weights are for RGB."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float

# Mean of the DIV2K training images, RGB in [0, 1], which EDSR, SwinIR and HAT subtract.
DIV2K_MEAN = (0.4488, 0.4371, 0.4040)


def from_grey(x: Float[Array, "b h w 1"], channels: int) -> Float[Array, "b h w c"]:
    """The input of a network of 1 or 3 channels; the mean is subtracted for 3 only.

    Raises:
        ValueError: If `channels` is neither 1 nor 3.
    """
    if channels == 1:
        return x
    if channels != 3:
        raise ValueError(f"channels must be 1 or 3, got {channels}.")
    return jnp.repeat(x, 3, axis=-1) - jnp.asarray(DIV2K_MEAN, x.dtype).reshape(
        1, 1, 1, 3
    )


def to_grey(y: Float[Array, "b h w c"]) -> Float[Array, "b h w 1"]:
    """The picture of a network of 1 or 3 channels, float32; the average of 3."""
    y = y.astype(jnp.float32)
    if y.shape[-1] == 1:
        return y
    mean = jnp.asarray(DIV2K_MEAN, jnp.float32).reshape(1, 1, 1, 3)
    return jnp.mean(y + mean, axis=-1, keepdims=True)
