"""LPIPS, learned perceptual image patch similarity, with AlexNet or VGG-16.

Reference: R. Zhang, P. Isola, A. A. Efros, E. Shechtman and O. Wang, "The unreasonable
effectiveness of deep features as a perceptual metric", CVPR 2018,
https://arxiv.org/abs/1801.03924.
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from daasr_jax.models.lpips_backbones import SMALLEST, backbone

SHIFT = (-0.030, -0.088, -0.188)  # mean and standard deviation of ImageNet's channels
SCALE = (0.458, 0.448, 0.450)  # for images in [-1, 1], as the authors round them
EPSILON = 1e-10
_HIGHEST = lax.Precision.HIGHEST  # a metric is not computed in TF32


def lpips(
    pred: Float[Array, "b h w c"],
    target: Float[Array, "b h w c"],
    variables: dict[str, Any],
    *,
    net: str,
) -> Float[Array, " b"]:
    r"""LPIPS distance of each image, lower is better.

    :math:`\sum_l \frac{1}{H_l W_l} \sum_{h,w} \sum_c w_{lc}
    (\hat y^l_{hwc} - \hat y^l_{0,hwc})^2`, Eq. 1 of the paper with the weights as the
    authors' code applies them, after the square; the features of every position are
    divided by their norm plus 1e-10.

    Args:
        pred: Estimate in [-1, 1], not clipped; one channel (repeated to three) or RGB.
            An image in [0, 1] is mapped by 2x - 1. Computed in float32.
        target: Ground truth, same shape, at least 31x31 (`"alex"`) or 16x16 (`"vgg"`).
        variables: From `weights.lpips.load_lpips(net)`.
        net: `"alex"`, the authors' choice as a metric, or `"vgg"`. Their values are
            not comparable.

    Returns:
        float32, 0 or more; 0 where the images are equal. The derivative is not a
        number where all features of a position vanish.

    Raises:
        ValueError: If `net` is unknown, the shapes differ, the channels are neither 1
            nor 3, or the image is too small.

    Example:
        >>> from daasr_jax.weights.lpips import load_lpips
        >>> x = jnp.linspace(-1, 1, 32 * 32).reshape(1, 32, 32, 1)
        >>> variables = load_lpips("alex")
        >>> [round(float(lpips(y, x, variables, net="alex")[0]), 3) for y in (x, -x)]
        [0.0, 0.195]

    References:
        R. Zhang et al., CVPR 2018. Parity: the authors' package `lpips` 0.1 gives
        0.722 (`"alex"`) and 0.569 (`"vgg"`) for its example pair ex_ref, ex_p0.
    """
    return lpips_many(pred[None], target, variables, net=net)[0]


def lpips_many(
    preds: Float[Array, "n b h w c"],
    target: Float[Array, "b h w c"],
    variables: dict[str, Any],
    *,
    net: str,
) -> Float[Array, "n b"]:
    """`lpips` of n estimates of one target, whose features are computed once.

    Args:
        preds: Estimates, otherwise as `pred` of `lpips`.
        target, variables, net: As in `lpips`.

    Raises:
        ValueError: As `lpips`.
    """
    model = backbone(net)
    if preds.shape[1:] != target.shape:
        raise ValueError(
            f"pred is {preds.shape[1:]}, target {target.shape}: not the same."
        )
    b, h, w, c = target.shape
    if c not in (1, 3):
        raise ValueError(f"images must have 1 or 3 channels, got {c}.")
    if min(h, w) < SMALLEST[net]:
        raise ValueError(
            f"image of {h}x{w} is smaller than the {SMALLEST[net]}x{SMALLEST[net]} "
            f"that {net!r} needs."
        )
    n = len(preds)
    x = jnp.concatenate([preds, target[None]]).astype(jnp.float32)
    x = jnp.broadcast_to(x.reshape(-1, h, w, c), ((n + 1) * b, h, w, 3))
    shift, scale = (jnp.array(v).reshape(1, 1, 1, 3) for v in (SHIFT, SCALE))
    params = {"params": variables["params"]}
    features: Any = model.apply(params, (x - shift) / scale)
    total = jnp.zeros((n, b))
    for feature, head in zip(features, variables["heads"], strict=True):
        norm = jnp.sqrt(jnp.sum(feature**2, axis=-1, keepdims=True))
        unit = (feature / (norm + EPSILON)).reshape(n + 1, b, -1, feature.shape[-1])
        distance = jnp.mean((unit[:-1] - unit[-1:]) ** 2, axis=2)
        total += jnp.einsum("nbc,c->nb", distance, head, precision=_HIGHEST)
    return total
