"""Spatial Feature Extractor (SFE), section 3.3: texture of reference and blur."""

from __future__ import annotations

import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from daasr_jax.models.conv import Conv3
from daasr_jax.resampling import space_to_depth


class SFE(nn.Module):
    """Conv3, ReLU and three residual blocks of (Conv3, norm, ReLU, Conv3, norm).

    Attributes:
        features: Channels C of the output.
        scale: Factor s of the super-resolution.
        grid: `"hr"`: on the input's grid, the paper's literal form; `"lr"`: the input's
            s x s cells become channels first and all convolutions run on the LR grid,
            s^2 times cheaper.
        norm: `"batch"` (the paper), `"group"` or `"none"`.
        axis_name: Named device axis over which batch statistics are averaged.
        remat: Compute each block again in the backward pass instead of keeping it.
    """

    features: int = 64
    scale: int = 4
    grid: str = "hr"
    norm: str = "batch"
    axis_name: str | None = None
    dtype: DTypeLike = jnp.float32
    remat: bool = False

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w 1"], *, train: bool
    ) -> Float[Array, "b h2 w2 c"]:
        """Extracts features of images in [0, 1].

        Raises:
            ValueError: If `grid` or `norm` is unknown.
        """
        if self.grid not in ("hr", "lr"):
            raise ValueError(f"sfe_grid must be 'hr' or 'lr', got {self.grid!r}.")
        if self.grid == "lr":
            x = space_to_depth(x, self.scale)
        x = nn.relu(Conv3(features=self.features, dtype=self.dtype, name="conv_in")(x))
        block = SFE._block
        if self.remat:
            block = nn.remat(block, static_argnums=(2, 3))
        for i in range(3):
            x = block(self, x, f"block{i}", train)
        return x

    def _block(self, x: Array, name: str, train: bool) -> Array:
        biased = self.norm != "batch"  # a bias in front of batch norm has no effect

        def conv(y: Array, i: int) -> Array:
            return Conv3(
                features=self.features,
                use_bias=biased,
                dtype=self.dtype,
                name=f"{name}_conv{i}",
            )(y)

        y = nn.relu(self._normalise(conv(x, 1), f"{name}_norm1", train))
        return x + self._normalise(conv(y, 2), f"{name}_norm2", train)

    def _normalise(self, x: Array, name: str, train: bool) -> Array:
        if self.norm == "batch":
            return nn.BatchNorm(
                use_running_average=not train,
                momentum=0.9,
                epsilon=1e-5,
                axis_name=self.axis_name,
                dtype=self.dtype,
                name=name,
            )(x)
        if self.norm == "group":
            return nn.GroupNorm(num_groups=8, dtype=self.dtype, name=name)(x)
        if self.norm == "none":
            return x
        raise ValueError(
            f"sfe_norm must be 'batch', 'group' or 'none', got {self.norm!r}."
        )
