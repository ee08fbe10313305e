"""Parts of `models.ttsr`: texture extractor, transfer, cross-scale exchange, tail.

Levels are numbered from the grid of the LR image (0) to that of the output; neighbours
differ by one integer factor.
"""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from daasr_jax.matching import transfer
from daasr_jax.models.conv import Conv3
from daasr_jax.models.init import linear
from daasr_jax.models.vgg import WIDTHS, max_pool, preprocess
from daasr_jax.resampling import depth_to_space, space_to_depth

FOLDS = ("mean", "ninth")
_he = nn.initializers.variance_scaling(2.0, "fan_out", "normal")


class TextureExtractor(nn.Module):
    """Learnable Texture Extractor: the first layers of VGG-19, trained with the rest.

    The parameters have Keras' names, `block1_conv1` to `block3_conv1`, so that ImageNet
    weights can be put in; they start as torchvision's VGG does (He normal by fan-out,
    zero biases).

    Attributes:
        factor: Side of the cells of the maxima between the blocks; VGG's is 2.
        steps: Number of maxima; relu1_1, relu2_1 and, with 2, relu3_1 are returned.
        preprocessing: What the weights expect of an image: `"torchvision"` or
            `"caffe"`, see `vgg.FrozenVGG`.
    """

    factor: int = 2
    steps: int = 2
    preprocessing: str = "torchvision"
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, grey: Float[Array, "b h w 1"]) -> tuple[Array, ...]:
        """Features of images in [0, 1], finest first: `(B, h / f^i, w / f^i, C_i)`.

        Raises:
            ValueError: If `preprocessing` is unknown.
        """
        x = preprocess(grey, self.preprocessing)
        taps = [self._conv("block1_conv1", WIDTHS[0], x)]
        for i in range(self.steps):
            x = self._conv(f"block{i + 1}_conv2", WIDTHS[i], taps[-1])
            taps.append(self._conv(f"block{i + 2}_conv1", WIDTHS[i + 1], self._pool(x)))
        return tuple(taps)

    def _conv(self, name: str, width: int, x: Array) -> Array:
        zero = nn.initializers.zeros
        return nn.relu(
            Conv3(
                features=width,
                kernel_init=_he,
                bias_init=zero,
                dtype=self.dtype,
                name=name,
            )(x)
        )

    def _pool(self, x: Array) -> Array:
        side = (self.factor, self.factor)
        return max_pool(x) if self.factor == 2 else nn.max_pool(x, side, strides=side)


