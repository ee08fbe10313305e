"""Structural similarity, Eq. 16, in the two windows that the field reports."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

SIGMA, K1, K2 = 1.5, 0.01, 0.03
WINDOW = 11  # side of the Gaussian window in pixels


def _window(name: str) -> tuple[np.ndarray, float]:
    """One-dimensional weights and the factor from population to sample covariance."""
    if name == "gaussian11":
        weights = np.exp(-0.5 * (np.arange(-5, 6) / SIGMA) ** 2)
        return weights / weights.sum(), 1.0
    if name == "uniform7":
        return np.full(7, 1 / 7), 49 / 48
    raise ValueError(f"window must be 'gaussian11' or 'uniform7', got {name!r}.")


def ssim(
    pred: Float[Array, "b h w 1"],
    target: Float[Array, "b h w 1"],
    *,
    data_range: float = 1.0,
    window: str = "gaussian11",
) -> Float[Array, " b"]:
    """Structural similarity of each image, over the positions the window fits.

    Args:
        pred: Estimate, in the intensity unit of `target`; computed in float32.
        target: Ground truth, same shape, at least as large as the window.
        data_range: R > 0, see `psnr`.
        window: `"gaussian11"`: Gaussian 11x11, sigma 1.5, population covariance
            (Wang et al. 2004; scikit-image with `gaussian_weights=True, sigma=1.5,
            use_sample_covariance=False`); `"uniform7"`: uniform 7x7, sample covariance
            (scikit-image's default, which fastMRI reports). K1 = 0.01, K2 = 0.03.

    Returns:
        float32 in [-1, 1].

    Raises:
        ValueError: If the window is unknown, the image is smaller than it,
            `data_range` is not positive, or the shapes differ.
    """
    if not data_range > 0:
        raise ValueError(f"data_range must be positive, got {data_range}.")
    if pred.shape != target.shape:
        raise ValueError(f"pred is {pred.shape}, target {target.shape}: not the same.")
    weights, sample = _window(window)
    if min(pred.shape[1:3]) < len(weights):
        raise ValueError(
            f"image of {pred.shape[1]}x{pred.shape[2]} is smaller than the "
            f"{len(weights)}x{len(weights)} window."
        )
    x, y = pred.astype(jnp.float32), target.astype(jnp.float32)
    # Shifting each image leaves the (co)variances alone and keeps float32 digits.
    shift_x, shift_y = (jnp.mean(z, axis=(1, 2, 3), keepdims=True) for z in (x, y))
    xs, ys = x - shift_x, y - shift_y
    mean_x, mean_y, xx, yy, xy = (
        _filter(z, weights) for z in (xs, ys, xs * xs, ys * ys, xs * ys)
    )
    var_x = sample * (xx - mean_x**2)
    var_y = sample * (yy - mean_y**2)
    cov = sample * (xy - mean_x * mean_y)
    mean_x, mean_y = mean_x + shift_x, mean_y + shift_y
    c1, c2 = (K1 * data_range) ** 2, (K2 * data_range) ** 2
    value = ((2 * mean_x * mean_y + c1) * (2 * cov + c2)) / (
        (mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2)
    )
    return jnp.mean(value, axis=(1, 2, 3))


def _filter(x: Array, weights: np.ndarray) -> Array:
    w = jnp.asarray(weights, jnp.float32)
    layout = ("NHWC", "HWIO", "NHWC")
    high = jax.lax.Precision.HIGHEST
    x = lax.conv_general_dilated(
        x,
        w.reshape(-1, 1, 1, 1),
        (1, 1),
        "VALID",
        dimension_numbers=layout,
        precision=high,
    )
    return lax.conv_general_dilated(
        x,
        w.reshape(1, -1, 1, 1),
        (1, 1),
        "VALID",
        dimension_numbers=layout,
        precision=high,
    )
