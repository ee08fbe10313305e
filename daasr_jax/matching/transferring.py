"""`pair_score` and `transfer`: what is differentiated once P is known.

Both have gradients of their own. Autodiff would hold the nine entries of all patches at
once, which is more than all the rest of a search holds.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int

from daasr_jax.matching.window import (
    Keys,
    Window,
    add,
    check,
    gather,
    over_channels,
    scatter,
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

    Differentiable in `query` and `key` (in reverse). Time O(n patch^2 C), memory
    O(n C), for n queries. Several choices for each query: `jax.vmap` over the last axis
    of theirs.

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
    query, key = check(query, key)
    query, key = query.astype(jnp.float32), key.astype(jnp.float32)
    index = jnp.asarray(index)
    score = _cosine(query, key, index, Window(patch, stride, dilation))
    return jnp.asarray(score)[..., None]


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
    back exactly; a pixel that no entry covers is 0. Differentiable in `value` (in
    reverse). Time O(n patch^2 C), memory O(n C). To transfer patches of a map `s` times
    finer than the search grid (patch 3s, stride s), move its s x s cells to channels
    first (space-to-depth): the two are the same.

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
    index = jnp.asarray(index)
    gq, wgq = index.shape[1:]
    height, width = size or (gq * stride, wgq * stride)
    if (window.grid(height), window.grid(width)) != (gq, wgq):
        raise ValueError(f"size {size} has no grid of {gq}x{wgq} at stride {stride}.")
    return _mean_of_patches(value, index, window, (height, width))


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _cosine(query: Array, key: Array, index: Array, window: Window) -> Array:
    return _cosine_forward(query, key, index, window)[0]


def _cosine_forward(
    query: Array, key: Array, index: Array, window: Window
) -> tuple[Array, tuple]:
    b, *grid = index.shape
    padded, mine = window.pad(query), window.inverse_norm(query)
    keys = Keys.of(key, window)
    place = keys.place(index)
    n = range(window.patch)
    product = over_channels(
        add(
            window.entry(padded, i, j, (grid[0], grid[1])) * keys.entry(place, i, j)
            for i in n
            for j in n
        )
    )
    theirs = window.inverse_norm(key)
    theirs = gather(theirs.reshape(b, -1, 1), index)[..., 0]
    score = product * (mine * theirs)
    return score, (query, key, index, score, mine, theirs)


def _cosine_backward(
    window: Window, saved: tuple, g: Array
) -> tuple[Array, Array, None]:
    """With C = u v <q, k>: dq = g (u v k - C u^2 q) and dk = g (u v q - C v^2 k)."""
    query, key, index, score, mine, theirs = saved
    b, r, hk, wk, c = key.shape
    flat = key.reshape(b, r * hk * wk, c)
    across = g * mine * theirs
    d_query = -query * window.spread(g * score * mine**2, query.shape[1:3])[..., None]

    def entry(carry: tuple[Array, Array], which: tuple) -> tuple[tuple, None]:
        d_query, d_key = carry
        patch, source, inside = _entry(index, which, window, (hk, wk))
        weight = jnp.where(inside, patch(across), 0.0)[..., None]
        d_query += weight * gather(flat, source)
        return (d_query, scatter(d_key, source, weight * query)), None

    start = (d_query, jnp.zeros_like(flat))
    which = _covering(index, window, query.shape[1:3])
    d_query, d_key = lax.scan(entry, start, which)[0]
    own = jnp.zeros((b, r * window.grid(hk) * window.grid(wk), 1))
    own = scatter(own, index, (g * score * theirs**2)[..., None])
    own = own.reshape(b, r, window.grid(hk), window.grid(wk))
    d_key = d_key.reshape(key.shape) - key * window.spread(own, (hk, wk))[..., None]
    return d_query, d_key, None


_cosine.defvjp(_cosine_forward, _cosine_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _mean_of_patches(
    value: Array, index: Array, window: Window, size: tuple[int, int]
) -> Array:
    return _mean_forward(value, index, window, size)[0]


def _mean_forward(
    value: Array, index: Array, window: Window, size: tuple[int, int]
) -> tuple[Array, tuple]:
    b, r, hk, wk, c = value.shape
    flat = value.reshape(b, r * hk * wk, c)
    mean = jnp.zeros((b, *size, c), value.dtype)
    count = jnp.zeros((b, *size), jnp.float32)
    for which in zip(*_covering(index, window, size), strict=True):
        _, source, inside = _entry(index, which, window, (hk, wk))
        # A running mean: that of equals is exactly theirs.
        count += inside
        weight = jnp.where(inside, 1.0 / jnp.maximum(count, 1.0), 0.0)
        mean += weight[..., None].astype(value.dtype) * (gather(flat, source) - mean)
    # No map is saved, only its shape and dtype.
    empty = jnp.empty((0, *value.shape[1:]), value.dtype)
    return mean, (empty, index, count)


def _mean_backward(
    window: Window, size: tuple[int, int], saved: tuple, g: Array
) -> tuple[Array, None]:
    empty, index, count = saved
    _, r, hk, wk, c = empty.shape
    g = g.astype(jnp.float32) / jnp.maximum(count, 1.0)[..., None]

    def entry(d_value: Array, which: tuple) -> tuple[Array, None]:
        _, source, inside = _entry(index, which, window, (hk, wk))
        return scatter(d_value, source, jnp.where(inside[..., None], g, 0.0)), None

    start = jnp.zeros((len(index), r * hk * wk, c))
    d_value = lax.scan(entry, start, _covering(index, window, size))[0]
    return d_value.reshape(-1, r, hk, wk, c).astype(empty.dtype), None


_mean_of_patches.defvjp(_mean_forward, _mean_backward)


def _covering(
    index: Array, window: Window, size: tuple[int, int]
) -> tuple[np.ndarray, ...]:
    """For every entry of a patch: the patches that cover the pixels with it.

    Returns, along the first axis the entries from the centre of the patch outwards:
    rows and columns from the centre, `(n,)` each; for every row of pixels the row of
    patches and whether there is one, `(n, h)` each; the same for columns, `(n, w)`.
    """
    n = np.arange(-(window.patch // 2), window.patch // 2 + 1) * window.dilation
    dy, dx = (x.reshape(-1) for x in np.meshgrid(n, n, indexing="ij"))
    order = np.argsort(dy**2 + dx**2, kind="stable")
    dy, dx = dy[order], dx[order]
    found = []
    for offset, pixels, patches in zip((dy, dx), size, index.shape[1:], strict=True):
        at, rest = np.divmod(np.arange(pixels) - offset[:, None], window.stride)
        has = (rest == 0) & (at >= 0) & (at < patches)
        found += [np.where(has, at, 0), has]
    return (dy, dx, *found)


def _entry(
    index: Array, which: tuple, window: Window, keys: tuple[int, int]
) -> tuple[Callable[[Array], Array], Array, Array]:
    """One of the entries of `_covering`, at every pixel.

    Args:
        index: `(b, gq, wgq)`.
        which: Of each array of `_covering` one element of its first axis.
        window: The patches.
        keys: Height and width of each key map.

    Returns:
        Function that takes an array of the query patches to the pixels; position, in
        the flat key maps, of the entry of the chosen patch, `(b, h, w)`; whether it
        lies inside both maps (else the position is 0).
    """
    dy, dx, y, has_y, x, has_x = which
    hk, wk = keys
    gk, wgk = window.grid(hk), window.grid(wk)

    def patch(grid: Array) -> Array:
        return grid[:, y][:, :, x]

    chosen = patch(index)
    reference, within = chosen // (gk * wgk), chosen % (gk * wgk)
    row = within // wgk * window.stride + dy
    column = within % wgk * window.stride + dx
    inside = (
        (has_y[:, None] & has_x[None])[None]
        & ((row >= 0) & (row < hk))
        & ((column >= 0) & (column < wk))
    )
    source = (reference * hk + row) * wk + column
    return patch, jnp.where(inside, source, 0), inside
