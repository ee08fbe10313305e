"""McMRSR: Swin features, contextual matching, aggregation from coarse to fine.

Reference: G. Li, J. Lv, Y. Tian, Q. Dou, C. Wang, C. Xu, J. Qin, "Transformer-empowered
Multi-scale Contextual Matching and Aggregation for Multi-contrast MRI
Super-resolution", CVPR 2022; https://github.com/XAIMI-Lab/McMRSR.

Published for x2 and x4 on complex images. What differs here:

* One channel, the magnitude, in and out.
* No data consistency in k-space by itself. The published layer puts the measured centre
  of k-space into the result; after bicubic degradation no sample of k-space is known,
  the LR image's are not those of the HR image, and putting them in would be wrong. With
  LR images by k-space `data_consistency.DataConsistent` does it, around any model.
* The public data loader maps real and imaginary parts from [-1, 1] to [0, 1] and the
  network's output is compared in that range. Images here are in [0, 1] already: they
  are used as they are.
* The reference's LR counterpart is its bicubic reduction.
* Layers that the public x2 network holds but never uses (a third convolution of the
  reference and four residual blocks) do not exist at x2 and x3.
* x3 is ours: one level as at x2, with strides of 3 on whole cells of 3x3 pixels.
* Images of any size: see `McMRSR`.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.typing import Initializer
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from daasr_jax.models.conv import Conv3
from daasr_jax.models.mcmrsr_matching import BLOCK, find, score, transfer
from daasr_jax.models.outputs import Outputs, levels
from daasr_jax.models.swin import SwinLayer, drop_path_rates, layer_norm
from daasr_jax.registry import MODELS
from daasr_jax.resampling import downsample

_SMALLEST = 2 * BLOCK  # side of a padded LR map; a search window must fit


def _conv(
    features: int,
    dtype: DTypeLike,
    name: str,
    *,
    stride: int = 1,
    bias_init: Initializer | None = None,
) -> Conv3:
    """Conv3 with the published initial weights: N(0, 0.02), PyTorch's default bias."""
    return Conv3(
        features=features,
        kernel_init=nn.initializers.normal(0.02),
        bias_init=bias_init,
        dtype=dtype,
        stride=stride,
        name=name,
    )


def pad_image(
    x: Float[Array, "b h w c"], size: tuple[int, int]
) -> Float[Array, "b h2 w2 c"]:
    """Mirrors an image at its bottom and right border, the border itself repeated.

    Rows 0 1 2 go on as 2 1 0 0 1 2. So LR image and reference, padded by the same
    number of cells, stay aligned.
    """
    bottom, right = size[0] - x.shape[1], size[1] - x.shape[2]
    if not bottom and not right:
        return x
    return jnp.pad(x, ((0, 0), (0, bottom), (0, right), (0, 0)), mode="symmetric")


def padded_size(h: int, w: int) -> tuple[int, int]:
    """Next multiples of 8, at least 16."""
    h, w = (max(_SMALLEST, -(-n // BLOCK) * BLOCK) for n in (h, w))
    return h, w


class ResidualBlock(nn.Module):
    """x + Conv3(ReLU(Conv3 x))."""

    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        """Applies the block."""
        c, dtype = x.shape[-1], self.dtype
        return x + _conv(c, dtype, "conv2")(nn.relu(_conv(c, dtype, "conv1")(x)))


class Shallow(nn.Module):
    """Conv3, ReLU and two residual blocks: first features of an LR image."""

    features: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, image: Float[Array, "b h w 1"]) -> Float[Array, "b h w c"]:
        """Applies the layers."""
        x = nn.relu(_conv(self.features, self.dtype, "conv")(image))
        for i in range(2):
            x = ResidualBlock(dtype=self.dtype, name=f"block{i}")(x)
        return x


class Deep(nn.Module):
    """Swin stack: norm, groups of Swin layers with Conv3 and skip, norm, Conv3, skip.

    Attributes:
        groups, blocks, heads, window, mlp_ratio, drop_path: See `McMRSR`.
    """

    groups: int = 4
    blocks: int = 6
    heads: int = 6
    window: int = 8
    mlp_ratio: int = 2
    drop_path: float = 0.1
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w c"], *, train: bool
    ) -> Float[Array, "b h w c"]:
        """Applies the stack; needs a `"dropout"` key if `train` and `drop_path`."""
        c, dtype = x.shape[-1], self.dtype
        y = layer_norm(dtype, "norm_in")(x)
        rates = drop_path_rates(self.drop_path, self.groups, self.blocks)
        for g, group_rates in enumerate(rates):
            z = y
            for i, rate in enumerate(group_rates):
                z = SwinLayer(
                    heads=self.heads,
                    window=self.window,
                    shift=self.window // 2 if i % 2 else 0,
                    mlp_ratio=self.mlp_ratio,
                    drop_path=rate,
                    dtype=dtype,
                    name=f"group{g}_layer{i}",
                )(z, train=train)
            y = y + _conv(c, dtype, f"group{g}_conv")(z)
        y = layer_norm(dtype, "norm_out")(y)
        return x + _conv(c, dtype, "out")(y)


class Adaptation(nn.Module):
    """Spatial Adaptation Block: the texture with the target's statistics.

    `n (gamma + std) + beta + mean`, where n is the texture with mean 0 and variance 1
    over the image, mean and std are the target's, and gamma and beta are maps made of
    both. As published gamma and beta start at N(0, 0.02) kernels, zero biases.
    """

    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, target: Float[Array, "b h w c"], texture: Float[Array, "b h w c"]
    ) -> Float[Array, "b h w c"]:
        """Applies the block; the statistics are float32, the std is unbiased."""
        c, dtype = target.shape[-1], self.dtype
        both = jnp.concatenate([target, texture], axis=-1)
        style = nn.relu(_conv(c, dtype, "shared")(both))
        zero = nn.initializers.zeros
        gamma = _conv(c, dtype, "gamma", bias_init=zero)(style)
        beta = _conv(c, dtype, "beta", bias_init=zero)(style)
        texture = texture.astype(jnp.float32)
        mean, variance = _moments(texture)
        normed = (texture - mean) * lax.rsqrt(variance + 1e-5)
        mean, variance = _moments(target.astype(jnp.float32))
        positions = target.shape[1] * target.shape[2]
        varies = variance > 0  # a constant channel has no gradient of its std
        std = jnp.sqrt(jnp.where(varies, variance, 1.0) * positions / (positions - 1))
        out = normed * (gamma + jnp.where(varies, std, 0.0)) + beta + mean
        return out.astype(dtype)


