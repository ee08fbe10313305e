"""Spatial Alignment Transformer (SAT), section 3.4: retrieval from the reference."""

from __future__ import annotations

import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from daasr_jax.matching import match
from daasr_jax.models.init import kernel_init, linear
from daasr_jax.resampling import depth_to_space, space_to_depth, upsample


class SAT(nn.Module):
    """Query projection, patch retrieval, fusion and confidence, Eq. 6-11.

    Attributes:
        features: Channels C.
        scale: Factor s.
        grid: Grid of the fusion. `"hr"`: `Conv1x1([T, Up F_CWT]) * Up(C)` at HR;
            `"lr"`: T by space-to-depth and all on the LR grid.
        map_grid: Grid of the key and value maps, that of the SFE.
        match_stride: s: descriptors are 3x3 patches of the s-decimated maps and each
            match transfers a 3s x 3s patch; 1: dense on the HR grid.
        patch: Side of the descriptor patches.
    """

    features: int = 64
    scale: int = 4
    grid: str = "hr"
    map_grid: str = "hr"
    match_stride: int = 4
    patch: int = 3
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self,
        f_cwt: Float[Array, "b h w c"],
        query: Float[Array, "b h2 w2 c"] | None,
        key: Float[Array, "b h3 w3 c"],
        value: Float[Array, "b h3 w3 c"],
        *,
        index: Int[Array, "b h4 w4"] | None = None,
    ) -> tuple[Array, Array, Array]:
        """Aligns the reference to `f_cwt`.

        Args:
            f_cwt: Structure features on the LR grid.
            query: Features of the bicubic LR image from the SFE, on the grid of `key`,
                or None. When given, `W_q` starts at zero, so that query and key agree
                before anything is learned.
            key: SFE of the blurred reference.
            value: SFE of the reference.
            index: P to use instead of searching.

        Returns:
            `(F_SAT, P, C)`: F_SAT on `grid` with C channels; P int32 and C float32 on
            the grid of the queries.
        """
        s = self.scale
        up = f_cwt
        if self.map_grid == "hr" or self.grid == "hr":
            up = upsample(f_cwt, s)
        base = up if self.map_grid == "hr" else f_cwt
        if self.map_grid == "hr" and self.match_stride != 1:
            base, key = _decimate(base, s), _decimate(key, s)
            query = None if query is None else _decimate(query, s)
            value = space_to_depth(value, s)
        init = kernel_init if query is None else nn.initializers.zeros
        q = linear(
            self.features,
            base,
            use_bias=False,
            dtype=self.dtype,
            kernel_init=init,
            name="query",
        )
        q = q if query is None else query + q
        t, index, confidence = match(q, key, value, patch=self.patch, index=index)
        weight = confidence.astype(self.dtype)
        at_lr = t.shape[1] == f_cwt.shape[1]
        if self.grid == "lr":
            if not at_lr:
                t = space_to_depth(t, s)
                weight = jnp.mean(space_to_depth(weight, s), axis=-1, keepdims=True)
            f_sat = self._fuse(t, f_cwt) * weight
        else:
            if at_lr:
                t, weight = depth_to_space(t, s), upsample(weight, s)
            f_sat = self._fuse(t, up) * weight
        return f_sat, index, confidence

    def _fuse(self, t: Array, structure: Array) -> Array:
        """Conv1x1 of Eq. 10-11 over the concatenation."""
        both = jnp.concatenate([t, structure], axis=-1)
        return linear(self.features, both, dtype=self.dtype, name="fuse")


def _decimate(x: Array, s: int) -> Array:
    """Every s-th sample, nearest to the centre of its s x s cell."""
    return x[:, s // 2 :: s, s // 2 :: s]
