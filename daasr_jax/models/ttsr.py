"""Texture Transformer Network (TTSR): hard and soft attention to a reference.

Reference: F. Yang, H. Yang, J. Fu, H. Lu, B. Guo, "Learning Texture Transformer Network
for Image Super-Resolution", CVPR 2020. Weights: https://github.com/researchmm/TTSR.

Published for x4 only. What is ours:

* x2 and x3 have two levels, the grids of LR image and output: the search is on relu2_1,
  the texture comes from relu2_1 and relu1_1, and the last of the three exchanges with
  its blocks does not exist. At x3 the maximum before relu2_1 is over 3x3 cells, so that
  it lies on the LR grid for every size, and strides and pixel shuffle are of 3.
* Overlapping patches are averaged, see `fold`.
* The output is not clipped; the public code clips it into [-1, 1].
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from daasr_jax.matching import pair_score, search
from daasr_jax.models.conv import Conv3
from daasr_jax.models.outputs import Outputs, levels
from daasr_jax.models.ttsr_parts import (
    FOLDS,
    Body,
    Exchange,
    MergeTail,
    TextureExtractor,
    enlarge,
    transfer_texture,
)
from daasr_jax.models.vgg import FrozenVGG
from daasr_jax.registry import MODELS
from daasr_jax.resampling import blur, depth_to_space, upsample


def texture_params(vgg: FrozenVGG, *, scale: int = 4) -> dict[str, Any]:
    """Parameters of the texture extractor from a network trained on ImageNet.

    They replace `params["texture"]` of a `TTSR` with `preprocessing` as in `vgg`; both
    conventions work, with the weights as they are.

    Args:
        vgg: VGG-19, or VGG-16, whose layers up to relu3_1 have the same shapes.
        scale: Of the model; x2 and x3 end at relu2_1.

    Returns:
        `{"block1_conv1": {"kernel", "bias"}, ...}`, float32.

    Raises:
        ValueError: If `scale` is unknown.
    """
    steps = levels(scale)[1]
    names = [f"block{i + 1}_conv{j + 1}" for i in range(steps) for j in (0, 1)]
    names.append(f"block{steps + 1}_conv1")
    return {name: dict(vgg.params[name]) for name in names}


@MODELS.register("ttsr")
class TTSR(nn.Module):
    """The network: `(lr, ref) -> Outputs`, at x2, x3 or x4.

    `aux` has `index (1, B, h, w)`, the hard attention P, and `confidence (1, B, h, w,
    1)`, the soft attention S, both on the grid of `lr`, where the search is made. S is
    a cosine of features that are not negative; it multiplies what the reference adds.

    Attributes:
        scale: s in {2, 3, 4}.
        features: Channels of the main network.
        blocks: Residual blocks of the stem and of every level, from coarse to fine (one
            body for each branch); x2 and x3 use the first three. One number stands for
            all.
        fold: `"mean"`, or `"ninth"` as in the public code, which darkens the borders;
            see `ttsr_parts.transfer_texture`.
        preprocessing: Of the texture extractor's weights: `"torchvision"`, the public
            ones, or `"caffe"`; see `texture_params`.
        channels: 1, or 3 for the public weights: the grey image is repeated and the
            output averaged. The extractor has always 3.
        axis_name: Not used: there are no batch statistics.
        dtype: Type of the computation; parameters and search are float32.
    """

    scale: int = 4
    features: int = 64
    blocks: Sequence[int] | int = (16, 16, 8, 4)
    fold: str = "mean"
    preprocessing: str = "torchvision"
    channels: int = 1
    axis_name: str | None = None
    dtype: DTypeLike = jnp.float32

    def put_in_pretrained(self, params: dict[str, Any], vgg: FrozenVGG) -> dict:
        """Parameters of this model with the texture extractor from ImageNet.

        Raises:
            ValueError: If the weights have another preprocessing than the model.
        """
        if vgg.preprocessing != self.preprocessing:
            raise ValueError(
                f"preprocessing is {self.preprocessing!r} and the weights have "
                f"{vgg.preprocessing!r}."
            )
        return {**params, "texture": texture_params(vgg, scale=self.scale)}

    @nn.compact
    def __call__(
        self,
        lr: Float[Array, "b h w 1"],
        ref: Float[Array, "b h2 w2 1"],
        *,
        train: bool,
        indices: Int[Array, "1 b h w"] | None = None,
    ) -> Outputs:
        """Super-resolves `lr` with the help of `ref`.

        Args:
            lr: Low-resolution slices, float32 in [0, 1].
            ref: High-resolution reference slices in the same intensity unit; their size
                need not be that of the output but must be a multiple of the scale.
            train: Makes no difference.
            indices: Index map P to use instead of searching.

        Returns:
            `Outputs`; `aux` as above.

        Raises:
            ValueError: If a field is outside its choices, or `ref` has an unfit size.
        """
        factor, steps = levels(self.scale)
        blocks = self._blocks(steps + 2)
        self._check(ref)
        f, dtype = self.features, self.dtype
        query, key, values = self._texture_maps(lr, ref)
        index = search(query, key) if indices is None else indices[0]
        confidence = pair_score(query, key, index)

        # The public network works in [-1, 1].
        x = jnp.repeat(2.0 * lr.astype(jnp.float32) - 1.0, self.channels, axis=-1)
        x = nn.relu(Conv3(features=f, dtype=dtype, name="stem")(x))
        x = x + Body(blocks=blocks[0], dtype=dtype, name="stem_body")(x)
        branches: list[Array] = []
        for level, value in enumerate(reversed(values)):
            cell = factor**level
            if level:
                x = Conv3(features=f * factor**2, dtype=dtype, name=f"up{level}")(
                    branches[-1]
                )
                x = nn.relu(depth_to_space(x, factor))
            texture = transfer_texture(value, index, cell=cell, fold=self.fold)
            soft = enlarge(confidence, cell) if level else confidence
            both = jnp.concatenate([x, texture.astype(dtype)], axis=-1)
            fused = Conv3(features=f, dtype=dtype, name=f"fuse{level}")(both)
            branches.append(x + fused * soft.astype(dtype))
            mixed = branches
            if level:
                mixed = Exchange(factor=factor, dtype=dtype, name=f"exchange{level}")(
                    branches
                )
            branches = [
                b
                + Body(
                    blocks=blocks[level + 1], dtype=dtype, name=f"level{level}_body{i}"
                )(m)
                for i, (b, m) in enumerate(zip(branches, mixed, strict=True))
            ]
        y = MergeTail(factor=factor, channels=self.channels, dtype=dtype, name="tail")(
            branches
        )
        grey = jnp.mean(y.astype(jnp.float32), axis=-1, keepdims=True)
        aux = {"index": index[None], "confidence": confidence[None]}
        return Outputs(sr=0.5 * (grey + 1.0), aux=aux)

    def _texture_maps(self, lr: Array, ref: Array) -> tuple[Array, Array, list[Array]]:
        """`(query, key, values)`; values of all levels, finest first."""
        factor, steps = levels(self.scale)
        extractor = TextureExtractor(
            factor=factor,
            steps=steps,
            preprocessing=self.preprocessing,
            dtype=self.dtype,
            name="texture",
        )
        bicubic = upsample(lr, self.scale)
        images = [ref, blur(ref, self.scale)]
        if bicubic.shape == ref.shape:
            maps = extractor(jnp.concatenate([*images, bicubic]))
            values, keys, queries = zip(*(jnp.split(x, 3) for x in maps), strict=True)
        else:
            maps = extractor(jnp.concatenate(images))
            values, keys = zip(*(jnp.split(x, 2) for x in maps), strict=True)
            queries = extractor(bicubic)
        return queries[-1], keys[-1], list(values)

    def _blocks(self, wanted: int) -> tuple[int, ...]:
        if isinstance(self.blocks, int):
            return (self.blocks,) * wanted
        if len(self.blocks) < wanted:
            raise ValueError(
                f"blocks must have {wanted} numbers at x{self.scale}, "
                f"got {tuple(self.blocks)}."
            )
        return tuple(self.blocks)

    def _check(self, ref: Array) -> None:
        if self.fold not in FOLDS:
            raise ValueError(f"fold must be one of {FOLDS}, got {self.fold!r}.")
        if self.channels not in (1, 3):
            raise ValueError(f"channels must be 1 or 3, got {self.channels}.")
        if ref.shape[1] % self.scale or ref.shape[2] % self.scale:
            raise ValueError(
                f"ref of {ref.shape[1]}x{ref.shape[2]} is not divisible by scale "
                f"{self.scale}."
            )
