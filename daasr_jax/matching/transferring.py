"""`pair_score` and `transfer`: what is differentiated once P is known.

On a CPU (`cpu_forms`) both have gradients of their own, in reverse only, which take one
entry of all patches after the other. Elsewhere JAX differentiates them, in both modes
and as sparingly: a scan over the entries, which gathers again what it gathered.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int

from daasr_jax.forms import cpu_forms
from daasr_jax.matching.window import (
    Window,
    check,
    gather,
    over_channels,
    scatter,
)


def pair_score(
    query: Float[Array, "b hq wq c"],
    key: Float[Array, "b *r hk wk c"],
    index: Int[Array, "b hq wq"],
    *,
    patch: int = 3,
) -> Float[Array, "b hq wq 1"]:
    """Cosine of each query patch and its chosen key patch: the map C of Eq. 9.

    Differentiable in `query` and `key`; in reverse only where `cpu_forms`. Time
    O(n patch^2 C), memory O(n C), for n queries.

    Args:
        query: Query map.
        key: Key map or maps.
        index: Row-major positions in the key maps, as `search` returns them.
        patch: That given to `search`.

    Returns:
        float32 in [-1, 1]; 0 where either patch is empty (norm below 1e-6).

    Raises:
        ValueError: If shapes disagree or `patch` is out of range.
    """
    query, key = check(query, key)
    query, key = query.astype(jnp.float32), key.astype(jnp.float32)
    index = jnp.asarray(index)
    if index.shape != query.shape[:3]:
        raise ValueError(
            f"index must have the shape {query.shape[:3]}, got {index.shape}."
        )
    form = _cosine if cpu_forms() else _cosine_plain
    return jnp.asarray(form(query, key, index, Window(patch)))[..., None]


def transfer(
    value: Float[Array, "b *r hk wk c"],
    index: Int[Array, "b hq wq"],
    *,
    patch: int = 3,
) -> Float[Array, "b hq wq c"]:
    """The chosen value patches laid over the query map, overlaps averaged: T.

    Every pixel receives the mean over the patches that cover it, counting only entries
    that lie inside both maps, so borders are not darkened and a constant `value` comes
    back exactly. Differentiable in `value`; in reverse only where `cpu_forms`. Time
    O(n patch^2 C), memory O(n C). To transfer patches of a map `s` times finer than the
    search grid (patch 3s, stride s), move its s x s cells to channels first
    (space-to-depth): the two are the same.

    Args:
        value: Value map or maps, of the size of the keys.
        index: Row-major positions in the key maps, as `search` returns them.
        patch: That given to `search`.

    Returns:
        Map of the size of `index`, in the dtype of `value`.

    Raises:
        ValueError: If `patch` is out of range.
    """
    value = value if value.ndim == 5 else value[:, None]
    form = _mean_of_patches if cpu_forms() else _mean_plain
    return form(value, jnp.asarray(index), Window(patch))


def _cosine_plain(query: Array, key: Array, index: Array, window: Window) -> Array:
    return _cosine_forward(query, key, index, window)[0]


_cosine = jax.custom_vjp(_cosine_plain, nondiff_argnums=(3,))


def _cosine_forward(
    query: Array, key: Array, index: Array, window: Window
) -> tuple[Array, tuple]:
    product = _product(query, key, index, window)
    mine = window.inverse_norm(query)
    theirs = window.inverse_norm(key).reshape(len(index), -1, 1)
    theirs = gather(theirs, index)[..., 0]
    score = product * (mine * theirs)
    return score, (query, key, index, score, mine, theirs)


def _product(query: Array, key: Array, index: Array, window: Window) -> Array:
    """Inner product of each query patch and its chosen key patch."""
    b, _, hk, wk, c = key.shape
    mine, theirs = window.pad(query), window.pad(key)
    rows, width = theirs.shape[2:4]
    theirs = theirs.reshape(b, -1, c)
    row, column = index // (hk * wk) * rows + index % (hk * wk) // wk, index % wk
    first = row * width + column  # entry of each chosen patch

    def entry(total: Array, offset: Array | np.ndarray) -> Array:
        i, j = offset
        part = lax.dynamic_slice(mine, (0, i, j, 0), query.shape)
        return total + part * gather(theirs, first + i * width + j)

    corner_first = np.argwhere(np.ones((window.patch,) * 2)).astype(np.int32)
    return over_channels(_over(corner_first, entry, jnp.zeros_like(query)))


def _cosine_backward(
    window: Window, saved: tuple, g: Array
) -> tuple[Array, Array, None]:
    """With C = u v <q, k>: dq = g (u v k - C u^2 q) and dk = g (u v q - C v^2 k)."""
    query, key, index, score, mine, theirs = saved
    b, r, hk, wk, c = key.shape
    flat = key.reshape(b, r * hk * wk, c)
    across = g * mine * theirs
    d_query = -query * window.spread(g * score * mine**2)[..., None]

    def entry(
        carry: tuple[Array, Array], offset: Array | np.ndarray
    ) -> tuple[tuple, None]:
        d_query, d_key = carry
        source, inside = _source(index, offset, window, (hk, wk))
        weight = _moved(across, offset, window, 0)
        weight = jnp.where(inside, weight, 0.0)[..., None]
        d_query += weight * gather(flat, source)
        return (d_query, scatter(d_key, source, weight * query)), None

    start = (d_query, jnp.zeros_like(flat))
    d_query, d_key = lax.scan(entry, start, jnp.asarray(_offsets(window)))[0]
    own = jnp.zeros((b, r * hk * wk, 1))
    own = scatter(own, index, (g * score * theirs**2)[..., None])
    own = window.spread(own.reshape(b, r, hk, wk))
    return d_query, d_key.reshape(key.shape) - key * own[..., None], None


_cosine.defvjp(_cosine_forward, _cosine_backward)


def _mean_plain(value: Array, index: Array, window: Window) -> Array:
    return _mean_forward(value, index, window)[0]


_mean_of_patches = jax.custom_vjp(_mean_plain, nondiff_argnums=(2,))


def _mean_forward(value: Array, index: Array, window: Window) -> tuple[Array, tuple]:
    b, r, hk, wk, c = value.shape
    # In float32: the mean does not drift, and gradients add up without loss.
    flat = value.reshape(b, r * hk * wk, c).astype(jnp.float32)

    def entry(
        carry: tuple[Array, Array], offset: Array | np.ndarray
    ) -> tuple[Array, Array]:
        mean, count = carry
        source, inside = _source(index, offset, window, (hk, wk))
        # A running mean: that of equals is exactly theirs.
        count += inside
        weight = jnp.where(inside, 1.0 / jnp.maximum(count, 1.0), 0.0)
        return mean + weight[..., None] * (gather(flat, source) - mean), count

    start = (jnp.zeros((*index.shape, c)), jnp.zeros(index.shape))
    mean, count = _over(_offsets(window), entry, start)
    mean = mean.astype(value.dtype)
    # No map is saved, only its shape and dtype.
    empty = jnp.empty((0, *value.shape[1:]), value.dtype)
    return mean, (empty, index, count)


def _mean_backward(window: Window, saved: tuple, g: Array) -> tuple[Array, None]:
    empty, index, count = saved
    _, r, hk, wk, c = empty.shape
    g = g.astype(jnp.float32) / jnp.maximum(count, 1.0)[..., None]

    def entry(d_value: Array, offset: Array | np.ndarray) -> tuple[Array, None]:
        source, inside = _source(index, offset, window, (hk, wk))
        return scatter(d_value, source, jnp.where(inside[..., None], g, 0.0)), None

    start = jnp.zeros((len(index), r * hk * wk, c))
    d_value = lax.scan(entry, start, jnp.asarray(_offsets(window)))[0]
    return d_value.reshape(-1, r, hk, wk, c).astype(empty.dtype), None


_mean_of_patches.defvjp(_mean_forward, _mean_backward)


def _over(offsets: np.ndarray, entry: Callable[..., Any], carry: Any) -> Any:
    """`entry(carry, offset)` of one offset after the other; unrolled where `cpu_forms`.

    Where JAX differentiates, what an entry gathers is not kept but gathered again.
    """
    if cpu_forms():
        return functools.reduce(entry, offsets, carry)
    again = jax.checkpoint(entry)
    return lax.scan(lambda c, n: (again(c, n), None), carry, jnp.asarray(offsets))[0]


def _offsets(window: Window) -> np.ndarray:
    """Row and column `(n, 2)` of every entry from the centre, that one first."""
    n = np.array(list(np.ndindex(window.patch, window.patch))) - window.reach
    return n[np.argsort((n**2).sum(1), kind="stable")].astype(np.int32)


def _moved(x: Array, offset: Array | np.ndarray, window: Window, fill: int) -> Array:
    """`x (b, h, w)` of the patch that covers each pixel with its entry `offset`."""
    r = window.reach
    padded = jnp.pad(x, ((0, 0), (r, r), (r, r)), constant_values=fill)
    return lax.dynamic_slice(padded, (0, r - offset[0], r - offset[1]), x.shape)


def _source(
    index: Array, offset: Array | np.ndarray, window: Window, keys: tuple[Any, Any]
) -> tuple[Array, Array]:
    """What the patch that covers a pixel with its entry `offset` lays there.

    Args:
        index: `(b, hq, wq)`.
        offset: Row and column of the entry from the centre.
        window: The patches.
        keys: Height and width of each key map: numbers, or symbols of `jax.export`.

    Returns:
        For every pixel, the position of that entry in the flat key maps, and whether it
        lies inside both maps (else the position is 0), `(b, hq, wq)` each.
    """
    (dy, dx), (hk, wk) = offset, keys
    chosen = _moved(index, offset, window, -1)
    row, column = chosen // wk % hk + dy, chosen % wk + dx
    inside = (chosen >= 0) & (row >= 0) & (row < hk) & (column >= 0) & (column < wk)
    return jnp.where(inside, chosen + dy * wk + dx, 0), inside