def transfer_texture(
    value: Float[Array, "b h2 w2 c"],
    index: Int[Array, "b h w"],
    *,
    cell: int,
    fold: str,
) -> Float[Array, "b h3 w3 c"]:
    """The chosen patches of 3 cell x 3 cell pixels, every `cell` pixels, put together.

    Args:
        value: Features of the reference, `cell` times finer than the search.
        index: Positions in the grid of the reference's cells.
        cell: Pixels along the side of one place of the search.
        fold: What overlapping patches become. `"mean"`: their mean, counting only
            entries inside the reference, see `matching.transfer`. `"ninth"`: a ninth of
            their sum, the features being zero outside the reference, as in the public
            code; the output's borders are darkened to 2/3, its corners to 4/9.

    Returns:
        Map of `cell` times the grid of `index`.
    """
    cells = space_to_depth(value, cell)
    if fold == "mean":
        return depth_to_space(transfer(cells, index), cell)
    width = cells.shape[2]
    padded = jnp.pad(cells, ((0, 0), (1, 1), (1, 1), (0, 0)))
    inner = (index // width + 1) * (width + 2) + index % width + 1
    rows, columns = (
        1 + np.minimum(np.arange(n), 1) + np.minimum(np.arange(n)[::-1], 1)
        for n in index.shape[1:]
    )
    share = (np.outer(rows, columns) / 9).reshape(1, *index.shape[1:], 1)
    mean = transfer(padded, inner)
    return depth_to_space(mean * jnp.asarray(share, mean.dtype), cell)


def enlarge(x: Float[Array, "b h w c"], factor: int) -> Float[Array, "b h2 w2 c"]:
    """Bicubic enlargement of features as the published weights were trained with.

    Keys' kernel with a = -0.75 and the border repeated: PyTorch's
    `interpolate(mode="bicubic")`. Images go through `resampling.upsample`.
    """
    rows, columns = (
        jnp.asarray(_cubic_weights(n, factor), x.dtype) for n in x.shape[1:3]
    )
    precision = lax.Precision.HIGHEST
    x = jnp.einsum("ph,bhwc->bpwc", rows, x, precision=precision)
    return jnp.einsum("qw,bpwc->bpqc", columns, x, precision=precision)


def _cubic_weights(n: int, factor: int) -> np.ndarray:
    """Matrix `(factor n, n)` of the enlargement of a line."""
    a = -0.75
    at = (np.arange(factor * n) + 0.5) / factor - 0.5
    matrix = np.zeros((factor * n, n))
    for k in (-1, 0, 1, 2):
        place = np.floor(at) + k
        d = np.abs(at - place)
        near = (a + 2) * d**3 - (a + 3) * d**2 + 1
        far = a * (d**3 - 5 * d**2 + 8 * d - 4)
        inside = np.clip(place, 0, n - 1).astype(int)
        np.add.at(matrix, (np.arange(factor * n), inside), np.where(d <= 1, near, far))
    return matrix


class Body(nn.Module):
    """Residual blocks of (Conv3, ReLU, Conv3) and a last Conv3, without its skip."""

    blocks: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        """Applies the blocks."""
        c, dtype = x.shape[-1], self.dtype
        for i in range(self.blocks):
            y = nn.relu(Conv3(features=c, dtype=dtype, name=f"block{i}_conv1")(x))
            x = x + Conv3(features=c, dtype=dtype, name=f"block{i}_conv2")(y)
        return Conv3(features=c, dtype=dtype, name="last")(x)


class Exchange(nn.Module):
    """Cross-Scale Feature Integration: every branch receives all others.

    A coarser branch comes through a 1x1 convolution, bicubic enlargement and ReLU; a
    finer one through a Conv3 of stride `factor` and ReLU for every level between. Own
    features, then the others from coarse to fine, are merged by Conv3 and ReLU.

    The published order is enlargement, then convolution; both are linear and the
    weights of the enlargement sum to 1, so this is the same, at the coarser grid.
    """

    factor: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, branches: list[Array]) -> list[Array]:
        """Branches, coarsest first, to the same number of branches."""
        merged = []
        for to, own in enumerate(branches):
            parts = [own]
            for source, x in enumerate(branches):
                if source < to:
                    name = f"up{source}_{to}"
                    scale = self.factor ** (to - source)
                    parts.append(_lift(x, scale, name, self.dtype))
                for step in range(source - to):
                    name = f"down{source}_{to}_{step}"
                    x = nn.relu(
                        Conv3(
                            features=x.shape[-1],
                            dtype=self.dtype,
                            stride=self.factor,
                            name=name,
                        )(x)
                    )
                if source > to:
                    parts.append(x)
            merge = Conv3(features=own.shape[-1], dtype=self.dtype, name=f"merge{to}")
            merged.append(nn.relu(merge(jnp.concatenate(parts, axis=-1))))
        return merged


class MergeTail(nn.Module):
    """All branches on the finest grid, merged to a picture of `channels`."""

    factor: int
    channels: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, branches: list[Array]) -> Array:
        """Branches, coarsest first, to the picture on the grid of the last."""
        *coarser, finest = branches
        c, dtype = finest.shape[-1], self.dtype
        parts = [finest]
        for i, x in enumerate(coarser):
            scale = self.factor ** (len(coarser) - i)
            parts.append(_lift(x, scale, f"up{i}", dtype))
        y = nn.relu(
            Conv3(features=c, dtype=dtype, name="merge")(jnp.concatenate(parts, -1))
        )
        y = Conv3(features=c // 2, dtype=dtype, name="narrow")(y)
        return linear(self.channels, y, dtype=dtype, name="picture")


def _lift(x: Array, scale: int, name: str, dtype: DTypeLike) -> Array:
    """1x1 convolution, enlargement, ReLU; inside the compact call of a module."""
    return nn.relu(enlarge(linear(x.shape[-1], x, dtype=dtype, name=name), scale))
