"""Spatial Alignment Transformer (SAT), section 3.4: retrieval from the reference.

Two parts of it can be replaced. An *alignment* finds what each place of the slice takes
from the reference, `(base, query, key, value) -> (T, P, C)`; P or C is None where it
has none. A *fusion* joins T, the structure and C to F_SAT. Both are modules with the
fields `features` and `dtype`, which the SAT gives, and options of their own. Those of
the paper are here, those of its ablations in `ablations`.

An alignment that compares nothing says so by `compares = False`; then there is no query
and no key. One that cannot choose among several references says `takes_several =
False`. `index`, a P that stands for a search, is given to `Matching` and its
subclasses only.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax.numpy as jnp
from flax import linen as nn
from jax.ad_checkpoint import checkpoint_name
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from daasr_jax.matching import match, search
from daasr_jax.models.init import bias_init, kernel_init, linear
from daasr_jax.registry import PARTS
from daasr_jax.resampling import space_to_depth, upsample, upsample_at

INDEX = "index"  # P by this name is kept where activations are computed again


def project_query(
    base: Float[Array, "b h w c"] | None,
    query: Float[Array, "b h w d"] | None,
    *,
    features: int,
    dtype: DTypeLike,
) -> Float[Array, "b h w d"]:
    """Q of Eq. 6, in the calling module: `W_q base`, or `query + W_q base`, or `query`.

    With `query`, `W_q` starts at zero, so that query and key agree before anything is
    learned. Without `base` there is no `W_q`.
    """
    if base is None:
        if query is None:
            raise ValueError("a search needs base or query.")
        return query
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
            the platform. `"kernel"`, for GPUs, was run on an H100 only.
        within: Search this far from the query's own place alone, see
            `matching.search`; 0 searches all. A reference of another size than the
            query's has no such place and is searched whole.
    """

    features: int = 64
    patch: int = 3
    search: str | None = None
    within: int = 0
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self,
        base: Float[Array, "b h w c"] | None,
        query: Float[Array, "b h w d"] | None,
        key: Float[Array, "b *r h2 w2 d"],
        value: Float[Array, "b *r h2 w2 e"],
        *,
        index: Int[Array, "b h w"] | None = None,
    ) -> tuple[Float[Array, "b h w e"], Int[Array, "b h w"], Float[Array, "b h w 1"]]:
        """Searches, transfers and scores.

        Args:
            base: F_CWT on the grid of the queries; None to search by `query` alone.
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
            within = self.within if q.shape[1:3] == key.shape[-3:-1] else 0
            index = search(q, key, patch=self.patch, method=self.search, within=within)
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
        t: Float[Array, "b h w *n c"],
        f_cwt: Float[Array, "b h w d"],
        c: Float[Array, "b h w *n 1"] | None,
        enlarge: Callable[[Array], Array],
    ) -> Float[Array, "b h w *n e"]:
        """F_SAT from T, F_CWT and C.

        Args:
            t: T; at HR `n = s * s`, the pixels of each cell.
            f_cwt: F_CWT on the LR grid.
            c: C as T, None where there is none.
            enlarge: Brings a map of the LR grid to that of T.
        """
        f_sat = self.join(t, f_cwt, enlarge)
        return f_sat if c is None else f_sat * c

    def join(self, t: Array, f_cwt: Array, enlarge: Callable[[Array], Array]) -> Array:
        """`Conv1x1([T, F_CWT])` of Eq. 10."""
        join = _Join(features=self.features, dtype=self.dtype, name="fuse")
        return join(t, f_cwt, enlarge)


@PARTS.register("sat.gated")
class GatedFusion(Fusion):
    """`Conv1x1([T * g, F_CWT])`: a gate apart from the search, and on T alone.

    C scales F_CWT too in Eq. 11, so a group that distrusts its reference loses its
    structure with it.

    Attributes:
        gate: `"confidence"`: `g = sigmoid(a C + b)`, a and b learned; `"network"`: two
            1x1 convolutions of [C, F_CWT, T], one g for each channel; `"literal"`:
            `g = C`.
    """

    gate: str = "confidence"

    @nn.compact
    def __call__(
        self,
        t: Float[Array, "b h w *n c"],
        f_cwt: Float[Array, "b h w d"],
        c: Float[Array, "b h w *n 1"] | None,
        enlarge: Callable[[Array], Array],
    ) -> Float[Array, "b h w *n e"]:
        """F_SAT from T, F_CWT and C; arguments as those of `Fusion`.

        Raises:
            ValueError: If the gate is unknown.
        """
        if c is not None:
            t = t * self._gate(t, f_cwt, c, enlarge)
        return self.join(t, f_cwt, enlarge)

    def _gate(
        self, t: Array, f_cwt: Array, c: Array, enlarge: Callable[[Array], Array]
    ) -> Array:
        if self.gate == "literal":
            return c
        if self.gate == "confidence":
            a = self.param("gate_slope", nn.initializers.constant(4.0), ())
            b = self.param("gate_bias", nn.initializers.constant(-2.0), ())
            return nn.sigmoid(a * c + b).astype(self.dtype)
        if self.gate != "network":
            raise ValueError(
                f"gate must be confidence, network or literal, got {self.gate!r}."
            )
        seen = jnp.concatenate([c, enlarge(f_cwt), t], axis=-1)
        seen = nn.relu(linear(self.features, seen, dtype=self.dtype, name="gate_in"))
        return nn.sigmoid(linear(t.shape[-1], seen, dtype=self.dtype, name="gate_out"))


class _Join(nn.Module):
    """`W [T, enlarge(F)] + b`, as `W_1 T + enlarge(W_2 F) + b`, which is the same.

    The enlargement is linear and its weights add up to one.
    """

    features: int
    dtype: DTypeLike

    @nn.compact
    def __call__(self, t: Array, f: Array, enlarge: Callable[[Array], Array]) -> Array:
        width = t.shape[-1] + f.shape[-1]
        kernel = self.param("kernel", kernel_init, (width, self.features), jnp.float32)
        bias = self.param("bias", bias_init(width), (self.features,), jnp.float32)
        of_t, of_f = jnp.split(kernel.astype(self.dtype), [t.shape[-1]])
        t, f = (x.astype(self.dtype) for x in (t, f))
        both = t @ of_t + enlarge(f @ of_f)
        return both + bias.astype(self.dtype).reshape((1,) * (both.ndim - 1) + (-1,))


class Retrieved(NamedTuple):
    """What was found in the reference.

    Attributes:
        t, c: T and C as the fusion takes them, see `Fusion`.
        p: P, int32 on the grid of the queries; None where there is none.
        confidence: C there, float32; None where there is none.
    """

    t: Array
    c: Array | None
    p: Array | None
    confidence: Array | None


class Retrieval(nn.Module):
    """The alignment, Eq. 6-9, and what it found on the grid of the fusion.

    Attributes:
        features, scale, grid, map_grid, match_stride, align: See `SAT`.
    """

    features: int = 64
    scale: int = 4
    grid: str = "hr"
    map_grid: str = "hr"
    match_stride: int = 4
    align: Callable[..., nn.Module] = Matching
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self,
        f_cwt: Float[Array, "b h w c"] | None,
        query: Float[Array, "b h2 w2 c"] | None,
        key: Float[Array, "b *r h3 w3 c"] | None,
        value: Float[Array, "b *r h3 w3 d"],
        *,
        index: Int[Array, "b h4 w4"] | None = None,
    ) -> Retrieved:
        """Retrieves from the reference; arguments and errors as those of `SAT`.

        Without `f_cwt` the search is by `query` alone, so it serves every group.
        """
        s = self.scale
        align = _own(self, self.align)
        given = {} if index is None else {"index": index}
        if given and not isinstance(align, Matching):
            raise ValueError(
                "indices stand for the search of Matching; "
                f"{type(align).__name__} makes none."
            )
        base, decimated = f_cwt, False
        if self.map_grid == "hr":
            decimated = self.match_stride != 1
            enlarge = upsample_at if decimated else upsample
            base = None if base is None else enlarge(base, s)
        if decimated:
            key, query = (None if x is None else _decimate(x, s) for x in (key, query))
            value = space_to_depth(value, s)
        t, index, confidence = align(base, query, key, value, **given)
        c = None if confidence is None else confidence.astype(self.dtype)
        if self.map_grid == "hr" and not decimated:
            t = space_to_depth(t, s)
            c = None if c is None else space_to_depth(c, s)
            if c is not None and self.grid == "lr":
                c = jnp.mean(c, axis=-1, keepdims=True)
        elif self.grid == "hr" and c is not None:
            c = space_to_depth(upsample(c, s), s)
        if self.grid == "hr":
            t = _pixels(t, s)
            c = None if c is None else _pixels(c, s)
        return Retrieved(t, c, index, confidence)


class SAT(nn.Module):
    """Alignment and fusion on their grids, Eq. 6-11.

    Maps at HR are kept as the s x s pixels of each cell of the LR grid.

    Attributes:
        features: Channels C.
        scale: Factor s.
        grid: Grid of the fusion. `"hr"`: `Conv1x1([T, Up F_CWT]) * Up(C)` at HR;
            `"lr"`: all on the LR grid, where the pixels of T are channels.
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
        maps: Retrieved | tuple[Array | None, Array | None, Array],
        *,
        index: Int[Array, "b h4 w4"] | None = None,
    ) -> tuple[Float[Array, "b h w d"], Array | None, Array | None]:
        """Retrieves from the reference.

        Args:
            f_cwt: Structure features on the LR grid.
            maps: `(query, key, value)`: features of the bicubic LR image from the SFE
                on the grid of `key`, or None; SFE of the blurred reference, None where
                nothing is compared; SFE of the reference. Several references are an
                axis after the first. Or what was retrieved for all groups at once.
            index: P to use instead of searching.

        Returns:
            `(F_SAT, P, C)`: F_SAT on the LR grid, with C channels for each pixel of
            `grid`; P int32 and C float32 on the grid of the queries, each None where
            the alignment has none.

        Raises:
            ValueError: If `index` is given and there is no search, or the alignment
                cannot take the maps.
        """
        s = self.scale
        found = maps
        if not isinstance(found, Retrieved):
            retrieve = partial(
                Retrieval,
                scale=s,
                grid=self.grid,
                map_grid=self.map_grid,
                match_stride=self.match_stride,
                align=self.align,
            )
            found = _own(self, retrieve)(f_cwt, *maps, index=index)
        if found.t.shape[1:3] != f_cwt.shape[1:3]:
            raise ValueError(
                "the alignment takes the reference at the query's own position: ref "
                "must have the size of the output, got a grid of "
                f"{found.t.shape[1]}x{found.t.shape[2]} for "
                f"{f_cwt.shape[1]}x{f_cwt.shape[2]}."
            )

        def enlarge(x: Array) -> Array:
            return _pixels(space_to_depth(upsample(x, s), s), s)

        fuse = _own(self, self.fuse)
        same = self.grid == "lr"
        f_sat = fuse(found.t, f_cwt, found.c, (lambda x: x) if same else enlarge)
        f_sat = f_sat.reshape(*f_cwt.shape[:3], -1)
        return f_sat, found.p, found.confidence


def _own(parent: nn.Module, make: Callable[..., nn.Module]) -> nn.Module:
    """A part whose parameters are its parent's."""
    part = make(features=parent.features, dtype=parent.dtype)
    nn.share_scope(parent, part)
    return part


def _pixels(cells: Float[Array, "b h w d"], s: int) -> Float[Array, "b h w n c"]:
    """The channels of `space_to_depth` as the n = s * s pixels that they are."""
    return cells.reshape(*cells.shape[:3], s * s, -1)


def _decimate(x: Array, s: int) -> Array:
    """Every s-th sample, nearest to the centre of its s x s cell."""
    return x[..., s // 2 :: s, s // 2 :: s, :]
