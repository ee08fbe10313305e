"""Parts of the shifted-window transformers: SwinIR, HAT, McMRSR.

Windows of n x n positions attend among themselves; every other layer moves the windows
by n/2, cyclically, and masks pairs that only the wrap-around brought together.

References:
    Z. Liu et al., "Swin Transformer: Hierarchical Vision Transformer using Shifted
    Windows", ICCV 2021. J. Liang et al., "SwinIR: Image Restoration Using Swin
    Transformer", ICCV Workshops 2021; weights: https://github.com/JingyunLiang/SwinIR.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int, Shaped

from daasr_jax.models.conv import Conv3
from daasr_jax.resampling import PIXEL_SHUFFLES, depth_to_space

_MASKED = -100.0  # added to the logits of a masked pair, as published
_TAIL = 64  # channels of `ShuffleTail`, the same in every published configuration


def pad_to_multiple(
    x: Float[Array, "b h w c"], multiple: int
) -> Float[Array, "b h2 w2 c"]:
    """Reflect padding at the bottom and the right, the border itself not repeated.

    Where the padding exceeds h - 1 or w - 1, which PyTorch refuses, the reflection is
    repeated: rows 0 1 2 go on as 1 0 1 2 1 0. A single row is repeated.

    Args:
        x: Image or map; returned as it is where the size fits.
        multiple: h2 and w2 are the next multiples of it.
    """
    bottom, right = -x.shape[1] % multiple, -x.shape[2] % multiple
    if not bottom and not right:
        return x
    return jnp.pad(x, ((0, 0), (0, bottom), (0, right), (0, 0)), mode="reflect")


def window_partition(x: Shaped[Array, "b h w c"], n: int) -> Shaped[Array, "b k m c"]:
    """Cuts a map into k = (h/n)(w/n) windows of m = n * n tokens, both row by row.

    The size must be a multiple of `n`.
    """
    b, h, w, c = x.shape
    x = x.reshape(b, h // n, n, w // n, n, c).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(b, (h // n) * (w // n), n * n, c)


def window_merge(
    x: Float[Array, "b k m c"], n: int, size: tuple[int, int]
) -> Float[Array, "b h w c"]:
    """Inverse of `window_partition`; `size` is (h, w)."""
    b, c = x.shape[0], x.shape[-1]
    h, w = size
    x = x.reshape(b, h // n, w // n, n, n, c).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(b, h, w, c)


def relative_index(n: int, m: int) -> np.ndarray:
    """Rows of a relative bias table for queries in n x n and keys in m x m windows.

    The row of query (i, j) and key (k, l) is `(i - k + m - 1) (n + m - 1) +
    (j - l + m - 1)`: Swin's order for m = n.

    Returns:
        `(n * n, m * m)` int32, every number below `(n + m - 1)**2` in use.
    """
    offset = np.arange(n)[:, None] - np.arange(m)[None, :] + m - 1
    index = offset[:, None, :, None] * (n + m - 1) + offset[None, :, None, :]
    return index.reshape(n * n, m * m).astype(np.int32)


def shift_regions(size: tuple[int, int], n: int, shift: int) -> Int[Array, "k m"]:
    """Region of every token after the cyclic shift; tokens attend within a region.

    The last window of an axis holds its own positions (region 1) and those that
    wrapped round (region 2); all others are region 0, whole. The number combines both
    axes.

    Args:
        size: (h, w) of the map, multiples of `n`. A map of one window is divided too,
            as in the public code for maps of other sizes than its training images.
        n: Window.
        shift: By how many positions the map was rolled up and left, 0 < shift < n.
    """

    def of_axis(length: int) -> Array:
        i = jnp.arange(length)
        return jnp.where(i >= length - shift, 2, jnp.where(i >= length - n, 1, 0))

    regions = 3 * of_axis(size[0])[:, None] + of_axis(size[1])[None, :]
    return window_partition(regions[None, :, :, None], n)[0, :, :, 0]


def attend(
    q: Float[Array, "b k n h d"],
    k: Float[Array, "b k m h d"],
    v: Float[Array, "b k m h d"],
    bias: Float[Array, "h n m"],
    regions: Int[Array, "k n"] | None = None,
) -> Float[Array, "b k n c"]:
    """softmax(q k^T / sqrt(d) + bias) v of every window and head, heads side by side.

    Logits and softmax are float32 whatever the type of `v`.

    Args:
        q, k, v: Tokens of k windows, h heads of d channels.
        bias: Relative position bias.
        regions: See `shift_regions`; tokens of different regions are masked.
    """
    b, windows, n, heads, d = q.shape
    logits = jnp.einsum(
        "bwnhd,bwmhd->bwhnm", q * d**-0.5, k, preferred_element_type=jnp.float32
    )
    logits = logits + bias[None, None]
    if regions is not None:
        apart = regions[:, :, None] != regions[:, None, :]
        logits = logits + jnp.where(apart, _MASKED, 0.0)[None, :, None]
    weights = jax.nn.softmax(logits, axis=-1).astype(v.dtype)
    out = jnp.einsum("bwhnm,bwmhd->bwnhd", weights, v)
    return out.reshape(b, windows, n, heads * d)


def dense(features: int, dtype: DTypeLike, name: str) -> nn.Dense:
    """Linear map with the published initial weights: N(0, 0.02), zero bias.

    The published truncation is at +-2, a hundred standard deviations.
    """
    init = nn.initializers.normal(0.02)
    return nn.Dense(features, dtype=dtype, kernel_init=init, name=name)


def layer_norm(dtype: DTypeLike, name: str) -> nn.LayerNorm:
    """PyTorch's layer norm over the channels."""
    return nn.LayerNorm(epsilon=1e-5, use_fast_variance=False, dtype=dtype, name=name)


