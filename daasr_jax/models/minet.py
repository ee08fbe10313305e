"""MINet: two streams on the HR grid, the reference feeding the target at every stage.

Reference: C.-M. Feng, H. Fu, S. Yuan, Y. Xu, "Multi-Contrast MRI Super-Resolution via a
Multi-Stage Integration Network", MICCAI 2021; https://github.com/chunmeifeng/MINet.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from daasr_jax.models.conv import Conv3, conv3x3
from daasr_jax.models.edsr import Upsampler
from daasr_jax.models.init import bias_init, kernel_init, linear
from daasr_jax.models.outputs import Outputs, check_scale
from daasr_jax.registry import MODELS


class AttentionBlock(nn.Module):
    """`x + a y` with y = Conv3(ReLU(Conv3(x))), a the sigmoid gate of each channel.

    The gate sees the mean of y over the image, through a hidden layer of
    max(1, C / reduction) units.
    """

    reduction: int = 16
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        """Applies the block."""
        c, dtype = x.shape[-1], self.dtype
        y = nn.relu(Conv3(features=c, dtype=dtype, name="conv1")(x))
        y = Conv3(features=c, dtype=dtype, name="conv2")(y)
        gate = jnp.mean(y, axis=(1, 2), keepdims=True)
        hidden = max(1, c // self.reduction)
        gate = nn.relu(linear(hidden, gate, dtype=dtype, name="squeeze"))
        return x + y * nn.sigmoid(linear(c, gate, dtype=dtype, name="excite"))


class ResidualGroup(nn.Module):
    """`blocks` attention blocks and a Conv3, with a skip over all."""

    blocks: int = 6
    reduction: int = 16
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        """Applies the group."""
        y = x
        for i in range(self.blocks):
            y = AttentionBlock(
                reduction=self.reduction, dtype=self.dtype, name=f"block{i}"
            )(y)
        return x + Conv3(features=x.shape[-1], dtype=self.dtype, name="conv")(y)


class LayerAttention(nn.Module):
    r"""Every map plus :math:`\gamma` times a mixture of all maps.

    With :math:`E_{nm}` the inner product of maps n and m over the whole image, the
    weights of row n are :math:`\mathrm{softmax}_m(\max_m E_{nm} - E_{nm})`: the least
    similar maps weigh most. :math:`E` is not normalised, so on images of usual size
    the softmax picks one map. :math:`\gamma` starts at 0.
    """

    @nn.compact
    def __call__(self, maps: Float[Array, "b h w n c"]) -> Float[Array, "b h w n*c"]:
        """Attends over axis n; the result has the maps one after the other."""
        gamma = self.param("gamma", nn.initializers.zeros, (), jnp.float32)
        energy = jnp.einsum(
            "bhwnc,bhwmc->bnm",
            maps,
            maps,
            precision=lax.Precision.HIGHEST,
            preferred_element_type=jnp.float32,
        )
        weights = jax.nn.softmax(-energy, axis=-1).astype(maps.dtype)
        mixed = jnp.einsum("bnm,bhwmc->bhwnc", weights, maps)
        y = maps + gamma.astype(maps.dtype) * mixed
        return y.reshape(*y.shape[:3], -1)


class ChannelSpatialAttention(nn.Module):
    r"""`x + gamma sigmoid(K * x) x`, K a 3x3x3 kernel over rows, columns, channels.

    :math:`\gamma` starts at 0. A 3x3x3 convolution of one map is a 3x3 convolution
    whose matrix of channels is banded, which is how it is computed here.
    """

    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        """Applies the gate."""
        dtype = self.dtype
        gamma = self.param("gamma", nn.initializers.zeros, (), jnp.float32)
        kernel = self.param("kernel", kernel_init, (3, 3, 3, 1, 1), jnp.float32)
        bias = self.param("bias", bias_init(27), (), jnp.float32)
        c = x.shape[-1]
        bands = jnp.stack([jnp.eye(c, k=1 - i) for i in range(3)])
        banded = jnp.einsum(
            "xyi,icd->xycd", kernel[..., 0, 0], bands, precision=lax.Precision.HIGHEST
        )
        y = conv3x3(x.astype(dtype), banded.astype(dtype)) + bias.astype(dtype)
        return x + gamma.astype(dtype) * nn.sigmoid(y) * x


@MODELS.register("minet")
class MINet(nn.Module):
    """The network: `(lr, ref) -> Outputs`, with `ref_rec` in `aux`.

    LR features are brought to the HR grid at once. Both streams run `groups` residual
    groups and a convolution; after each of these stages the target stream adds a 1x1
    convolution of both. The maps of all stages, before that addition, enter the layer
    attention. There is no alignment: a reference helps only where it is registered.

    `aux["ref_rec"] (B, H, W, 1)` float32 is the reference's own reconstruction, which
    the public training weighs 0.7 against 0.3 of the target (`multi_contrast.reference`
    and `pixel.rec`).

    The public code cannot run: its constructor raises NameError (`rgb_mean` and
    `rgb_std` of a layer that is not used), and the layer attention gives 2 (groups + 1)
    maps, 896 channels, to a convolution made for groups + 1, 448. The repair leaves out
    what no output depends on and gives that convolution its 896 channels. The public
    network is for x2; x3 (a pixel shuffle of 3) and x4 (two of 2) are an extension of
    this package. Inputs are images in [0, 1] here, normalised slices there.

    Both attentions start with gamma = 0, so at the start the kernel and the
    bias of the channel-spatial one have a zero gradient until gamma has moved.

    Attributes:
        scale: s in {2, 3, 4}.
        features: Channels.
        groups: Residual groups of each stream.
        blocks: Attention blocks in each.
        reduction: Of the channels inside the channel attention.
        axis_name: Not used; there are no batch statistics.
        dtype: Type of the computation; parameters are float32.
    """

    scale: int = 4
    features: int = 64
    groups: int = 6
    blocks: int = 6
    reduction: int = 16
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
                f"ref must have the HR size {size}, got {ref.shape[1:3]}: MINet fuses "
                "position by position."
            )
        start_ref = self._conv("ref_shallow", ref)
        up = Upsampler(scale=self.scale, dtype=self.dtype, name="upsampler")
        start = self._conv("up_out", up(self._conv("shallow", lr)))
        f_ref, f, maps_ref, maps = start_ref, start, [], []
        for i in range(self.groups + 1):
            f_ref, f = self._stage("ref_", i, f_ref), self._stage("", i, f)
            maps_ref.append(f_ref)
            maps.append(f)
            both = jnp.concatenate([f_ref, f], axis=-1)
            f = f + linear(self.features, both, dtype=self.dtype, name=f"fuse{i}")
        layers = LayerAttention(name="layers")(jnp.stack(maps_ref + maps, axis=3))
        f = ChannelSpatialAttention(dtype=self.dtype, name="gate")(f)
        f = jnp.concatenate([f, self._conv("layers_out", layers)], axis=-1)
        f_ref = ChannelSpatialAttention(dtype=self.dtype, name="ref_gate")(f_ref)
        sr = self._picture("last", self._conv("join", f) + start)
        ref_rec = self._picture("ref_last", self._conv("ref_join", f_ref) + start_ref)
        return Outputs(sr=sr, aux={"ref_rec": ref_rec})

    def _conv(self, name: str, x: Array) -> Array:
        return Conv3(features=self.features, dtype=self.dtype, name=name)(x)

    def _stage(self, prefix: str, i: int, x: Array) -> Array:
        if i == self.groups:
            return self._conv(f"{prefix}body_out", x)
        name = f"{prefix}group{i}"
        return ResidualGroup(
            blocks=self.blocks, reduction=self.reduction, dtype=self.dtype, name=name
        )(x)

    def _picture(self, name: str, x: Array) -> Array:
        return Conv3(features=1, dtype=self.dtype, name=name)(x).astype(jnp.float32)
