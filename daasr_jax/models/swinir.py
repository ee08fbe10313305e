"""SwinIR: residual groups of shifted-window transformer layers on the LR grid.

Reference: J. Liang, J. Cao, G. Sun, K. Zhang, L. Van Gool, R. Timofte, "SwinIR: Image
Restoration Using Swin Transformer", ICCV Workshops 2021. Weights:
https://github.com/JingyunLiang/SwinIR.
"""

from __future__ import annotations

import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from daasr_jax.models.colour import from_grey, to_grey
from daasr_jax.models.conv import Conv3
from daasr_jax.models.outputs import Outputs, check_scale
from daasr_jax.models.swin import (
    RSTB,
    ShuffleTail,
    drop_path_rates,
    layer_norm,
    pad_to_multiple,
)
from daasr_jax.registry import MODELS
from daasr_jax.resampling import depth_to_space

_UPSAMPLERS = ("pixelshuffle", "pixelshuffledirect")


@MODELS.register("swinir")
class SwinIR(nn.Module):
    """The classical network: `lr -> Outputs`; `ref` is not used, `aux` is empty.

    Linear maps start at N(0, 0.02) with zero biases, convolutions at PyTorch's default.
    Images are reflect-padded at the bottom and the right to a multiple of the window.

    Attributes:
        scale: s in {2, 3, 4}.
        features: Channels.
        groups: Residual Swin Transformer Blocks.
        blocks: Swin layers in each.
        heads: Attention heads, which divide the features.
        window: Side of the attention windows.
        mlp_ratio: Hidden width of the MLPs over the features.
        drop_path: Rate of stochastic depth at the last layer, linear from 0.
        upsampler: `"pixelshuffle"`: `swin.ShuffleTail`; `"pixelshuffledirect"`: one
            Conv3 and pixel shuffle, the light network's.
        channels: 1, or 3 to hold official RGB weights, see `colour`.
        axis_name: Not used; there are no batch statistics.
        dtype: Type of the computation; parameters are float32.
    """

    scale: int = 4
    features: int = 180
    groups: int = 6
    blocks: int = 6
    heads: int = 6
    window: int = 8
    mlp_ratio: int = 2
    drop_path: float = 0.1
    upsampler: str = "pixelshuffle"
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
            train: Whether stochastic depth drops branches (`"dropout"` stream).

        Returns:
            `Outputs`.

        Raises:
            ValueError: If `scale`, `upsampler`, `heads` or `channels` is unfit.
        """
        check_scale(self.scale)
        if self.upsampler not in _UPSAMPLERS:
            raise ValueError(
                f"upsampler must be one of {_UPSAMPLERS}, got {self.upsampler!r}."
            )
        s, dtype = self.scale, self.dtype
        x = from_grey(pad_to_multiple(lr, self.window), self.channels)
        f0 = Conv3(features=self.features, dtype=dtype, name="shallow")(x)
        f = layer_norm(dtype, "norm_in")(f0)
        rates = drop_path_rates(self.drop_path, self.groups, self.blocks)
        for i, row in enumerate(rates):
            f = RSTB(
                blocks=self.blocks,
                heads=self.heads,
                window=self.window,
                mlp_ratio=self.mlp_ratio,
                drop_path=row,
                dtype=dtype,
                name=f"group{i}",
            )(f, train=train)
        f = layer_norm(dtype, "norm_out")(f)
        f = Conv3(features=self.features, dtype=dtype, name="body_out")(f) + f0
        if self.upsampler == "pixelshuffle":
            y = ShuffleTail(scale=s, channels=self.channels, dtype=dtype, name="tail")(
                f
            )
        else:
            y = Conv3(features=s * s * self.channels, dtype=dtype, name="up")(f)
            y = depth_to_space(y, s)
        return Outputs(sr=to_grey(y[:, : s * lr.shape[1], : s * lr.shape[2]]), aux={})


@MODELS.register("swinir_light")
class SwinIRLight(SwinIR):
    """The light network: 60 channels, four groups, one convolution to upsample."""

    features: int = 60
    groups: int = 4
    upsampler: str = "pixelshuffledirect"
