"""LPIPS, learned perceptual image patch similarity, with AlexNet or VGG-16.

Reference: R. Zhang, P. Isola, A. A. Efros, E. Shechtman and O. Wang, "The unreasonable
effectiveness of deep features as a perceptual metric", CVPR 2018,
https://arxiv.org/abs/1801.03924.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax
from jaxtyping import Array, Float

from daasr_jax.models.vgg import VGG, VGG16
from daasr_jax.weights.lpips import lpips_arrays

SMALLEST = {"alex": 31, "vgg": 16}  # side in pixels that leaves the last layer one
SHIFT = (-0.030, -0.088, -0.188)  # mean and standard deviation of ImageNet's channels
SCALE = (0.458, 0.448, 0.450)  # for images in [-1, 1], as the authors round them
EPSILON = 1e-10
_HIGHEST = lax.Precision.HIGHEST  # a metric is not computed in TF32


class AlexNet(nn.Module):
    """The convolutions of AlexNet in torchvision's widths; returns its five ReLUs.

    Reference: A. Krizhevsky, "One weird trick for parallelizing convolutional neural
    networks", 2014, https://arxiv.org/abs/1404.5997.
    """

    @nn.compact
    def __call__(self, x: Float[Array, "b h w 3"]) -> tuple[Array, ...]:
        """ReLUs `(B, h_i, w_i, C_i)`, the first at about h/4, the last three at h/16.

        Args:
            x: Images after the preprocessing of the weights.
        """
        taps = []
        layers = ((64, 11, 4, 2), (192, 5, 1, 2), (384, 3, 1, 1), (256, 3, 1, 1))
        for i, (width, side, stride, padding) in enumerate((*layers, layers[-1])):
            if i in (1, 2):
                x = nn.max_pool(x, (3, 3), strides=(2, 2))
            x = nn.Conv(
                width,
                (side, side),
                strides=stride,
                padding=padding,
                precision=_HIGHEST,
                name=f"conv{i + 1}",
            )(x)
            x = nn.relu(x)
            taps.append(x)
        return tuple(taps)


def load_lpips(net: str) -> dict[str, Any]:
    """The weights of version 0.1: the backbone's and the learned heads'.

    Args:
        net: `"alex"` (2.5 M parameters) or `"vgg"` (14.7 M).

    Returns:
        `params`, nested, of the backbone and `heads`, five arrays `(C_i,)`; float32.
        Give them to a jitted function as an argument, not as constants.

    Raises:
        ValueError: If `net` is unknown.
        ConfigError: If the package with the weights cannot be used.
    """
    model = _backbone(net)
    image = jax.ShapeDtypeStruct((1, SMALLEST[net], SMALLEST[net], 3), jnp.float32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), image)["params"]
    arrays = iter(lpips_arrays(net))
    params = {
        layer: {
            name: jnp.asarray(next(arrays).reshape(shapes[layer][name].shape))
            for name in ("kernel", "bias")
        }
        for layer in sorted(shapes)
    }
    return {"params": params, "heads": tuple(jnp.asarray(x) for x in arrays)}


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
        variables: From `load_lpips(net)`.
        net: `"alex"`, the authors' choice as a metric, or `"vgg"`. Their values are
            not comparable.

    Returns:
        float32, 0 or more; 0 where the images are equal. The derivative is not a
        number where all features of a position vanish.

    Raises:
        ValueError: If `net` is unknown, the shapes differ, the channels are neither 1
            nor 3, or the image is too small.

    Example:
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
    model = _backbone(net)
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


def _backbone(net: str) -> nn.Module:
    if net == "alex":
        return AlexNet()
    if net == "vgg":
        return VGG(blocks=VGG16, precision=_HIGHEST)
    raise ValueError(f"net must be 'alex' or 'vgg', got {net!r}.")
