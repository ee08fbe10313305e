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
    """

    features: int = 64
    scale: int = 4
    grid: str = "hr"
    norm: str = "batch"
    axis_name: str | None = None
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w 1"], *, train: bool
    ) -> Float[Array, "b h2 w2 c"]:
        """Extracts features of images in [0, 1].

        Raises:
            ValueError: If `grid` or `norm` is unknown.
        """
        if self.grid not in ("hr", "lr"):
            raise ValueError(f"grid must be 'hr' or 'lr', got {self.grid!r}.")
        if self.grid == "lr":
            x = space_to_depth(x, self.scale)
        biased = self.norm != "batch"  # a bias in front of batch norm has no effect
        x = nn.relu(Conv3(self.features, dtype=self.dtype, name="conv_in")(x))
        for i in range(3):
            y = Conv3(self.features, biased, dtype=self.dtype, name=f"block{i}_conv1")(
                x
            )
            y = nn.relu(self._normalise(y, f"block{i}_norm1", train))
            y = Conv3(self.features, biased, dtype=self.dtype, name=f"block{i}_conv2")(
                y
            )
            x = x + self._normalise(y, f"block{i}_norm2", train)
        return x

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
        raise ValueError(f"norm must be 'batch', 'group' or 'none', got {self.norm!r}.")
