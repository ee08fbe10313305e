"""`search`, P of Eq. 8 by the form that suits the platform, and `match`."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from daasr_jax.matching import chunked, diagonal, kernel
from daasr_jax.matching.transferring import pair_score, transfer
from daasr_jax.matching.window import Window, check

METHODS = ("diagonal", "chunked", "kernel")
# Least and most of scores held at once. Diagonal sums are quickest on a tile between
# the caches; products want a chunk that fills the device.
BUDGET_BYTES = {
    "diagonal": (4 * 2**20, 24 * 2**20),
    "chunked": (64 * 2**20, 256 * 2**20),
    "kernel": (0, 0),  # holds none
}


def default_budget(method: str, *, pairs: int) -> int:
    """Bytes of scores held at once: a twentieth of all, within the method's range."""
    least, most = BUDGET_BYTES[method]
    return min(most, max(least, 4 * pairs // 20))


def search(
    query: Float[Array, "b hq wq c"],
    key: Float[Array, "b *r hk wk c"],
    *,
    patch: int = 3,
    stride: int = 1,
    dilation: int = 1,
    forbidden: Bool[Array, "b *r gk wgk"] | None = None,
    top: int | None = None,
    dtype: DTypeLike = jnp.float32,
    candidates: int = 4,
    method: str | None = None,
    budget_bytes: int | None = None,
) -> Int[Array, "b gq wgq *t"]:
    """Index P of the most similar key patch of each query patch, Eq. 8.

    Nothing is differentiated. Time O(n m patch C) and memory O((n + m) C) plus the
    budget, for n queries and m keys.

    Args:
        query: Query map, any float dtype.
        key: Key map, or r maps of one size, `(b, r, hk, wk, c)`: several references.
            Its size may differ from the query's.
        patch, stride, dilation: Of the patches of both maps, see `Window`.
        forbidden: True where a key patch may not be chosen, on the grid of the keys
            (`ceil(size / stride)`). Where nothing is left the index means nothing.
        top: Number of keys to find for each query, best first, along a new last axis;
            None for the best one without that axis.
        dtype: Of the products. With `"bfloat16"` the best `candidates` are scored again
            in float32 and the order is theirs; a key that bfloat16 ranks lower is lost,
            by a score gap of about 2^-8.
        candidates: Of a search in less than float32, at least `top`.
        method: `"diagonal"`, `"chunked"` or `"kernel"`; by default the platform decides
            (CPU: diagonal sums, else chunked products). The kernel, for GPUs, takes
            stride 1 and finds one key: no `top`, and `candidates=1` below float32.
        budget_bytes: Of the scores held at once; tiles follow from it. By default
            `default_budget`.

    Returns:
        int32, row-major positions in the key grid (in the r grids one after the other),
        the lowest of equals.

    Raises:
        ValueError: If an argument is out of range, shapes disagree, or there are more
            than 2^31 - 1 keys or fewer than `top`.

    Example:
        >>> x = jnp.sin(jnp.arange(120.0) ** 2).reshape(1, 5, 6, 4)
        >>> bool((search(x, x).reshape(-1) == jnp.arange(30)).all())
        True
    """
    window = Window(patch, stride, dilation)
    query, maps = check(query, key)
    query, maps = (lax.stop_gradient(x).astype(jnp.float32) for x in (query, maps))
    scale = window.inverse_norm(maps)
    lost = jnp.zeros_like(scale)
    if forbidden is not None:
        if forbidden.size != lost.size:
            raise ValueError(
                f"forbidden must cover the key grid {lost.shape}, "
                f"got {forbidden.shape}."
            )
        lost = jnp.where(forbidden.reshape(lost.shape), -jnp.inf, lost)
    m = scale[0].size
    wanted = 1 if top is None else top
    exact = jnp.dtype(dtype) == jnp.float32
    found = wanted if exact else max(wanted, candidates)
    if not 1 <= wanted <= m:
        raise ValueError(f"top must be in [1, {m}], the number of keys, got {top}.")
    n = window.grid(query.shape[1]) * window.grid(query.shape[2])
    if m >= 2**31:
        raise ValueError(f"{m} keys do not fit into int32.")

    def run(form: str, query: Array, maps: Array, scale: Array, lost: Array) -> Array:
        budget = budget_bytes or default_budget(form, pairs=n * m)
        settings = {"window": window, "top": min(found, m), "budget": budget}
        query, maps = query.astype(dtype), maps.astype(dtype)
        if form == "chunked":
            return chunked.search_batch(query, maps, scale, lost, **settings)[1]
        if form == "kernel":
            on_chip = functools.partial(kernel.search_batch, **settings)
            return lax.platform_dependent(
                query,
                maps,
                scale,
                lost,
                cuda=lambda *a: on_chip(*a)[1],
                default=lambda *a: on_chip(*a, interpret=True)[1],
            )
        images = (window.pad(query), window.pad(maps), scale, lost)
        return lax.map(
            lambda x: _diagonal_maps(x[0], x[1], x[2], x[3], settings), images
        )

    arguments = (query, maps, scale, lost)
    if method is None:
        index = lax.platform_dependent(
            *arguments,
            cpu=lambda *a: run("diagonal", *a),
            default=lambda *a: run("chunked", *a),
        )
    elif method in METHODS:
        index = run(method, *arguments)
    else:
        raise ValueError(f"method must be one of {METHODS}, got {method!r}.")
    if not exact:
        index = _best_again(query, maps, lost, index, window)[..., :wanted]
    return index[..., 0] if top is None else index


def match(
    query: Float[Array, "b hq wq c"],
    key: Float[Array, "b *r hk wk c"],
    value: Float[Array, "b *r hk wk d"],
    *,
    patch: int = 3,
    stride: int = 1,
    dilation: int = 1,
    index: Int[Array, "b gq wgq"] | None = None,
    **options: Any,
) -> tuple[
    Float[Array, "b hq wq d"], Int[Array, "b gq wgq"], Float[Array, "b gq wgq 1"]
]:
    """Search, transfer and score in one call: `(T, P, C)`.

    Args:
        query: Query map.
        key: Key map or maps.
        value: Value map or maps, of the size of the keys.
        patch, stride, dilation: Of the patches, see `Window`.
        index: P to use instead of searching (to compare implementations).
        options: Others of `search`, but not `top`.

    Returns:
        Transferred values T, index map P (int32) and confidence map C (float32).
    """
    geometry = {"patch": patch, "stride": stride, "dilation": dilation}
    if index is None:
        index = search(query, key, **geometry, **options)
    size = (query.shape[1], query.shape[2])
    return (
        transfer(value, index, **geometry, size=size),
        index,
        pair_score(query, key, index, **geometry),
    )


def _diagonal_maps(
    query: Array, maps: Array, scale: Array, lost: Array, settings: dict
) -> Array:
    """One image against its key maps, one after the other."""
    lists = []
    for i in range(maps.shape[0]):
        score, index = diagonal.search_image(
            query, maps[i], scale[i], lost[i], **settings
        )
        index += i * scale[0].size
        lists.append((jnp.moveaxis(score, -1, 0), jnp.moveaxis(index, -1, 0)))
    merge = functools.partial(diagonal.merge, top=settings["top"])
    return jnp.moveaxis(functools.reduce(merge, lists)[1], 0, -1)


def _best_again(
    query: Array, maps: Array, lost: Array, index: Array, window: Window
) -> Array:
    """The candidates `(b, gq, wgq, t)` in the order of their float32 scores."""
    b = index.shape[0]
    out = jnp.take_along_axis(lost.reshape(b, -1), index.reshape(b, -1), axis=1)
    score = jnp.concatenate(
        [
            pair_score(query, maps, index[..., i], **dataclasses.asdict(window))
            for i in range(index.shape[-1])
        ],
        axis=-1,
    ) + out.reshape(index.shape)
    order = jnp.argsort(score, axis=-1, descending=True, stable=True)
    return jnp.take_along_axis(index, order, axis=-1)
