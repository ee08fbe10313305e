r"""The perceptual term of Eq. 13: MSE of VGG-19 relu3_3 features.

.. math:: \mathrm{mean}\,(\phi(x) - \phi(HR))^2 / u

:math:`\phi` is the frozen network. The paper does not say how its features are scaled,
and their magnitude differs by orders between networks and preprocessings, so the MSE is
divided by the *unit* u, the mean square of the network's own features on one fixed
image: a weight means the same whatever weights are used.

The textural term, which MCSR trains with, compares the Gram matrices of the same
features over the positions, in a unit of its own made likewise (L. Gatys et al., "Image
style transfer using convolutional neural networks", CVPR 2016).

A loss here is a `jax.tree_util.Partial`, whose leaves are the frozen weights. It is a
function `(outputs, hr, **context) -> scalar float32` as any other, and can be an
argument of a compiled program, into which it then puts no constant.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.tree_util import Partial
from jaxtyping import Array, Float

from daasr_jax.models.outputs import Outputs
from daasr_jax.models.vgg import VGG, FrozenVGG, preprocess

PICTURES = ("sat", "rec")
# By scale: mean loss with VGG-19 over that with VGG-16, both in their unit, for bicubic
# against HR, from docs/results/perceptual.md.
VGG16_FACTORS = {2: 0.127, 3: 0.186, 4: 0.222}


def relu3_3(vgg: FrozenVGG) -> Partial:
    """The frozen features: `(B, H, W, 1)` in [0, 1] -> `(B, H//4, W//4, 256)` float32.

    The weights are the leaves of the function; no gradient goes to them.
    """
    network, preprocessing = VGG(dtype=jnp.float32), vgg.preprocessing

    def features(
        params: Any, grey: Float[Array, "b h w 1"]
    ) -> Float[Array, "b h//4 w//4 256"]:
        x = preprocess(grey, preprocessing)
        return network.apply({"params": params}, x)[-1]  # pyright: ignore

    return Partial(features, vgg.params)


def calibration_image(size: int = 64) -> np.ndarray:
    r"""A smooth picture from a formula, `(1, size, size, 1)` float32, spanning [0, 1].

    The sum of :math:`\cos(2\pi n\,(x\cos n\gamma + y\sin n\gamma) + n^2)/n` for n = 1
    to 24, on the unit square, with the golden angle :math:`\gamma`: directions without
    preference and amplitudes that fall as 1/f, as in natural images.
    """
    y, x = np.meshgrid(*(2 * [np.arange(size) / size]), indexing="ij")
    golden = np.pi * (3 - 5**0.5)
    image = np.zeros((size, size))
    for n in range(1, 25):
        along = x * np.cos(n * golden) + y * np.sin(n * golden)
        image += np.cos(2 * np.pi * n * along + n**2) / n
    image = (image - image.min()) / np.ptp(image)
    return image.astype(np.float32)[None, :, :, None]


def unit(vgg: FrozenVGG) -> float:
    """Mean square of the relu3_3 features of `calibration_image`, the unit of the loss.

    Raises:
        ValueError: If it is zero or not finite: such weights are of no use.
    """
    square = _mean_square(relu3_3(vgg))
    if not 0 < square < np.inf:
        raise ValueError(f"the features of {vgg.source} have the mean square {square}.")
    return square


def _mean_square(statistic: Partial) -> float:
    """Of a statistic of `calibration_image`."""
    found = jax.jit(lambda f, x: f(x))(statistic, calibration_image())
    return float(np.mean(np.square(found, dtype=np.float64)))


def make_perceptual(vgg: FrozenVGG, picture: str, *, scale: int) -> Partial:
    """The loss `(outputs, hr, **context) -> scalar float32`, in the network's unit.

    VGG-16, the stand-in where there is no VGG-19, is multiplied by `VGG16_FACTORS`.

    Args:
        vgg: The frozen network.
        picture: `"sat"`, the text's: the picture of the SAT head, averaged over heads
            and zero where the model has none; `"rec"`: the reconstruction.
        scale: s of the super-resolution, which the stand-in's factor depends on.

    Raises:
        ValueError: If `picture`, the network or `scale` is unknown.
    """
    if picture not in PICTURES:
        raise ValueError(f"picture must be one of {PICTURES}, got {picture!r}.")
    if vgg.network not in ("vgg19", "vgg16"):
        raise ValueError(f"network must be vgg19 or vgg16, got {vgg.network!r}.")
    if scale not in VGG16_FACTORS:
        raise ValueError(f"scale must be one of {[*VGG16_FACTORS]}, got {scale}.")
    factor = VGG16_FACTORS[scale] if vgg.network == "vgg16" else 1.0
    return _compare(relu3_3(vgg), picture, factor / unit(vgg))


def gram(features: Float[Array, "b h w c"]) -> Float[Array, "b c c"]:
    r"""Gram matrix :math:`F^T F / (h w)` of each image, over its positions."""
    return jnp.einsum(
        "bhwc,bhwd->bcd", features, features, precision=lax.Precision.HIGHEST
    ) / (features.shape[1] * features.shape[2])


def make_texture(vgg: FrozenVGG, picture: str) -> Partial:
    """The textural loss: MSE of the Gram matrices of relu3_3, in the network's unit.

    Args:
        vgg: The frozen network; the stand-in has no factor here.
        picture: As in `make_perceptual`.

    Raises:
        ValueError: If `picture` is unknown.
    """
    if picture not in PICTURES:
        raise ValueError(f"picture must be one of {PICTURES}, got {picture!r}.")
    matrices = Partial(_matrices, relu3_3(vgg))
    return _compare(matrices, picture, 1 / _mean_square(matrices))


def _matrices(features: Partial, x: Float[Array, "b h w 1"]) -> Float[Array, "b c c"]:
    return gram(features(x))


def _compare(statistic: Partial, picture: str, weight: float) -> Partial:
    """`weight` times the mean squared difference of a statistic of picture and HR."""

    def loss(
        statistic: Partial, outputs: Outputs, hr: Float[Array, "b h w 1"], **_
    ) -> Array:
        if picture == "rec":
            pictures = outputs.sr
        elif picture in outputs.aux:
            pictures = outputs.aux[picture]
            pictures = pictures.reshape(-1, *pictures.shape[2:])
        else:
            return jnp.zeros((), jnp.float32)
        # Two calls: in one batch the gradient would go through the features of HR too.
        target = lax.stop_gradient(statistic(hr))
        got = statistic(pictures)
        heads = got.reshape(-1, *target.shape)
        return weight * jnp.mean((heads - target[None]) ** 2)

    return Partial(loss, statistic)
