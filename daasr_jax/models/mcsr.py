"""MCSR, re-implemented: a progressive network that fuses two contrasts' features.

Reference: Q. Lyu, H. Shan, C. Steber, C. Helis, C. T. Whitlow, M. Chan, G. Wang,
"Multi-Contrast Super-Resolution MRI Through a Progressive Network", IEEE Transactions
on Medical Imaging 39(9), 2020.

No public code of it was found. This is our re-implementation from the abstract, which
tells that x2 has one level and x4 two progressive levels, and that the contrasts are
fused as high-level features and not as pixels. Layers, widths, x3 and the supervision
of the first level are our choice; a result of it is not a result of the authors.
"""

from __future__ import annotations

import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from daasr_jax.models.conv import Conv3
from daasr_jax.models.edsr import ResidualBlock
from daasr_jax.models.init import linear
from daasr_jax.models.outputs import Outputs, check_scale
from daasr_jax.registry import MODELS
from daasr_jax.resampling import downsample, upsample

_SLOPE = 0.2


class Encoder(nn.Module):
    """Conv3 and LeakyReLU(0.2), then `layers` times x + LeakyReLU(Conv3(x))."""

    features: int = 64
    layers: int = 3
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w 1"]) -> Float[Array, "b h w c"]:
        """Features of an image."""
        x = nn.leaky_relu(self._conv("shallow", x), _SLOPE)
        for i in range(self.layers):
            x = x + nn.leaky_relu(self._conv(f"layer{i}", x), _SLOPE)
        return x

    def _conv(self, name: str, x: Array) -> Array:
        return Conv3(features=self.features, dtype=self.dtype, name=name)(x)


class Level(nn.Module):
    """Image and reference of one size to the image plus a learned residual."""

    features: int = 64
    blocks: int = 8
    layers: int = 3
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, image: Float[Array, "b h w 1"], ref: Float[Array, "b h w 1"]
    ) -> Float[Array, "b h w 1"]:
        """A better picture of `image`, float32."""
        f = self._encoder("encoder")(image)
        f_ref = self._encoder("ref_encoder")(ref)
        f = jnp.concatenate([f, f_ref], axis=-1)
        f = linear(self.features, f, dtype=self.dtype, name="fuse")
        for i in range(self.blocks):
            f = ResidualBlock(dtype=self.dtype, name=f"block{i}")(f)
        y = Conv3(features=1, dtype=self.dtype, name="last")(f)
        return image + y.astype(jnp.float32)

    def _encoder(self, name: str) -> Encoder:
        return Encoder(
            features=self.features, layers=self.layers, dtype=self.dtype, name=name
        )


@MODELS.register("mcsr")
class MCSR(nn.Module):
    """The network: `(lr, ref) -> Outputs`; the module's text tells what is ours in it.

    x2 and x3: one level on the bicubic image. x4: the first level on the image enlarged
    by 2 with the reference reduced to that grid, the second on its picture enlarged by
    2 with the whole reference; they share no weights, and gradients go through both.
    There is no alignment: a reference helps only where it is registered.

    At x4 `aux["level1"] (B, 2 h, 2 w, 1)` float32 is the first level's picture
    (`multi_contrast.level1`). Elsewhere `aux` is empty.

    Attributes:
        scale: s in {2, 3, 4}.
        features: Channels.
        blocks: Residual blocks after the fusion in each level.
        layers: Convolutions with skip in each encoder.
        axis_name: Not used; there are no batch statistics.
        dtype: Type of the computation; parameters are float32.
    """

    scale: int = 4
    features: int = 64
    blocks: int = 8
    layers: int = 3
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
            lr: Low-resolution slices of the target, float32 in [0, 1], of any size.
            ref: Reference slices on the HR grid, `(B, s h, s w, 1)`, in [0, 1].
            train: Ignored; both modes are the same.

        Returns:
            `Outputs`, `aux` as above.

        Raises:
            ValueError: If `scale` is unfit or `ref` is not on the HR grid.
        """
        check_scale(self.scale)
        size = tuple(self.scale * n for n in lr.shape[1:3])
        if ref.shape[1:3] != size:
            raise ValueError(
                f"ref must have the HR size {size}, got {ref.shape[1:3]}: MCSR fuses "
                "position by position."
            )
        if self.scale != 4:
            return Outputs(
                sr=self._level("level1")(upsample(lr, self.scale), ref), aux={}
            )
        half = self._level("level1")(upsample(lr, 2), downsample(ref, 2))
        sr = self._level("level2")(upsample(half, 2), ref)
        return Outputs(sr=sr, aux={"level1": half})

    def _level(self, name: str) -> Level:
        return Level(
            features=self.features,
            blocks=self.blocks,
            layers=self.layers,
            dtype=self.dtype,
            name=name,
        )