class Aggregation(nn.Module):
    """Joint Residual Feature Aggregation Block: texture and target, exchanged.

    Each way through the coarser grid and back with the residual of the two; see
    `_reduce` and `_spread`.

    Attributes:
        factor: From the grid of the target to that of the texture; 1 to stay on it.
    """

    factor: int = 1
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, target: Float[Array, "b h w c"], texture: Float[Array, "b h2 w2 c"]
    ) -> Float[Array, "b h2 w2 c"]:
        """Features on the grid of the texture."""
        c, dtype, factor = target.shape[-1], self.dtype, self.factor
        residual = nn.relu(_reduce(texture, factor, dtype, "down_a")) - target
        up = _conv(c, dtype, "up_a")(_spread(residual, factor))
        first = nn.relu(up) + texture
        residual = target - nn.relu(_reduce(texture, factor, dtype, "down_b"))
        up = _conv(c, dtype, "up_b")(_spread(residual + target, factor))
        both = jnp.concatenate([first, nn.relu(up)], axis=-1)
        return nn.relu(_conv(c, dtype, "merge")(both))


@MODELS.register("mcmrsr")
class McMRSR(nn.Module):
    """The network: `(lr, ref) -> Outputs`, at x2, x3 or x4.

    The LR image is padded to multiples of 8, at least 16, the reference accordingly
    (`pad_image`), and the result is cropped; statistics over the image include the
    padding. As published there is no skip from the LR image to the result.

    `aux` has `index (1, B, h, w)`, the position given to every LR position, row * width
    + column in the grid of the reference's cells (in the padding, the position that is
    mirrored there), and `confidence (1, B, h, w, 1)`, the cosine of the two patches,
    which multiplies what the reference gives.

    Attributes:
        scale: s in {2, 3, 4}.
        features: Channels.
        groups: Residual Swin Transformer Blocks of the one stack that all maps share.
        blocks: Swin layers in each.
        heads: Attention heads, which divide the features.
        window: Side of the attention windows.
        mlp_ratio: Hidden width of the MLPs over the features.
        drop_path: Rate of stochastic depth at the last layer, linear from 0.
        level_blocks: Residual blocks after the aggregation of every level, from coarse
            to fine; x2 and x3 use the first two.
        axis_name: Not used: there are no batch statistics.
        dtype: Type of the computation; parameters and search are float32.
    """

    scale: int = 4
    features: int = 60
    groups: int = 4
    blocks: int = 6
    heads: int = 6
    window: int = 8
    mlp_ratio: int = 2
    drop_path: float = 0.1
    level_blocks: Sequence[int] = (12, 8, 4)
    axis_name: str | None = None
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self,
        lr: Float[Array, "b h w 1"],
        ref: Float[Array, "b h2 w2 1"],
        *,
        train: bool,
        indices: Int[Array, "1 b h3 w3"] | None = None,
    ) -> Outputs:
        """Super-resolves `lr` with the help of `ref`.

        Args:
            lr: Low-resolution slices, float32 in [0, 1], of any size.
            ref: High-resolution reference slices in the same intensity unit; their size
                need not be that of the output but must be a multiple of the scale.
            train: Whether stochastic depth is active; it needs a `"dropout"` key.
            indices: Positions of `mcmrsr_matching.find`, of the padded images, to use
                instead of searching.

        Returns:
            `Outputs`; `aux` as above.

        Raises:
            ValueError: If `scale` or `level_blocks` is outside its choices, heads do
                not divide the features, or `ref` has an unfit size.
        """
        factor, steps = levels(self.scale)
        if len(self.level_blocks) <= steps:
            raise ValueError(
                f"level_blocks must have {steps + 1} numbers at x{self.scale}, "
                f"got {tuple(self.level_blocks)}."
            )
        query, key, values = self._features(lr, ref, train=train)
        index = find(query, key) if indices is None else indices[0]
        confidence = score(query, key, index)

        dtype = self.dtype
        adapt = Adaptation(dtype=dtype, name="adapt")
        join = Aggregation(factor=factor, dtype=dtype, name="join")
        x = query
        for level, value in enumerate(values):
            texture = transfer(value, index, confidence, cell=factor**level)
            if level:
                b, h, w, c = texture.shape
                x_up = jax.image.resize(x, (b, h, w, c), "linear")
                x = join(x, adapt(x_up, texture))
            else:
                x = Aggregation(factor=1, dtype=dtype, name="join_same")(
                    x, adapt(x, texture)
                )
            for i in range(self.level_blocks[level]):
                x = ResidualBlock(dtype=dtype, name=f"level{level}_block{i}")(x)
        y = _conv(1, dtype, "last")(x).astype(jnp.float32)
        h, w = lr.shape[1:3]
        cells = ref.shape[1] // self.scale, ref.shape[2] // self.scale
        aux = {
            "index": _unmirrored(index[None, :, :h, :w], key.shape[2], cells),
            "confidence": confidence[None, :, :h, :w],
        }
        return Outputs(sr=y[:, : self.scale * h, : self.scale * w], aux=aux)

    def _features(
        self, lr: Array, ref: Array, *, train: bool
    ) -> tuple[Array, Array, list[Array]]:
        """`(query, key, values)`, of the padded images; values from coarse to fine."""
        factor, steps = levels(self.scale)
        s, f, dtype = self.scale, self.features, self.dtype
        small = downsample(ref, s)
        h, w = padded_size(*small.shape[1:3])
        small, ref = pad_image(small, (h, w)), pad_image(ref, (s * h, s * w))
        lr = pad_image(lr, padded_size(*lr.shape[1:3]))
        shallow = Shallow(features=f, dtype=dtype, name="shallow")
        deep = Deep(
            groups=self.groups,
            blocks=self.blocks,
            heads=self.heads,
            window=self.window,
            mlp_ratio=self.mlp_ratio,
            drop_path=self.drop_path,
            dtype=dtype,
            name="deep",
        )
        x = _conv(f, dtype, "ref0")(ref)
        values = []
        for i in range(steps):
            values.append(deep(x, train=train))
            x = _reduce(values[-1], factor, dtype, f"ref{i + 1}")
        # The reference's two maps on the LR grid go through the stack together.
        pair = deep(jnp.concatenate([shallow(small), x]), train=train)
        key, coarsest = jnp.split(pair, 2)
        query = deep(shallow(lr), train=train)
        return query, key, [coarsest, *reversed(values)]


