"""`search`, P of Eq. 8 by the form that suits the platform, and `match`."""

from __future__ import annotations

from functools import partial

import jax.numpy as jnp
from jax import lax
from jax.export import is_symbolic_dim
from jaxtyping import Array, Float, Int

from daasr_jax.matching import chunked, diagonal, kernel
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
    return lax.platform_dependent(query, maps, scale, **forms[method])


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
