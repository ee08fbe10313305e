"""Exact search by chunked products, for accelerators: plain matrix products.

Queries in chunks against all key patches, inner size patch^2 C. XLA does not fuse a
matrix product into its maximum, so every chunk of scores goes through memory once.
"""

from __future__ import annotations

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from daasr_jax.matching.window import Window

CHUNK = 128  # queries at once where sizes are symbols, of which no budget can be made


def search_batch(
    query: Array, key: Array, scale: Array, *, window: Window, budget: int | None
) -> Array:
    """Best key of every query.

    Args:
        query: `(b, h, w, c)`, float32.
        key: `(b, r, h', w', c)`, r maps.
        scale: `(b, r, h', w')`, factor of each key: its reciprocal norm.
        window: The patches.
        budget: Bytes of scores held at once; None for those of `CHUNK` queries.

    Returns:
        Positions `(b, h, w)` in the r key maps one after the other, int32; the lowest
        of equals.
    """
    return _best(window.unfold(query), window.unfold(key), scale, budget)


def search_image(
    query: Array, key: Array, scale: Array, window: Window, budget: int
) -> Array:
    """Of one image: padded maps `(h, w, c)` and `(r, h', w', c)`, `scale` not."""
    r = window.reach
    query, key = (
        window.unfold(x)[..., r : x.shape[-3] - r, r : x.shape[-2] - r, :]
        for x in (query, key)
    )
    return _best(query[None], key[None], scale[None], budget)[0]


def _best(queries: Array, keys: Array, scale: Array, budget: int | None) -> Array:
    """Of patches `(b, h, w, p2c)` and `(b, r, h', w', p2c)`."""
    b, h, w, _ = queries.shape
    queries, keys = (x.reshape(b, -1, x.shape[-1]) for x in (queries, keys))
    scale = scale.reshape(b, 1, -1)
    n, m = queries.shape[1], keys.shape[1]
    chunk = CHUNK if budget is None else max(1, min(n, budget // (4 * m * b)))
    chunks = -(-n // chunk)
    queries = jnp.pad(queries, ((0, 0), (0, chunks * chunk - n), (0, 0)))

    def best(start: Array) -> Array:
        part = lax.dynamic_slice_in_dim(queries, start, chunk, axis=1)
        score = jnp.einsum(
            "bqc,bkc->bqk",
            part,
            keys,
            precision=lax.Precision.HIGHEST,
            preferred_element_type=jnp.float32,
        )
        return jnp.argmax(score * scale, axis=-1).astype(jnp.int32)

    found = lax.map(best, jnp.arange(chunks) * chunk)
    return jnp.moveaxis(found, 0, 1).reshape(b, -1)[:, :n].reshape(b, h, w)
