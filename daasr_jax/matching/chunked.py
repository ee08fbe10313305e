"""Exact search by chunked products, for accelerators: plain matrix products.

Queries in chunks against all key patches, inner size patch^2 C. XLA does not fuse a
matrix product into its maximum, so every chunk of scores goes through memory once.
"""

from __future__ import annotations

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from daasr_jax.matching.window import Window


def search_batch(
    query: Array,
    key: Array,
    scale: Array,
    lost: Array,
    *,
    window: Window,
    top: int,
    budget: int,
) -> tuple[Array, Array]:
    """Best keys of every query.

    Args:
        query: `(b, h, w, c)`.
        key: `(b, r, h', w', c)`, r maps, in the dtype of `query`.
        scale: `(b, r, gk, wk)`, factor of each key: its reciprocal norm.
        lost: `(b, r, gk, wk)`, added to each key's score: 0 or -inf.
        window: The patches.
        top: Keys to find for each query.
        budget: Bytes of scores held at once.

    Returns:
        Scores `(b, gq, wq, top)` float32, falling, and positions in the r key grids one
        after the other, int32; the lowest of equals.
    """
    b = query.shape[0]
    queries = window.unfold(query)
    grid = queries.shape[1:3]
    queries = queries.reshape(b, -1, queries.shape[-1])
    keys = window.unfold(key)
    keys = keys.reshape(b, -1, keys.shape[-1])
    scale, lost = (x.reshape(b, 1, -1) for x in (scale, lost))
    n, m = queries.shape[1], keys.shape[1]
    chunk = max(1, min(n, budget // (4 * m * b)))
    chunks = -(-n // chunk)
    queries = jnp.pad(queries, ((0, 0), (0, chunks * chunk - n), (0, 0)))

    def best(start: Array) -> tuple[Array, Array]:
        part = lax.dynamic_slice_in_dim(queries, start, chunk, axis=1)
        score = jnp.einsum(
            "bqc,bkc->bqk",
            part,
            keys,
            precision=lax.Precision.HIGHEST,
            preferred_element_type=jnp.float32,
        )
        score = score * scale + lost
        if top == 1:
            index = jnp.argmax(score, axis=-1)[..., None]
            return jnp.take_along_axis(score, index, axis=-1), index.astype(jnp.int32)
        return lax.top_k(score, top)

    found = lax.map(best, jnp.arange(chunks) * chunk)
    score, index = (
        jnp.moveaxis(x, 0, 1).reshape(b, -1, top)[:, :n].reshape(b, *grid, top)
        for x in found
    )
    return score, index
