"""EDSR: residual blocks without normalisation on the LR grid.

Reference: B. Lim, S. Son, H. Kim, S. Nah, K. M. Lee, "Enhanced Deep Residual Networks
for Single Image Super-Resolution", CVPR Workshops 2017. Weights:
https://github.com/XPixelGroup/BasicSR.
"""

from __future__ import annotations

import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from daasr_jax.models.colour import from_grey, to_grey
from daasr_jax.models.conv import Conv3
from daasr_jax.models.outputs import Outputs, check_scale
from daasr_jax.registry import MODELS
from daasr_jax.resampling import PIXEL_SHUFFLES, depth_to_space


class ResidualBlock(nn.Module):
    """`x + res_scale Conv3(ReLU(Conv3(x)))`, all of the channels of x.

    Attributes:
        res_scale: Weight of the branch; 0.1 keeps wide networks stable.
    """

    res_scale: float = 1.0
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        """Applies the block."""
        c = x.shape[-1]
        y = nn.relu(Conv3(features=c, dtype=self.dtype, name="conv1")(x))
        return x + self.res_scale * Conv3(features=c, dtype=self.dtype, name="conv2")(y)


class Upsampler(nn.Module):
    """Conv3 and pixel shuffle by 2 or 3, or by 2 twice; the channels stay.

    Attributes:
        scale: 2, 3 or 4.
    """

    scale: int = 4
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 c"]:
        """A map of `scale` times the size."""
        c = x.shape[-1]
        for i, factor in enumerate(PIXEL_SHUFFLES[self.scale]):
            x = Conv3(features=c * factor**2, dtype=self.dtype, name=f"up{i}")(x)
            x = depth_to_space(x, factor)
        return x


@MODELS.register("edsr")
class EDSR(nn.Module):
    """The network of the paper's baseline, M: `lr -> Outputs`; `ref` is not used.

    `aux` is empty. Convolutions start at PyTorch's default.

    Attributes:
        scale: s in {2, 3, 4}.
        features: Channels.
        blocks: Residual blocks.
        res_scale: See `ResidualBlock`.
        img_range: White inside the network: the input is multiplied by it and the
            output divided, which makes the biases small beside the image. 255 as
            published; a state dict does not tell it.
        channels: 1, or 3 to hold official RGB weights, see `colour`.
        axis_name: Not used; there are no batch statistics.
        dtype: Type of the computation; parameters are float32.
    """

    scale: int = 4
    features: int = 64
    blocks: int = 16
    res_scale: float = 1.0
    img_range: float = 255.0
    channels: int = 1
    axis_name: str | None = None
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self,
        lr: Float[Array, "b h w 1"],
        ref: Float[Array, "b h2 w2 1"],
        *,
        train: bool,
    ) -> Outputs:
        """Super-resolves `lr`.

        Args:
            lr: Low-resolution slices, float32 in [0, 1], of any size.
            ref: Ignored.
            train: Ignored; both modes are the same.

        Returns:
            `Outputs`.

        Raises:
            ValueError: If `scale`, `img_range` or `channels` is unfit.
        """
        check_scale(self.scale)
        if not self.img_range > 0:
            raise ValueError(f"img_range must be above 0, got {self.img_range}.")
        dtype = self.dtype
        x = self.img_range * from_grey(lr, self.channels)
        f0 = f = Conv3(features=self.features, dtype=dtype, name="shallow")(x)
        for i in range(self.blocks):
            f = ResidualBlock(res_scale=self.res_scale, dtype=dtype, name=f"block{i}")(
                f
            )
        f = Conv3(features=self.features, dtype=dtype, name="body_out")(f) + f0
        f = Upsampler(scale=self.scale, dtype=dtype, name="upsampler")(f)
        y = Conv3(features=self.channels, dtype=dtype, name="last")(f)
        return Outputs(sr=to_grey(y.astype(jnp.float32) / self.img_range), aux={})


@MODELS.register("edsr_l")
class EDSRL(EDSR):
    """The large network: 256 channels, 32 blocks, their branches scaled by 0.1."""

    features: int = 256
    blocks: int = 32
    res_scale: float = 0.1
