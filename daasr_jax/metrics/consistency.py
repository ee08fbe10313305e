"""Data consistency: how well an estimate explains the LR image that it is of."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float

from daasr_jax.resampling import degrade

LEAST = 1e-14  # mean square, within the rounding of float32 images


def consistency(
    sr: Float[Array, "b sh sw 1"],
    lr: Float[Array, "b h w 1"],
    *,
    degradation: str,
) -> Float[Array, "b"]:
    r"""Agreement of each degraded estimate with its LR image, in dB.

    :math:`-10 \log_{10} \mathrm{mean}\,(D\,sr - lr)^2`, with D the degradation; the
    mean runs over all LR pixels, the border too. A mean square below 1e-14 is rounding
    and counts as that: 140 dB is exact, and no value is infinite.

    Args:
        sr: Estimate, s times as large as `lr`.
        lr: What it was made from, in [0, 1] nominally.
        degradation: D, see `resampling.degrade`.

    Returns:
        dB, float32, at most 140; NaN where the estimate is.

    Example:
        >>> x = jnp.full((2, 8, 8, 1), 0.5)
        >>> lr = jnp.full((2, 4, 4, 1), 0.4)
        >>> [round(v, 2) for v in consistency(x, lr, degradation="bicubic").tolist()]
        [20.0, 20.0]
    """
    scale = sr.shape[1] // lr.shape[1]
    error = degrade(sr, scale, degradation=degradation) - lr.astype(jnp.float32)
    square = jnp.mean(error**2, axis=(-3, -2, -1))
    return -10.0 * jnp.log10(jnp.maximum(square, LEAST))
