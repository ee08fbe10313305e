"""Spatial Alignment Transformer (SAT), section 3.4: retrieval from the reference."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.ad_checkpoint import checkpoint_name
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from daasr_jax.matching import match, search
from daasr_jax.models.init import kernel_init, linear
from daasr_jax.resampling import depth_to_space, space_to_depth, upsample

ALIGNMENTS = ("matching", "none", "cross_attention")
_BUDGET_BYTES = 64 * 2**20  # of the float32 scores that cross-attention holds at once
INDEX = "index"  # P by this name is kept where activations are computed again


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
        alignment: Where T comes from. `"matching"`: Eq. 7-9. `"none"`: V at the
            query's own position, no search and no score; Table 4 "w/o K-V Matching",
            which is Figure 6 "w/o P & C" too. `"cross_attention"`: `softmax(Q K^T /
            sqrt(C)) V` over all positions of the tokens that the matching compares, no
            score; Table 4 "RC to CrossAlign".
        modulation: False leaves F_CWT out of the concatenation of Eq. 10; it still
            makes the query. Table 4 "w/o F_CWT".
        index_map: False takes V at the query's own position where P points elsewhere,
            and keeps the score C of the search. Figure 6 "w/o Index Map (P)".
        score_map: False leaves out the product with C of Eq. 11. The search has no
            gradient, so `W_q` then learns nothing. Figure 6 "w/o Score Map (C)".
    """

    features: int = 64
    scale: int = 4
    grid: str = "hr"
    map_grid: str = "hr"
    match_stride: int = 4
    patch: int = 3
    dtype: DTypeLike = jnp.float32
    alignment: str = "matching"
    modulation: bool = True
    index_map: bool = True
    score_map: bool = True

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
                or None. When given, `W_q` starts at zero, so that query and key agree
                before anything is learned.
            key: SFE of the blurred reference; None where nothing is compared.
            value: SFE of the reference.
            index: P to use instead of searching.

        Returns:
            `(F_SAT, P, C)`: F_SAT on `grid` with C channels; P int32 and C float32 on
            the grid of the queries, None both where there is no search.

        Raises:
            ValueError: If a field is out of its choices or does not go with another,
                or if the own position is asked of a reference of another size.
        """
        check_alignment(self.alignment, self.index_map, self.score_map)
        s = self.scale
        up = f_cwt
        if self.map_grid == "hr" or self.grid == "hr":
            up = upsample(f_cwt, s)
        base = up if self.map_grid == "hr" else f_cwt
        if self.map_grid == "hr" and self.match_stride != 1:
            base = _decimate(base, s)
            key, query = (None if x is None else _decimate(x, s) for x in (key, query))
            value = space_to_depth(value, s)
        t, index, confidence = self._align(base, query, key, value, index)
        weight = None
        if confidence is not None and self.score_map:
            weight = confidence.astype(self.dtype)
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
        f_sat = self._fuse(t, up)
        return f_sat if weight is None else f_sat * weight, index, confidence

    def _align(
        self,
        base: Array,
        query: Array | None,
        key: Array | None,
        value: Array,
        index: Array | None,
    ) -> tuple[Array, Array | None, Array | None]:
        """`(T, P, C)` on the grid of `base`, P and C None without a search."""
        if self.alignment == "none":
            return _own_position(base, value), None, None
        if key is None:
            raise ValueError(f"alignment={self.alignment!r} needs key, got None.")
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
        if self.alignment == "cross_attention":
            return cross_attention(q, key, value), None, None
        if index is None:
            index = checkpoint_name(search(q, key, patch=self.patch), INDEX)
        t, index, confidence = match(q, key, value, patch=self.patch, index=index)
        return t if self.index_map else _own_position(base, value), index, confidence

    def _fuse(self, t: Array, structure: Array) -> Array:
        """Conv1x1 of Eq. 10-11 over the concatenation, over T alone unmodulated."""
        both = jnp.concatenate([t, structure], axis=-1) if self.modulation else t
        return linear(self.features, both, dtype=self.dtype, name="fuse")


def check_alignment(alignment: str, index_map: bool, score_map: bool) -> None:
    """Raises ValueError where the fields of `SAT` say nothing or contradict."""
    if alignment not in ALIGNMENTS:
        raise ValueError(f"alignment must be one of {ALIGNMENTS}, got {alignment!r}.")
    if index_map and score_map:
        return
    if alignment != "matching":
        raise ValueError(
            "index_map=False and score_map=False take a part of alignment='matching' "
            f"away; alignment={alignment!r} has neither map, leave both True."
        )
    if not index_map and not score_map:
        raise ValueError(
            "index_map=False with score_map=False leaves nothing of the matching: it "
            "is alignment='none'."
        )


def cross_attention(
    query: Float[Array, "b h w c"],
    key: Float[Array, "b h2 w2 c"],
    value: Float[Array, "b h2 w2 d"],
    *,
    budget_bytes: int = _BUDGET_BYTES,
) -> Float[Array, "b h w d"]:
    """softmax(Q K^T / sqrt(c)) V over all positions of the reference.

    Logits and softmax are float32. The queries go in chunks, which the backward pass
    computes again: no more than `budget_bytes` of scores are held at once, a few times
    that in the backward pass, where all of a 64x64 grid would be 64 MiB for each image
    and group. A chunk is one position of every image at least.
    """
    b, h, w, c = query.shape
    n, m = h * w, key.shape[1] * key.shape[2]
    k, v = key.reshape(b, m, c), value.reshape(b, m, -1)
    chunks = -(-n // max(1, budget_bytes // (4 * b * m)))
    size = -(-n // chunks)
    q = jnp.pad(query.reshape(b, n, c), ((0, 0), (0, chunks * size - n), (0, 0)))
    q = q.reshape(b, chunks, size, c).swapaxes(0, 1)

    @jax.checkpoint
    def attend(q: Array, k: Array, v: Array) -> Array:
        logits = jnp.einsum("bnc,bmc->bnm", q, k, preferred_element_type=jnp.float32)
        weights = jax.nn.softmax(logits * c**-0.5, axis=-1).astype(v.dtype)
        return jnp.einsum("bnm,bmd->bnd", weights, v)

    out = jax.lax.map(lambda q: attend(q, k, v), q)
    return out.swapaxes(0, 1).reshape(b, chunks * size, -1)[:, :n].reshape(b, h, w, -1)


def _own_position(base: Array, value: Array) -> Array:
    """V where the query is: the two grids must be one."""
    if base.shape[1:3] != value.shape[1:3]:
        raise ValueError(
            "alignment='none' and index_map=False take the reference at the query's "
            f"own position: ref must have the size of the output, got a grid of "
            f"{value.shape[1]}x{value.shape[2]} for {base.shape[1]}x{base.shape[2]}."
        )
    return value


def _decimate(x: Array, s: int) -> Array:
    """Every s-th sample, nearest to the centre of its s x s cell."""
    return x[:, s // 2 :: s, s // 2 :: s]
