"""Spatial Alignment Transformer (SAT), section 3.4: retrieval from the reference.

Two parts of it can be replaced. An *alignment* finds what each place of the slice takes
from the reference, `(base, query, key, value) -> (T, P, C)`; P or C is None where it
has none. A *fusion* joins T, the structure and C to F_SAT. Both are modules with the
fields `features` and `dtype`, which the SAT gives, and options of their own. Those of
the paper are here, those of its ablations in `ablations`.

An alignment that compares nothing says so by `compares = False`; then there is no query
and no key. `index`, a P that stands for a search, is given to `Matching` and its
subclasses only.
"""

from __future__ import annotations

from collections.abc import Callable

import jax.numpy as jnp
from flax import linen as nn
from jax.ad_checkpoint import checkpoint_name
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from daasr_jax.matching import match, search
from daasr_jax.models.init import kernel_init, linear
from daasr_jax.registry import PARTS
from daasr_jax.resampling import depth_to_space, space_to_depth, upsample

INDEX = "index"  # P by this name is kept where activations are computed again


def project_query(
    base: Float[Array, "b h w c"],
    query: Float[Array, "b h w d"] | None,
    *,
    features: int,
    dtype: DTypeLike,
) -> Float[Array, "b h w d"]:
    """Q of Eq. 6, in the calling module: `W_q base`, or `query + W_q base`.

    With `query`, `W_q` starts at zero, so that query and key agree before anything is
    learned.
    """
    q = linear(
        features,
        base,
        use_bias=False,
        dtype=dtype,
        kernel_init=kernel_init if query is None else nn.initializers.zeros,
        name="query",
    )
    return q if query is None else query + q


@PARTS.register("sat.matching")
class Matching(nn.Module):
    """Hard retrieval of patches, Eq. 6-9: the most similar patch of the reference.

    Attributes:
        features: Channels of the query, those of the key.
        patch: Side of the descriptor patches.
        search: Form of the search, see `matching.search`; None for the one that suits
            the platform. `"kernel"`, for GPUs, is not measured.
    """

    features: int = 64
    patch: int = 3
    search: str | None = None
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self,
        base: Float[Array, "b h w c"],
        query: Float[Array, "b h w d"] | None,
        key: Float[Array, "b h2 w2 d"],
        value: Float[Array, "b h2 w2 e"],
        *,
        index: Int[Array, "b h w"] | None = None,
    ) -> tuple[Float[Array, "b h w e"], Int[Array, "b h w"], Float[Array, "b h w 1"]]:
        """Searches, transfers and scores.

        Args:
            base: F_CWT on the grid of the queries.
            query: Features of the bicubic LR image from the SFE on the same grid, or
                None.
            key: SFE of the blurred reference.
            value: SFE of the reference, cells of the reference as channels.
            index: P to use instead of searching.

        Returns:
            `(T, P, C)`: T as `value`; P int32; C float32 in [-1, 1].
        """
        q = project_query(base, query, features=self.features, dtype=self.dtype)
        if index is None:
            index = search(q, key, patch=self.patch, method=self.search)
            index = checkpoint_name(index, INDEX)
        return match(q, key, value, patch=self.patch, index=index)


@PARTS.register("sat.fusion")
class Fusion(nn.Module):
    """`Conv1x1([T, F_CWT]) * C`, Eq. 10-11."""

    features: int = 64
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self,
        t: Float[Array, "b h w c"],
        f_cwt: Float[Array, "b h w d"],
        c: Float[Array, "b h w 1"] | None,
    ) -> Float[Array, "b h w e"]:
        """F_SAT from T, F_CWT and C on one grid; C is None where there is none."""
        both = jnp.concatenate([t, f_cwt], axis=-1)
        f_sat = linear(self.features, both, dtype=self.dtype, name="fuse")
        return f_sat if c is None else f_sat * c


class SAT(nn.Module):
    """Alignment and fusion on their grids, Eq. 6-11.

    Attributes:
        features: Channels C.
        scale: Factor s.
        grid: Grid of the fusion. `"hr"`: `Conv1x1([T, Up F_CWT]) * Up(C)` at HR;
            `"lr"`: T by space-to-depth and all on the LR grid.
        map_grid: Grid of the key and value maps, that of the SFE.
        match_stride: s: descriptors are patches of the s-decimated maps and each match
            transfers a patch s times as large; 1: dense on the HR grid.
        align: Makes the alignment.
        fuse: Makes the fusion.
    """

    features: int = 64
    scale: int = 4
    grid: str = "hr"
    map_grid: str = "hr"
    match_stride: int = 4
    align: Callable[..., nn.Module] = Matching
    fuse: Callable[..., nn.Module] = Fusion
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self,
        f_cwt: Float[Array, "b h w c"],
        query: Float[Array, "b h2 w2 c"] | None,
        key: Float[Array, "b h3 w3 c"] | None,
        value: Float[Array, "b h3 w3 c"],
        *,
        index: Int[Array, "b h4 w4"] | None = None,
    ) -> tuple[Array, Array | None, Array | None]:
        """Aligns the reference to `f_cwt`.

        Args:
            f_cwt: Structure features on the LR grid.
            query: Features of the bicubic LR image from the SFE, on the grid of `key`,
                or None.
            key: SFE of the blurred reference; None where nothing is compared.
            value: SFE of the reference.
            index: P to use instead of searching.

        Returns:
            `(F_SAT, P, C)`: F_SAT on `grid` with C channels; P int32 and C float32 on
            the grid of the queries, each None where the alignment has none.

        Raises:
            ValueError: If `index` is given and there is no search, or the alignment
                cannot take the maps.
        """
        s = self.scale
        align = self._own(self.align)
        fuse = self._own(self.fuse)
        given = {} if index is None else {"index": index}
        if given and not isinstance(align, Matching):
            raise ValueError(
                "indices stand for the search of Matching; "
                f"{type(align).__name__} makes none."
            )
        up = upsample(f_cwt, s) if "hr" in (self.map_grid, self.grid) else f_cwt
        base = up if self.map_grid == "hr" else f_cwt
        if self.map_grid == "hr" and self.match_stride != 1:
            base = _decimate(base, s)
            key, query = (None if x is None else _decimate(x, s) for x in (key, query))
            value = space_to_depth(value, s)
        t, index, confidence = align(base, query, key, value, **given)
        weight = None if confidence is None else confidence.astype(self.dtype)
        at_lr = t.shape[1] == f_cwt.shape[1]
        if self.grid == "lr":
            up = f_cwt
            if not at_lr:
                t = space_to_depth(t, s)
                if weight is not None:
                    weight = jnp.mean(space_to_depth(weight, s), axis=-1, keepdims=True)
        elif at_lr:
            t = depth_to_space(t, s)
            weight = None if weight is None else upsample(weight, s)
        return fuse(t, up, weight), index, confidence

    def _own(self, make: Callable[..., nn.Module]) -> nn.Module:
        """A part whose parameters are this module's."""
        part = make(features=self.features, dtype=self.dtype)
        nn.share_scope(self, part)
        return part


def _decimate(x: Array, s: int) -> Array:
    """Every s-th sample, nearest to the centre of its s x s cell."""
    return x[:, s // 2 :: s, s // 2 :: s]
