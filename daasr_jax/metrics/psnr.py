"""Peak signal-to-noise ratio, Eq. 15."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float


def psnr(
    pred: Float[Array, "*b h w c"],
    target: Float[Array, "*b h w c"],
    *,
    data_range: float = 1.0,
) -> Float[Array, "*b"]:
    r"""Peak signal-to-noise ratio of each image, in dB.

    :math:`10 \log_{10}(R^2 / \mathrm{MSE})`; the mean runs over h, w, c.

    Args:
        pred: Estimate, in the intensity unit of `target`; computed in float32.
        target: Ground truth, same shape.
        data_range: R > 0. The prepared slices are divided by the maximum of their whole
            volume, so R = 1 is fastMRI's volume maximum; it is never inferred from a
            batch.

    Returns:
        dB, float32; `inf` where the images are equal.

    Raises:
        ValueError: If `data_range` is not positive or the shapes differ.

    Example:
        >>> x = jnp.zeros((2, 4, 4, 1))
        >>> [round(v, 2) for v in psnr(x, x + 0.1).tolist()]
        [20.0, 20.0]
    """
    if not data_range > 0:
        raise ValueError(f"data_range must be positive, got {data_range}.")
    if pred.shape != target.shape:
        raise ValueError(f"pred is {pred.shape}, target {target.shape}: not the same.")
    error = pred.astype(jnp.float32) - target.astype(jnp.float32)
    return 10.0 * jnp.log10(data_range**2 / jnp.mean(error**2, axis=(-3, -2, -1)))