class RelativeBias(nn.Module):
    """Learned bias of every head for every offset of query and key.

    Attributes:
        heads: Heads h.
        window: Queries' window n.
        key_window: Keys' window m, 0 for n.
    """

    heads: int
    window: int
    key_window: int = 0

    @nn.compact
    def __call__(self) -> Float[Array, "h n2 m2"]:
        """The bias, float32."""
        n, m = self.window, self.key_window or self.window
        shape = ((n + m - 1) ** 2, self.heads)
        table = self.param("table", nn.initializers.normal(0.02), shape, jnp.float32)
        return table[relative_index(n, m)].transpose(2, 0, 1)


class StochasticDepth(nn.Module):
    """Drops a branch for whole images, with probability `rate`, in training only.

    What stays is divided by 1 - rate. Draws from the `"dropout"` stream where
    `rate` > 0; one draw for each image and call.
    """

    rate: float

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w c"], *, train: bool
    ) -> Float[Array, "b h w c"]:
        """Applies it to the output of a residual branch."""
        if not train or self.rate <= 0:
            return x
        keep = 1 - self.rate
        shape = (x.shape[0], 1, 1, 1)
        kept = jax.random.bernoulli(self.make_rng("dropout"), keep, shape)
        return jnp.where(kept, x / keep, jnp.zeros_like(x))


class MLP(nn.Module):
    """Linear, GELU (exact), linear, at every position; hidden width `ratio` * c."""

    ratio: int = 2
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        """Applies the layers."""
        c = x.shape[-1]
        y = nn.gelu(dense(self.ratio * c, self.dtype, "in")(x), approximate=False)
        return dense(c, self.dtype, "out")(y)


