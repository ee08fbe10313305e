"""Exact search by diagonal sums, for CPUs.

The product of two patches is the sum, over their entries, of the pointwise products of
the two maps. So a tile of pointwise products (inner size C instead of patch^2 C) is
computed once, and `patch` shifted copies of it are added along each axis.
"""

from __future__ import annotations

import math

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from daasr_jax.matching.window import Window, add


def search_image(
    query: Array,
    key: Array,
    scale: Array,
    lost: Array,
    *,
    window: Window,
    top: int,
    budget: int,
) -> tuple[Array, Array]:
    """Best keys of every query of one image.

    Args:
        query: `(h, w, c)`, padded by `window`.
        key: `(h', w', c)`, padded likewise, in the dtype of `query`.
        scale: `(gk, wk)`, factor of each key: its reciprocal norm.
        lost: `(gk, wk)`, added to each key's score: 0, or -inf where it may not be
            chosen.
        window: The patches.
        top: Keys to find for each query.
        budget: Bytes of scores held at once.

    Returns:
        Scores `(gq, wq, top)` float32, falling, and positions in the key grid, int32;
        the lowest of equals.
    """
    (hk, wk), s = scale.shape, window.stride
    phases = window.phases()
    halo = max(max(shifts) for shifts in phases.values())
    grid_q = tuple(1 + (n - 2 * window.reach - 1) // s for n in query.shape[:2])
    hq, wq = grid_q
    rows_q, rows_k = _tile_rows(hq, wq, hk, wk, halo, budget)
    tiles_q, tiles_k = -(-hq // rows_q), -(-hk // rows_k)
    queries = _phase_maps(query, phases, s, (tiles_q * rows_q + halo, wq + halo))
    keys = _phase_maps(key, phases, s, (tiles_k * rows_k + halo, wk + halo))
    filling = ((0, tiles_k * rows_k - hk), (0, 0))
    scale = jnp.pad(scale, filling)
    lost = jnp.pad(lost, filling, constant_values=-jnp.inf)
    position = jnp.arange(rows_k * wk, dtype=jnp.int32)[:, None, None]

    def rows(maps: dict, start: Array, n: int) -> dict:
        return {
            name: lax.dynamic_slice_in_dim(x, start, n + halo)
            for name, x in maps.items()
        }

    def query_tile(i: Array) -> tuple[Array, Array]:
        q = rows(queries, i * rows_q, rows_q)

        def key_tile(best: tuple[Array, Array], j: Array):
            k = rows(keys, j * rows_k, rows_k)
            score = add(
                _diagonal(
                    q[y, x], k[y, x], phases[y], phases[x], (rows_q, wq, rows_k, wk)
                )
                for y, x in q
            )
            factor = lax.dynamic_slice_in_dim(scale, j * rows_k, rows_k)
            out = lax.dynamic_slice_in_dim(lost, j * rows_k, rows_k)
            score = score * factor[:, :, None, None] + out[:, :, None, None]
            score = score.reshape(rows_k * wk, rows_q, wq)
            found = _top(score, position, top, j * rows_k * wk)
            return merge(best, found, top), None

        start = (
            jnp.full((top, rows_q, wq), -jnp.inf, jnp.float32),
            jnp.zeros((top, rows_q, wq), jnp.int32),
        )
        return lax.scan(key_tile, start, jnp.arange(tiles_k))[0]

    found = lax.map(query_tile, jnp.arange(tiles_q))
    score, index = (jnp.moveaxis(x, 1, -1).reshape(-1, wq, top)[:hq] for x in found)
    return score, index


def _tile_rows(
    hq: int, wq: int, hk: int, wk: int, halo: int, budget: int
) -> tuple[int, int]:
    """Rows of queries and of keys in a tile of `budget` bytes, about square.

    Every tile repeats the halo of both, which costs least when they are equal.
    """
    pairs = budget // (4 * (wk + halo) * (wq + halo))  # of padded rows
    rows_q = max(1, min(hq, math.isqrt(pairs) - halo))
    rows_k = max(1, min(hk, pairs // (rows_q + halo) - halo))
    return max(1, min(hq, pairs // (rows_k + halo) - halo)), rows_k


def _phase_maps(
    padded: Array, phases: dict, stride: int, size: tuple[int, int]
) -> dict[tuple[int, int], Array]:
    """`padded[y::stride, x::stride]` for every pair of residues, filled to `size`."""
    maps = {}
    for y in phases:
        for x in phases:
            part = padded[y::stride, x::stride][: size[0], : size[1]]
            lacking = [(0, n - m) for n, m in zip(size, part.shape, strict=False)]
            maps[y, x] = jnp.pad(part, (*lacking, (0, 0)))
    return maps


def _diagonal(
    q: Array,
    k: Array,
    rows: tuple[int, ...],
    columns: tuple[int, ...],
    size: tuple[int, int, int, int],
) -> Array:
    """Sum of the shifted pointwise products: `(rows_k, wk, rows_q, wq)` float32."""
    rows_q, wq, rows_k, wk = size
    # Keys along the major axes: a reduction over them vectorises over queries.
    point = lax.dot_general(
        k.reshape(-1, k.shape[-1]),
        q.reshape(-1, q.shape[-1]),
        (((1,), (1,)), ((), ())),
        precision=lax.Precision.HIGHEST,
        preferred_element_type=jnp.float32,
    ).reshape(*k.shape[:2], *q.shape[:2])
    score = add(point[:, d : d + wk, :, d : d + wq] for d in columns)
    return add(score[d : d + rows_k, :, d : d + rows_q] for d in rows)


def _top(score: Array, position: Array, top: int, offset: Array) -> tuple[Array, Array]:
    """The `top` best along the first axis, `(top, ...)`, and their positions."""
    last = score.shape[0] - 1
    scores, indices = [], []
    for i in range(top):
        best = jnp.max(score, axis=0)
        index = jnp.min(jnp.where(score == best[None], position, last), axis=0)
        scores.append(best)
        indices.append(index + offset)
        if i + 1 < top:
            score = jnp.where(position == index[None], -jnp.inf, score)
    return jnp.stack(scores), jnp.stack(indices)


def merge(
    a: tuple[Array, Array], b: tuple[Array, Array], top: int
) -> tuple[Array, Array]:
    """The `top` best of two falling lists along the first axis; `a` wins ties."""
    if top == 1:
        better = b[0] > a[0]
        return jnp.where(better, b[0], a[0]), jnp.where(better, b[1], a[1])
    scores = jnp.moveaxis(jnp.concatenate([a[0], b[0]]), 0, -1)
    indices = jnp.moveaxis(jnp.concatenate([a[1], b[1]]), 0, -1)
    scores, order = lax.top_k(scores, top)
    indices = jnp.take_along_axis(indices, order, axis=-1)
    return jnp.moveaxis(scores, -1, 0), jnp.moveaxis(indices, -1, 0)
