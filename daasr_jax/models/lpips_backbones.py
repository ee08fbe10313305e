"""The networks whose features LPIPS compares: AlexNet and VGG-16."""

from __future__ import annotations

from flax import linen as nn
from jax import lax
from jaxtyping import Array, Float

from daasr_jax.models.vgg import VGG, VGG16

SMALLEST = {"alex": 31, "vgg": 16}  # side in pixels that leaves the last layer one
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


def backbone(net: str) -> nn.Module:
    """The network of `"alex"` or `"vgg"`, on images of three channels.

    Raises:
        ValueError: If `net` is unknown.
    """
    if net == "alex":
        return AlexNet()
    if net == "vgg":
        return VGG(blocks=VGG16, precision=_HIGHEST)
    raise ValueError(f"net must be 'alex' or 'vgg', got {net!r}.")
