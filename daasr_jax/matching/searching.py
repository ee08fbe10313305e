"""`search`, P of Eq. 8 by the form that suits the platform, and `match`."""

from __future__ import annotations

from functools import partial

import jax.numpy as jnp
from jax import lax
from jax.export import is_symbolic_dim
from jaxtyping import Array, Float, Int

from daasr_jax.matching import chunked, diagonal, kernel, near
from daasr_jax.matching.transferring import pair_score, transfer
from daasr_jax.matching.window import Window, check

# Least and most of scores held at once. Diagonal sums are quickest on a tile between
# the caches; products want a chunk that fills the device.
BUDGET_BYTES = {
    "diagonal": (4 * 2**20, 24 * 2**20),
    "chunked": (64 * 2**20, 256 * 2**20),
}


def search(
    query: Float[Array, "b hq wq c"],
    key: Float[Array, "b *r hk wk c"],
    *,
    patch: int = 3,
    method: str | None = None,
    within: int = 0,
    top: int | Array = 0,
) -> Int[Array, "b hq wq"]:
    """Index P of the most similar key patch of each query patch, Eq. 8.

    Nothing is differentiated. Time O(n m patch C), for n queries and m keys; memory
    O((n + m) C) plus the scores held at once: a twentieth of all within a range of
    `BUDGET_BYTES`, from which tiles follow. Where sizes are symbols (`jax.export`) it
    is chunked products, of a fixed number of queries at once.

    Args:
        query: Query map, any float dtype; computed in float32.
        key: Key map, or r maps of one size, `(b, r, hk, wk, c)`: several references.
            Its size may differ from the query's.
        patch: Side of the patches of both maps, odd.
        method: `"diagonal"`, `"chunked"` or `"kernel"`; by default the platform decides
            (CPU: diagonal sums, else chunked products). The kernel, for GPUs, was
            run on an H100 only.
        within: Keys at most so many rows and columns from the query's own place are
            compared, and some beyond; 0 compares all. The time is then O(n within^2
            patch C) once the maps are larger. Query and key must lie on one grid.
        top: Row of that grid where the query map begins; for `within` alone.

    Returns:
        int32, row-major positions in the key map (in the r maps one after the other),
        the lowest of equals.

    Raises:
        ValueError: If an argument is out of range, shapes disagree, or there are more
            than 2^31 - 1 keys.

    Example:
        >>> x = jnp.sin(jnp.arange(120.0) ** 2).reshape(1, 5, 6, 4)
        >>> bool((search(x, x).reshape(-1) == jnp.arange(30)).all())
        True
    """
    window = Window(patch)
    query, maps = check(query, key)
    query, maps = (lax.stop_gradient(x).astype(jnp.float32) for x in (query, maps))
    scale = window.inverse_norm(maps)
    m = scale[0].size
    if m >= 2**31:
        raise ValueError(f"{m} keys do not fit into int32.")
    if any(map(is_symbolic_dim, (*query.shape, *maps.shape))):
        if within:
            raise ValueError("within needs sizes that are numbers, not symbols.")
        return chunked.search_batch(query, maps, scale, window=window, budget=None)
    pairs = m * query.shape[1] * query.shape[2]

    sums, products = (
        partial(form.search_batch, window=window, budget=_budget(name, pairs))
        for name, form in (("diagonal", diagonal), ("chunked", chunked))
    )
    chip = partial(kernel.search_batch, window=window)
    forms = {
        None: {"cpu": sums, "default": products},
        "diagonal": {"default": sums},
        "chunked": {"default": products},
        "kernel": {"cuda": chip, "default": partial(chip, interpret=True)},
    }
    if method not in forms:
        known = [name for name in forms if name]
        raise ValueError(f"method must be one of {known}, got {method!r}.")
    if within:
        return _search_near(query, maps, scale, window, method, within, top)
    return lax.platform_dependent(query, maps, scale, **forms[method])


def _search_near(
    query: Array,
    maps: Array,
    scale: Array,
    window: Window,
    method: str | None,
    within: int,
    top: int | Array,
) -> Array:
    """`search` around each query's own place."""
    if query.shape[2] != maps.shape[3] or query.shape[1] > maps.shape[2]:
        raise ValueError(
            "within needs query and key on one grid, got "
            f"{query.shape[1]}x{query.shape[2]} and {maps.shape[2]}x{maps.shape[3]}."
        )
    if within < 0 or method == "kernel":
        raise ValueError(
            "within must be 0 or more, and has no kernel, got "
            f"within={within}, method={method!r}."
        )

    def sums(tile: Array, keys: Array, factor: Array) -> Array:
        budget = BUDGET_BYTES["diagonal"][0]
        return diagonal.search_image(tile, keys, factor, window.patch, budget)

    def products(tile: Array, keys: Array, factor: Array) -> Array:
        budget = BUDGET_BYTES["chunked"][0]
        return chunked.search_image(tile, keys, factor, window, budget)

    form = partial(near.search_batch, window=window, within=within, top=top)
    on_cpu, elsewhere = (
        partial(form, best={"diagonal": sums, "chunked": products}[method or name])
        for name in ("diagonal", "chunked")
    )
    return lax.platform_dependent(query, maps, scale, cpu=on_cpu, default=elsewhere)


def match(
    query: Float[Array, "b hq wq c"],
    key: Float[Array, "b *r hk wk c"],
    value: Float[Array, "b *r hk wk d"],
    *,
    patch: int = 3,
    method: str | None = None,
    index: Int[Array, "b hq wq"] | None = None,
) -> tuple[Float[Array, "b hq wq d"], Int[Array, "b hq wq"], Float[Array, "b hq wq 1"]]:
    """Search, transfer and score in one call: `(T, P, C)`.

    Args:
        query: Query map.
        key: Key map or maps.
        value: Value map or maps, of the size of the keys.
        patch: Side of the patches, odd.
        method: Form of the search, see `search`.
        index: P to use instead of searching (to compare implementations).

    Returns:
        Transferred values T, index map P (int32) and confidence map C (float32).
    """
    if index is None:
        index = search(query, key, patch=patch, method=method)
    score = pair_score(query, key, index, patch=patch)
    return transfer(value, index, patch=patch), index, score


def _budget(method: str, pairs: int) -> int:
    """Bytes of scores held at once: a twentieth of all, within the method's range."""
    least, most = BUDGET_BYTES[method]
    return min(most, max(least, 4 * pairs // 20))
