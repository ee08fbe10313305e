"""`pair_score` and `transfer`: what is differentiated once P is known."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from daasr_jax.matching.window import (
    Keys,
    Window,
    add,
    check,
    gather,
    over_channels,
)


def pair_score(
    query: Float[Array, "b hq wq c"],
    key: Float[Array, "b *r hk wk c"],
    index: Int[Array, "b gq wgq"],
    *,
    patch: int = 3,
    stride: int = 1,
    dilation: int = 1,
) -> Float[Array, "b gq wgq 1"]:
    """Cosine of each query patch and its chosen key patch: the map C of Eq. 9.

    Differentiable in `query` and `key`. Time O(n patch^2 C), memory O(n C), for n
    queries. Several choices for each query: `jax.vmap` over the last axis of theirs.

    Args:
        query: Query map.
        key: Key map or maps.
        index: Row-major positions in the key grid, as `search` returns them.
        patch, stride, dilation: Those given to `search`.

    Returns:
        float32 in [-1, 1]; 0 where either patch is empty (norm below 1e-6).

    Raises:
        ValueError: If shapes disagree or a patch argument is out of range.
    """
    window = Window(patch, stride, dilation)
    query, key = check(query, key)
    query, key = query.astype(jnp.float32), key.astype(jnp.float32)
    b, *grid = index.shape
    padded, inverse = window.pad(query), window.inverse_norm(query)
    keys = Keys.of(key, window)
    place = keys.place(index)
    product = over_channels(
        add(
            window.entry(padded, i, j, (grid[0], grid[1])) * keys.entry(place, i, j)
            for i in range(patch)
            for j in range(patch)
        )
    )
    theirs = window.inverse_norm(key).reshape(b, -1, 1)
    inverse = inverse * gather(theirs, index)[..., 0]
    return (product * inverse)[..., None]


def transfer(
    value: Float[Array, "b *r hk wk c"],
    index: Int[Array, "b gq wgq"],
    *,
    patch: int = 3,
    stride: int = 1,
    dilation: int = 1,
    size: tuple[int, int] | None = None,
) -> Float[Array, "b hq wq c"]:
    """The chosen value patches laid over the query map, overlaps averaged: T.

    Every pixel receives the mean over the patches that cover it, counting only entries
    that lie inside both maps, so borders are not darkened and a constant `value` comes
    back exactly; a pixel that no entry covers is 0. Differentiable in `value`. Time
    O(n patch^2 C), memory O(n C). To transfer patches of a map `s` times finer than the
    search grid (patch 3s, stride s), move its s x s cells to channels first
    (space-to-depth): the two are the same.

    Args:
        value: Value map or maps, of the size of the keys.
        index: Row-major positions in the key grid, as `search` returns them.
        patch, stride, dilation: Those given to `search`.
        size: Height and width of the query map; by default `stride` times the grid.

    Returns:
        Map of `size`, in the dtype of `value`.

    Raises:
        ValueError: If `size` does not have this grid, or an argument is out of range.
    """
    window = Window(patch, stride, dilation)
    value = value if value.ndim == 5 else value[:, None]
    b, r, hk, wk, c = value.shape
    gq, wgq = index.shape[1:]
    height, width = size or (gq * stride, wgq * stride)
    if (window.grid(height), window.grid(width)) != (gq, wgq):
        raise ValueError(f"size {size} has no grid of {gq}x{wgq} at stride {stride}.")
    gk, wgk = window.grid(hk), window.grid(wk)
    flat = value.reshape(b, r * hk * wk, c)
    reference, within = index // (gk * wgk), index % (gk * wgk)
    row, column = within // wgk * stride, within % wgk * stride
    mean = jnp.zeros((b, height, width, c), value.dtype)
    count = jnp.zeros((b, height, width), jnp.float32)
    # Outwards from the centre: entry (dy, dx) of the patch whose centre is (-dy, -dx)
    # away. Every pixel asks the patch that covers it with this entry, if there is one.
    n = range(-(patch // 2), patch // 2 + 1)
    for dy, dx in sorted(
        ((i * dilation, j * dilation) for i in n for j in n),
        key=lambda d: d[0] ** 2 + d[1] ** 2,
    ):
        y, has_y = _covering(height, gq, dy, stride)
        x, has_x = _covering(width, wgq, dx, stride)

        def asked(grid: Array, y: np.ndarray = y, x: np.ndarray = x) -> Array:
            return grid[:, y][:, :, x]

        source_row, source_column = asked(row) + dy, asked(column) + dx
        inside = (
            (jnp.asarray(has_y[:, None] & has_x[None])[None])
            & ((source_row >= 0) & (source_row < hk))
            & ((source_column >= 0) & (source_column < wk))
        )
        source = (asked(reference) * hk + source_row) * wk + source_column
        count += inside
        weight = jnp.where(inside, 1.0 / jnp.maximum(count, 1.0), 0.0)
        entry = gather(flat, jnp.where(inside, source, 0))
        mean += weight[..., None].astype(value.dtype) * (entry - mean)
    return mean


def _covering(
    size: int, grid: int, offset: int, stride: int
) -> tuple[np.ndarray, np.ndarray]:
    """For each pixel: the patch that covers it with the entry `offset`, if any."""
    patch, rest = np.divmod(np.arange(size) - offset, stride)
    has = (rest == 0) & (patch >= 0) & (patch < grid)
    return np.where(has, patch, 0), has