def _unmirrored(index: Array, width: int, size: tuple[int, int]) -> Array:
    """Positions in a grid padded to `width` by `pad_image`, as such in the grid."""

    def back(at: Array, n: int) -> Array:
        at = at % (2 * n)
        return jnp.minimum(at, 2 * n - 1 - at)

    return back(index // width, size[0]) * size[1] + back(index % width, size[1])


def _moments(x: Array) -> tuple[Array, Array]:
    """Mean and (biased) variance of every channel over the image."""
    mean = jnp.mean(x, axis=(1, 2), keepdims=True)
    return mean, jnp.mean((x - mean) ** 2, axis=(1, 2), keepdims=True)


def _reduce(x: Array, factor: int, dtype: DTypeLike, name: str) -> Array:
    """Conv3 to a grid that is `factor` times coarser; in a module's compact call.

    For 2 it is centred on the first pixel of a cell, as published; for 3 on the middle.
    """
    conv = _conv(x.shape[-1], dtype, name, stride=factor)
    if factor < 3:
        return conv(x)
    # Two rows in front move the centre of output 1, not 0, to the middle of cell 0.
    return conv(jnp.pad(x, ((0, 0), (2, 0), (2, 0), (0, 0))))[:, 1:, 1:]


def _spread(x: Array, factor: int) -> Array:
    """Zeros between positions; Conv3 on it is a transposed convolution of that stride.

    A position comes to the pixel of its cell on which `_reduce` is centred.
    """
    if factor == 1:
        return x
    before = factor // 3
    along = (before, factor - 1 - before, factor - 1)
    zero = jnp.zeros((), x.dtype)
    return lax.pad(x, zero, ((0, 0, 0), along, along, (0, 0, 0)))
