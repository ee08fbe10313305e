"""Search near each query's own place, for two maps on one grid.

The queries go in tiles. Each is compared with the keys of a window around it, so that
the time grows with the number of queries, not with its square.
"""

from __future__ import annotations

from collections.abc import Callable

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from daasr_jax.matching.window import Window

TILE = 16  # queries along a side that share a window

# Best key of every query of a tile: query and keys padded, `scale` not.
Form = Callable[[Array, Array, Array], Array]


def search_batch(
    query: Array,
    key: Array,
    scale: Array,
    *,
    window: Window,
    within: int,
    top: int | Array,
    best: Form,
) -> Array:
    """Best key of every query, among those around its own place.

    Args:
        query: `(b, h, w, c)`, float32: all rows of the grid, or some of them.
        key: `(b, r, h', w, c)`, r maps of the whole grid.
        scale: `(b, r, h', w)`, factor of each key: its reciprocal norm.
        window: The patches.
        within: Rows and columns around a tile of queries that its window has. So a
            query sees all keys that lie as far from it, and some beyond. Tiles lie at
            multiples of `TILE` of the grid, whichever of its rows are asked for.
        top: Row of the grid that is the first of the queries.
        best: `(tile (h, w, c), keys (r, h, w, c), scale) -> (h, w)`, the place in the
            window; maps have the border that patches need.

    Returns:
        Positions `(b, h, w)` in the r key maps one after the other, int32.
    """
    b, hq, wq, _ = query.shape
    _, r, hk, wk = scale.shape
    halo = window.patch - 1
    high, broad = (min(n, TILE + 2 * within) for n in (hk, wk))
    first = top // TILE
    aligned = isinstance(top, int) and top % TILE == 0
    rows = -(-hq // TILE) + (0 if aligned else 1)
    columns = -(-wq // TILE)
    around = ((0, 0), (TILE, TILE * (rows + 1) - hq), (0, TILE * columns - wq), (0, 0))
    query, key = window.pad(jnp.pad(query, around)), window.pad(key)

    def tile(found: Array, n: Array) -> tuple[Array, None]:
        image, n = n // (rows * columns), n % (rows * columns)
        y, x = (first + n // columns) * TILE, n % columns * TILE
        above = jnp.clip(y - within, 0, hk - high)
        left = jnp.clip(x - within, 0, wk - broad)
        own = (image, y - top + TILE, x)
        at = best(
            _cut(query, own, (TILE + halo, TILE + halo)),
            _cut(key, (image, 0, above, left), (r, high + halo, broad + halo)),
            _cut(scale[..., None], (image, 0, above, left), (r, high, broad))[..., 0],
        )
        which, place = at // (high * broad), at % (high * broad)
        row, column = place // broad + above, place % broad + left
        index = ((which * hk + row) * wk + column).astype(jnp.int32)
        return lax.dynamic_update_slice(found, index[None], own), None

    empty = jnp.zeros((b, TILE * (rows + 2), TILE * columns), jnp.int32)
    found, _ = lax.scan(tile, empty, jnp.arange(b * rows * columns))
    return found[:, TILE : TILE + hq, :wq]


def _cut(x: Array, start: tuple, size: tuple[int, ...]) -> Array:
    """A part of one image of `x (b, ..., c)`, all its channels."""
    part = lax.dynamic_slice(x, (*start, 0), (1, *size, x.shape[-1]))
    return part[0]
