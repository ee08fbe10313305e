r"""Patch search, pair score and transfer: the hard retrieval of Eq. 7-9.

A *patch* of a map is its `patch x patch` neighbourhood, zero outside the map; the
similarity of a query and a key patch is the cosine of all their entries (Eq. 7):

.. math:: r_{ij} = \langle q_i / \|q_i\|, k_j / \|k_j\| \rangle, \quad
          P_i = \arg\max_j r_{ij}, \quad C_i = \max_j r_{ij}.

`search` finds P and is not differentiable; `pair_score` computes C for given P and
`transfer` brings the chosen value patches over; both differentiate with respect to
their maps. This split costs O(N patch^2 C) for the gradient, where differentiating
through the search costs as much as several searches.

The search never holds all N x N similarities: it works in tiles under a byte budget.
Two exact forms serve two kinds of machine.

* `"diagonal"` (CPU): the product of two patches is the sum, over the patch offsets, of
  the pointwise products of the two maps. So the tile of pointwise products (inner size
  C) is computed once and `patch` shifted copies are added along each axis.
* `"chunked"` (GPU): queries in chunks against all key patches, inner size patch^2 C.

Ties (black background) may resolve to different indices in the two forms: their scores
differ by rounding only. A patch of norm below 1e-6 holds nothing to compare: it scores
0 against everything, with a zero gradient.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Iterable

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

# Of scores held at once: the chunked form has at most 4,096 x 4,096 of an image.
_TILE_BYTES = {"diagonal": 24 * 2**20, "chunked": 64 * 2**20}
_MIN_SQUARE = 1e-12  # squared norm of a patch that counts as empty
_QUERY_ROWS = 8  # rows of queries in a diagonal tile; fewer lose to the halo


def search(
    query: Float[Array, "b hq wq c"],
    key: Float[Array, "b hk wk c"],
    *,
    patch: int = 3,
    method: str | None = None,
) -> Int[Array, "b hq wq"]:
    """Index P of the most similar key patch of each query patch, Eq. 8.

    Args:
        query: Query map, any float dtype; computed in float32.
        key: Key map; its size may differ from the query's.
        patch: Side of the square patch, odd.
        method: `"diagonal"` or `"chunked"`; by default the platform decides (CPU:
            diagonal sums, else chunked products).

    Returns:
        int32 in [0, hk * wk): row-major position in the key map, the lowest of equals.

    Raises:
        ValueError: If `patch` is even, channels or batches differ, or `method` is
            unknown.

    Example:
        >>> x = jax.random.normal(jax.random.key(0), (1, 5, 6, 4))
        >>> bool((search(x, x).reshape(-1) == jnp.arange(30)).all())
        True
    """
    _check(query, key, patch)
    query = lax.stop_gradient(query).astype(jnp.float32)
    key = lax.stop_gradient(key).astype(jnp.float32)
    forms = {"diagonal": _search_diagonal, "chunked": _search_chunked}
    if method is not None:
        if method not in forms:
            raise ValueError(f"method must be one of {sorted(forms)}, got {method!r}.")
        return forms[method](query, key, patch)
    return lax.platform_dependent(
        query,
        key,
        cpu=lambda q, k: _search_diagonal(q, k, patch),
        default=lambda q, k: _search_chunked(q, k, patch),
    )


def pair_score(
    query: Float[Array, "b hq wq c"],
    key: Float[Array, "b hk wk c"],
    index: Int[Array, "b hq wq"],
    *,
    patch: int = 3,
) -> Float[Array, "b hq wq 1"]:
    """Cosine of each query patch and its chosen key patch: the map C of Eq. 9.

    Differentiable in `query` and `key`. Cost and memory O(hq wq patch^2 c).

    Args:
        query: Query map.
        key: Key map.
        index: Row-major positions in `key`, as `search` returns them.
        patch: Side of the square patch, odd; the one given to `search`.

    Returns:
        float32 in [-1, 1]; 0 where either patch is empty (norm below 1e-6).
    """
    _check(query, key, patch)
    query, key = query.astype(jnp.float32), key.astype(jnp.float32)
    b, hq, wq, c = query.shape
    wk, r = key.shape[2], patch // 2
    query_padded, key_padded = _pad(query, r), _pad(key, r)
    key_flat = key_padded.reshape(b, -1, c)
    corner = _corner(index, wk, r)
    product = jnp.zeros((b, hq, wq), jnp.float32)
    for dy in range(patch):
        for dx in range(patch):
            chosen = _gather(key_flat, corner + dy * (wk + 2 * r) + dx)
            product += jnp.sum(
                query_padded[:, dy : dy + hq, dx : dx + wq] * chosen, axis=-1
            )
    inverse_key = _inverse_norm(key, patch).reshape(b, -1, 1)
    inverse = _inverse_norm(query, patch) * _gather(inverse_key, index)[..., 0]
    return (product * inverse)[..., None]


def transfer(
    value: Float[Array, "b hk wk c"],
    index: Int[Array, "b hq wq"],
    *,
    patch: int = 3,
) -> Float[Array, "b hq wq c"]:
    """The chosen value patches laid over the query grid, overlaps averaged: T.

    Every query position receives the mean over the patches that cover it, counting
    only entries that lie inside both maps, so borders are not darkened and a constant
    `value` comes back exactly. Differentiable in `value`. To transfer patches of a map
    `s` times finer than the search grid (patch 3s, stride s), move its s x s cells to
    channels first (space-to-depth): the two are the same.

    Args:
        value: Value map on the key grid.
        index: Row-major positions in `value`, as `search` returns them.
        patch: Side of the square patch, odd.

    Returns:
        Map on the query grid, in the dtype of `value`.
    """
    b, hk, wk, c = value.shape
    _, hq, wq = index.shape
    r = patch // 2
    value_flat = value.reshape(b, hk * wk, c)
    row, column = index // wk, index % wk
    y, x = jnp.arange(hq)[None, :, None], jnp.arange(wq)[None, None, :]
    mean = jnp.zeros((b, hq, wq, c), value.dtype)
    count = jnp.zeros((b, hq, wq), jnp.float32)
    # Outwards from the centre: entry (dy, dx) of the patch query (y-dy, x-dx) chose.
    for dy, dx in sorted(
        ((i, j) for i in range(-r, r + 1) for j in range(-r, r + 1)),
        key=lambda d: d[0] ** 2 + d[1] ** 2,
    ):
        source_row = jnp.roll(row, (dy, dx), axis=(1, 2)) + dy
        source_column = jnp.roll(column, (dy, dx), axis=(1, 2)) + dx
        inside = (
            ((y - dy >= 0) & (y - dy < hq) & (x - dx >= 0) & (x - dx < wq))
            & ((source_row >= 0) & (source_row < hk))
            & ((source_column >= 0) & (source_column < wk))
        )
        source = jnp.where(inside, source_row * wk + source_column, index)
        count += inside
        weight = jnp.where(inside, 1.0 / jnp.maximum(count, 1.0), 0.0)
        entry = _gather(value_flat, source)
        mean += weight[..., None].astype(value.dtype) * (entry - mean)
    return mean


def match(
    query: Float[Array, "b hq wq c"],
    key: Float[Array, "b hk wk c"],
    value: Float[Array, "b hk wk d"],
    *,
    patch: int = 3,
    index: Int[Array, "b hq wq"] | None = None,
) -> tuple[Float[Array, "b hq wq d"], Int[Array, "b hq wq"], Float[Array, "b hq wq 1"]]:
    """Search, transfer and score in one call: `(T, P, C)`.

    Args:
        query: Query map.
        key: Key map.
        value: Value map on the key grid.
        patch: Side of the square patch, odd.
        index: P to use instead of searching (to compare implementations).

    Returns:
        Transferred values T, index map P (int32) and confidence map C (float32).
    """
    index = search(query, key, patch=patch) if index is None else index
    return (
        transfer(value, index, patch=patch),
        index,
        pair_score(query, key, index, patch=patch),
    )


def _check(query: Array, key: Array, patch: int) -> None:
    if patch < 1 or patch % 2 == 0:
        raise ValueError(f"patch must be odd and positive, got {patch}.")
    if query.shape[0] != key.shape[0] or query.shape[-1] != key.shape[-1]:
        raise ValueError(
            "query and key must agree in batch and channels, "
            f"got shapes {query.shape} and {key.shape}."
        )


def _pad(x: Array, r: int) -> Array:
    return jnp.pad(x, ((0, 0), (r, r), (r, r), (0, 0)))


def _corner(index: Array, wk: int, r: int) -> Array:
    """Flat position, in the padded key map, of the first entry of each key patch."""
    return (index // wk) * (wk + 2 * r) + index % wk


def _gather(flat: Array, index: Array) -> Array:
    """`flat (b, n, c)` at `index (b, h, w)` -> `(b, h, w, c)`."""
    return jax.vmap(lambda f, i: f.at[i].get(mode="clip"))(flat, index)


def _inverse_norm(x: Array, patch: int) -> Array:
    """Reciprocal patch norms `(b, h, w)`; 0, with zero gradient, where empty."""
    _, h, w, _ = x.shape
    r = patch // 2
    square = jnp.pad(jnp.sum(x * x, axis=-1), ((0, 0), (r, r), (r, r)))
    box = _add(square[:, i : i + h] for i in range(patch))
    box = _add(box[:, :, j : j + w] for j in range(patch))
    full = box > _MIN_SQUARE
    return jnp.where(full, lax.rsqrt(jnp.where(full, box, 1.0)), 0.0)


def _add(terms: Iterable[Array]) -> Array:
    return functools.reduce(operator.add, terms)


def _search_chunked(query: Array, key: Array, patch: int) -> Array:
    b, hq, wq, _ = query.shape
    keys = _unfold(key, patch) * _inverse_norm(key, patch).reshape(b, -1, 1)
    queries = _unfold(query, patch)
    n, m = queries.shape[1], keys.shape[1]
    chunk = max(1, min(n, _TILE_BYTES["chunked"] // (4 * m)))
    chunks = -(-n // chunk)
    queries = jnp.pad(queries, ((0, 0), (0, chunks * chunk - n), (0, 0)))

    def best(start: Array) -> Array:
        part = lax.dynamic_slice_in_dim(queries, start, chunk, axis=1)
        score = jnp.einsum("bqc,bkc->bqk", part, keys, precision=lax.Precision.HIGHEST)
        return jnp.argmax(score, axis=-1).astype(jnp.int32)

    index = lax.map(best, jnp.arange(chunks) * chunk)
    return jnp.moveaxis(index, 0, 1).reshape(b, -1)[:, :n].reshape(b, hq, wq)


def _unfold(x: Array, patch: int) -> Array:
    """All patches of `x (b, h, w, c)` as `(b, h * w, patch^2 c)`."""
    b, h, w, c = x.shape
    padded = _pad(x, patch // 2)
    entries = [
        padded[:, i : i + h, j : j + w] for i in range(patch) for j in range(patch)
    ]
    return jnp.concatenate(entries, axis=-1).reshape(b, h * w, patch**2 * c)


def _search_diagonal(query: Array, key: Array, patch: int) -> Array:
    inverse = _inverse_norm(key, patch)
    return lax.map(
        lambda a: _diagonal_image(a[0], a[1], a[2], patch), (query, key, inverse)
    )


def _diagonal_image(query: Array, key: Array, inverse: Array, patch: int) -> Array:
    """Search of one image: tiles of query rows x key rows, running maximum."""
    hq, wq, c = query.shape
    hk, wk, _ = key.shape
    halo, r = patch - 1, patch // 2
    rows_q = min(_QUERY_ROWS, hq)
    row_bytes = 4 * (wk + halo) * (rows_q + halo) * (wq + halo)
    rows_k = min(hk, max(1, _TILE_BYTES["diagonal"] // row_bytes - halo))
    tiles_q, tiles_k = -(-hq // rows_q), -(-hk // rows_k)
    extra_q, extra_k = tiles_q * rows_q - hq, tiles_k * rows_k - hk
    query = jnp.pad(query, ((r, r + extra_q), (r, r), (0, 0)))
    key = jnp.pad(key, ((r, r + extra_k), (r, r), (0, 0)))
    inverse = jnp.pad(inverse, ((0, extra_k), (0, 0)))
    # Rows that only fill the last tile must lose against any real key.
    penalty = jnp.where(jnp.arange(hk + extra_k) < hk, 0.0, -jnp.inf)
    position = jnp.arange(rows_k * wk, dtype=jnp.int32)[:, None, None]

    def query_tile(i: Array) -> Array:
        q = lax.dynamic_slice_in_dim(query, i * rows_q, rows_q + halo).reshape(-1, c)

        def key_tile(carry, j):
            best_score, best_index = carry
            k = lax.dynamic_slice_in_dim(key, j * rows_k, rows_k + halo).reshape(-1, c)
            # Keys along the major axes: a reduction over them vectorises over queries.
            point = lax.dot_general(
                k, q, (((1,), (1,)), ((), ())), precision=lax.Precision.HIGHEST
            ).reshape(rows_k + halo, wk + halo, rows_q + halo, wq + halo)
            score = _add(point[:, d : d + wk, :, d : d + wq] for d in range(patch))
            score = _add(score[d : d + rows_k, :, d : d + rows_q] for d in range(patch))
            scale = lax.dynamic_slice_in_dim(inverse, j * rows_k, rows_k)
            lost = lax.dynamic_slice_in_dim(penalty, j * rows_k, rows_k)
            score = score * scale[:, :, None, None] + lost[:, None, None, None]
            score = score.reshape(rows_k * wk, rows_q, wq)
            top = jnp.max(score, axis=0)
            first = jnp.where(score == top[None], position, hk * wk - 1)
            first = jnp.min(first, axis=0)
            better = top > best_score
            return (
                jnp.where(better, top, best_score),
                jnp.where(better, first + j * rows_k * wk, best_index),
            ), None

        start = (
            jnp.full((rows_q, wq), -jnp.inf, jnp.float32),
            jnp.zeros((rows_q, wq), jnp.int32),
        )
        return lax.scan(key_tile, start, jnp.arange(tiles_k))[0][1]

    index = lax.map(query_tile, jnp.arange(tiles_q))
    return index.reshape(-1, wq)[:hq]
