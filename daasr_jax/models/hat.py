"""Hybrid Attention Transformer (HAT): windows, channel attention, overlapping windows.

Reference: X. Chen, X. Wang, J. Zhou, Y. Qiao, C. Dong, "Activating More Pixels in Image
Super-Resolution Transformer", CVPR 2023. Weights: https://github.com/XPixelGroup/HAT.
"""

from __future__ import annotations

import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from daasr_jax.models.colour import from_grey, to_grey
from daasr_jax.models.conv import Conv3
from daasr_jax.models.init import linear
from daasr_jax.models.outputs import Outputs, check_scale
from daasr_jax.models.swin import (
    MLP,
    RelativeBias,
    ShuffleTail,
    StochasticDepth,
    WindowAttention,
    attend,
    check_heads,
    dense,
    drop_path_rates,
    layer_norm,
    pad_to_multiple,
    window_merge,
    window_partition,
)
from daasr_jax.registry import MODELS

_CONV_SCALE = 0.01  # weight of the convolutional branch, as published


class CAB(nn.Module):
    """Channel attention block: Conv3 to C / compress, GELU, Conv3, channel attention.

    The channel attention multiplies by the sigmoid of two 1x1 maps of the global mean,
    with C / squeeze channels between; at least one there and in the bottleneck.
    """

    compress: int = 3
    squeeze: int = 30
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        """Applies the block."""
        c, dtype = x.shape[-1], self.dtype
        y = Conv3(features=max(1, c // self.compress), dtype=dtype, name="conv1")(x)
        y = Conv3(features=c, dtype=dtype, name="conv2")(nn.gelu(y, approximate=False))
        mean = jnp.mean(y, axis=(1, 2), keepdims=True, dtype=jnp.float32).astype(dtype)
        z = linear(max(1, c // self.squeeze), mean, dtype=dtype, name="squeeze")
        return y * nn.sigmoid(linear(c, nn.relu(z), dtype=dtype, name="expand"))


class HAB(nn.Module):
    """Hybrid attention block: x + attention(LN x) + 0.01 CAB(LN x), then + MLP(LN x).

    Attributes:
        heads, window, shift: See `swin.WindowAttention`.
        mlp_ratio, drop_path: See `swin.SwinLayer`; the CAB is never dropped.
        compress, squeeze: See `CAB`.
    """

    heads: int = 6
    window: int = 16
    shift: int = 0
    mlp_ratio: int = 2
    drop_path: float = 0.0
    compress: int = 3
    squeeze: int = 30
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w c"], *, train: bool
    ) -> Float[Array, "b h w c"]:
        """Applies the block."""
        y = layer_norm(self.dtype, "norm1")(x)
        local = CAB(
            compress=self.compress, squeeze=self.squeeze, dtype=self.dtype, name="cab"
        )(y)
        y = WindowAttention(
            heads=self.heads,
            window=self.window,
            shift=self.shift,
            dtype=self.dtype,
            name="attention",
        )(y)
        y = StochasticDepth(rate=self.drop_path, name="drop1")(y, train=train)
        x = x + y + local * _CONV_SCALE
        y = layer_norm(self.dtype, "norm2")(x)
        y = MLP(ratio=self.mlp_ratio, dtype=self.dtype, name="mlp")(y)
        return x + StochasticDepth(rate=self.drop_path, name="drop2")(y, train=train)


def overlapping_windows(
    x: Float[Array, "b h w c"], n: int, m: int
) -> Float[Array, "b k m2 c"]:
    """Windows of m x m positions, m <= 2n, centred on those of `window_partition`.

    Positions outside the map are zero.
    """
    b, h, w, c = x.shape
    before, after = (m - n) // 2, n - (m - n) // 2
    x = jnp.pad(x, ((0, 0), (before, after), (before, after), (0, 0)))
    # Each window is a whole n-block and the first m - n positions of the next.
    x = x.reshape(b, h // n + 1, n, w + n, c)
    x = jnp.concatenate([x[:, :-1], x[:, 1:, : m - n]], axis=2)
    x = x.reshape(b, h // n, m, w // n + 1, n, c)
    x = jnp.concatenate([x[:, :, :, :-1], x[:, :, :, 1:, : m - n]], axis=4)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(b, (h // n) * (w // n), m * m, c)


class OCAB(nn.Module):
    """Overlapping cross-attention: n x n queries, keys and values 1.5 times as wide.

    Keys and values beyond the map are zero, not masked, as published. The map must be
    a multiple of the window.

    Attributes:
        heads, window, mlp_ratio: See `HAB`.
    """

    heads: int = 6
    window: int = 16
    mlp_ratio: int = 2
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        """Applies the block."""
        _, h, w, c = x.shape
        n, m = self.window, self.window + self.window // 2
        y = layer_norm(self.dtype, "norm1")(x)
        qkv = dense(3 * c, self.dtype, "qkv")(y)
        q = window_partition(qkv[..., :c], n)
        kv = overlapping_windows(qkv[..., c:], n, m)
        head = (self.heads, c // self.heads)
        kv = kv.reshape(*kv.shape[:3], 2, *head)
        out = attend(
            q.reshape(*q.shape[:3], *head),
            kv[:, :, :, 0],
            kv[:, :, :, 1],
            RelativeBias(heads=self.heads, window=n, key_window=m, name="bias")(),
        )
        x = x + dense(c, self.dtype, "proj")(window_merge(out, n, (h, w)))
        y = layer_norm(self.dtype, "norm2")(x)
        return x + MLP(ratio=self.mlp_ratio, dtype=self.dtype, name="mlp")(y)


class RHAG(nn.Module):
    """Residual hybrid attention group: HABs, OCAB, Conv3, skip.

    Attributes:
        blocks: Number of HABs, shifted every other one by window // 2.
        heads, window, mlp_ratio, compress, squeeze: See `HAB`.
        drop_path: Rate of each HAB, `blocks` of them; empty for none.
    """

    blocks: int = 6
    heads: int = 6
    window: int = 16
    mlp_ratio: int = 2
    drop_path: tuple[float, ...] = ()
    compress: int = 3
    squeeze: int = 30
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w c"], *, train: bool
    ) -> Float[Array, "b h w c"]:
        """Applies the group to a map of whole windows."""
        y = x
        for i, rate in enumerate(self.drop_path or (0.0,) * self.blocks):
            y = HAB(
                heads=self.heads,
                window=self.window,
                shift=self.window // 2 if i % 2 else 0,
                mlp_ratio=self.mlp_ratio,
                drop_path=rate,
                compress=self.compress,
                squeeze=self.squeeze,
                dtype=self.dtype,
                name=f"block{i}",
            )(y, train=train)
        y = OCAB(
            heads=self.heads,
            window=self.window,
            mlp_ratio=self.mlp_ratio,
            dtype=self.dtype,
            name="overlap",
        )(y)
        return x + Conv3(features=x.shape[-1], dtype=self.dtype, name="conv")(y)


@MODELS.register("hat")
class HAT(nn.Module):
    """The network: `lr -> Outputs`; `ref` is not used, `aux` is empty.

    Linear maps start at N(0, 0.02) with zero biases, convolutions at PyTorch's default.
    Images are reflect-padded at the bottom and the
    right to a multiple of the window, in training too.

    Attributes:
        scale: s in {2, 3, 4}.
        features: Channels.
        groups: Residual hybrid attention groups.
        blocks: HABs in each.
        heads: Attention heads, which divide the features.
        window: Side of the windows; half of it must be even, so that the overlap is
            the same on both sides.
        mlp_ratio: Hidden width of the MLPs over the features.
        drop_path: Rate of stochastic depth at the last HAB, linear from 0.
        compress, squeeze: Bottlenecks of the CAB and of its channel attention.
        channels: 1, or 3 to hold official RGB weights, see `colour`.
        axis_name: Not used; there are no batch statistics.
        dtype: Type of the computation; parameters are float32.
    """

    scale: int = 4
    features: int = 180
    groups: int = 6
    blocks: int = 6
    heads: int = 6
    window: int = 16
    mlp_ratio: int = 2
    drop_path: float = 0.1
    compress: int = 3
    squeeze: int = 30
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
            ValueError: If `scale`, `window`, `heads` or `channels` is unfit.
        """
        check_scale(self.scale)
        check_heads(self.features, self.heads)
        if self.window < 4 or (self.window // 2) % 2:
            raise ValueError(
                f"window must have an even half (4, 8, 16), got {self.window}."
            )
        s, dtype = self.scale, self.dtype
        x = from_grey(pad_to_multiple(lr, self.window), self.channels)
        f0 = Conv3(features=self.features, dtype=dtype, name="shallow")(x)
        f = layer_norm(dtype, "norm_in")(f0)
        rates = drop_path_rates(self.drop_path, self.groups, self.blocks)
        for i, row in enumerate(rates):
            f = RHAG(
                blocks=self.blocks,
                heads=self.heads,
                window=self.window,
                mlp_ratio=self.mlp_ratio,
                drop_path=row,
                compress=self.compress,
                squeeze=self.squeeze,
                dtype=dtype,
                name=f"group{i}",
            )(f, train=train)
        f = layer_norm(dtype, "norm_out")(f)
        f = Conv3(features=self.features, dtype=dtype, name="body_out")(f) + f0
        y = ShuffleTail(scale=s, channels=self.channels, dtype=dtype, name="tail")(f)
        return Outputs(sr=to_grey(y[:, : s * lr.shape[1], : s * lr.shape[2]]), aux={})


@MODELS.register("hat_s")
class HATS(HAT):
    """The small network: 144 channels, narrower convolutional branch."""

    features: int = 144
    compress: int = 24
    squeeze: int = 24


@MODELS.register("hat_l")
class HATL(HAT):
    """The large network: twelve groups."""

    groups: int = 12