class WindowAttention(nn.Module):
    """Multi-head self-attention within (shifted) windows of a map of any size.

    The map is reflect-padded to whole windows and the result is cropped; parameters
    do not depend on the size. The shift and its mask apply to maps of a single window
    too: the public code leaves them out only if the image size it was built for is not
    above the window, which no published configuration does.

    Attributes:
        heads: Heads, which divide the channels.
        window: Window n.
        shift: 0, or by how much the windows move (n // 2).
    """

    heads: int = 6
    window: int = 8
    shift: int = 0
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        """Applies the attention.

        Raises:
            ValueError: If channels do not divide into heads, or the shift is outside
                0 to window - 1.
        """
        _, h, w, c = x.shape
        n, shift = self.window, self.shift
        check_heads(c, self.heads)
        if not 0 <= shift < n:
            raise ValueError(f"shift must be from 0 to {n - 1}, got {shift}.")
        x = pad_to_multiple(x, n)
        size = x.shape[1], x.shape[2]
        if shift:
            x = jnp.roll(x, (-shift, -shift), axis=(1, 2))
        tokens = window_partition(x, n)
        qkv = dense(3 * c, self.dtype, "qkv")(tokens)
        qkv = qkv.reshape(*tokens.shape[:3], 3, self.heads, c // self.heads)
        out = attend(
            qkv[:, :, :, 0],
            qkv[:, :, :, 1],
            qkv[:, :, :, 2],
            RelativeBias(heads=self.heads, window=n, name="bias")(),
            shift_regions(size, n, shift) if shift else None,
        )
        out = window_merge(dense(c, self.dtype, "proj")(out), n, size)
        if shift:
            out = jnp.roll(out, (shift, shift), axis=(1, 2))
        return out[:, :h, :w]


class SwinLayer(nn.Module):
    """x + attention(LN x), then x + MLP(LN x), on a map of any size.

    Attributes:
        heads, window, shift: See `WindowAttention`.
        mlp_ratio: Hidden width of the MLP over the channels.
        drop_path: Rate of stochastic depth, for both branches.
    """

    heads: int = 6
    window: int = 8
    shift: int = 0
    mlp_ratio: int = 2
    drop_path: float = 0.0
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w c"], *, train: bool
    ) -> Float[Array, "b h w c"]:
        """Applies the layer; needs a `"dropout"` key if `train` and `drop_path`."""
        y = layer_norm(self.dtype, "norm1")(x)
        y = WindowAttention(
            heads=self.heads,
            window=self.window,
            shift=self.shift,
            dtype=self.dtype,
            name="attention",
        )(y)
        x = x + StochasticDepth(rate=self.drop_path, name="drop1")(y, train=train)
        y = layer_norm(self.dtype, "norm2")(x)
        y = MLP(ratio=self.mlp_ratio, dtype=self.dtype, name="mlp")(y)
        return x + StochasticDepth(rate=self.drop_path, name="drop2")(y, train=train)


class RSTB(nn.Module):
    """Residual Swin Transformer Block: Swin layers, Conv3, skip.

    Attributes:
        blocks: Number of layers, shifted every other one by window // 2.
        heads, window, mlp_ratio: See `SwinLayer`.
        drop_path: Rate of each layer, `blocks` of them; empty for none.
    """

    blocks: int = 6
    heads: int = 6
    window: int = 8
    mlp_ratio: int = 2
    drop_path: tuple[float, ...] = ()
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w c"], *, train: bool
    ) -> Float[Array, "b h w c"]:
        """Applies the group."""
        y = x
        for i, rate in enumerate(self.drop_path or (0.0,) * self.blocks):
            y = SwinLayer(
                heads=self.heads,
                window=self.window,
                shift=self.window // 2 if i % 2 else 0,
                mlp_ratio=self.mlp_ratio,
                drop_path=rate,
                dtype=self.dtype,
                name=f"layer{i}",
            )(y, train=train)
        return x + Conv3(features=x.shape[-1], dtype=self.dtype, name="conv")(y)


class ShuffleTail(nn.Module):
    """Conv3 to 64, LeakyReLU(0.01), Conv3 and pixel shuffle by 2, 3 or 2 twice, Conv3.

    Attributes:
        scale: 2, 3 or 4.
        channels: Of the picture.
    """

    scale: int = 4
    channels: int = 1
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 d"]:
        """Features to a picture of `scale` times the size."""
        y = nn.leaky_relu(
            Conv3(features=_TAIL, dtype=self.dtype, name="before")(x), 0.01
        )
        for i, factor in enumerate(PIXEL_SHUFFLES[self.scale]):
            y = Conv3(features=_TAIL * factor**2, dtype=self.dtype, name=f"up{i}")(y)
            y = depth_to_space(y, factor)
        return Conv3(features=self.channels, dtype=self.dtype, name="last")(y)


def drop_path_rates(
    largest: float, groups: int, blocks: int
) -> list[tuple[float, ...]]:
    """Rates of stochastic depth, linear from 0 at the first layer, one row a group."""
    rates = np.linspace(0.0, largest, groups * blocks).reshape(groups, blocks)
    return [tuple(row) for row in rates.tolist()]


def check_heads(features: int, heads: int) -> None:
    """Raises ValueError if `features` do not divide into `heads`."""
    if heads < 1 or features % heads:
        raise ValueError(
            f"heads must divide the channels, got {heads} heads for {features}."
        )
