"""Exact search by diagonal sums, for CPUs.

The product of two patches is the sum, over their entries, of the pointwise products of
the two maps. So the products of all pixels of some query rows with one row of keys are
computed once (inner size C instead of patch^2 C), and the scores against a row of key
patches are sums of shifted copies of the last few of them.
"""

from __future__ import annotations

import functools

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from daasr_jax.matching.window import Window, add

# Neighbouring keys whose maximum is taken while their scores are summed, 2^BITS at
# most: more are not faster. Which of them it is replaces the last bits of the score,
# since XLA cannot compute two results, value and place, in one loop. TERMS of all these
# sums, patch^2 for each, bound what there is to compile.
BITS = 3
LAST = 2**BITS - 1
TERMS = 72


def search_batch(
    query: Array, key: Array, scale: Array, *, window: Window, budget: int
) -> Array:
    """Best key of every query, image by image.

    Args:
        query: `(b, h, w, c)`, float32.
        key: `(b, r, h', w', c)`, r maps.
        scale: `(b, r, h', w')`, factor of each key: its reciprocal norm.
        window: The patches.
        budget: Bytes of scores held at once.

    Returns:
        Positions `(b, h, w)` in the r key maps one after the other, int32; the lowest
        of equals. Scores that agree in all but the last three bits of their mantissa
        (to 4.8e-7 of the score, which is within the rounding error of their sums) count
        as equal.
    """

    def search(image: tuple[Array, Array, Array]) -> Array:
        return search_image(*image, window.patch, budget)

    return lax.map(search, (window.pad(query), window.pad(key), scale))


def search_image(
    query: Array, key: Array, scale: Array, patch: int, budget: int
) -> Array:
    """Of one image: padded maps `(h, w, c)` and `(r, h', w', c)`, `scale` not."""
    r, hk, wk = scale.shape
    halo = patch - 1
    hq, wq = (n - halo for n in query.shape[:2])
    members = max(1, min(2**BITS, TERMS // patch**2))
    groups = -(-wk // members)
    members = -(-wk // groups)
    width = groups * members
    lines = patch  # rows of keys whose products are held
    tall = hk + halo  # of a key map; they lie one under the other
    steps = -(-(r * tall - halo) // lines)
    row = 4 * lines * (width + halo) * (wq + halo)
    rows = max(1, min(hq, budget // row - halo))
    tiles = -(-hq // rows)
    rows = -(-hq // tiles)
    query = jnp.pad(query, ((0, tiles * rows - hq), (0, 0), (0, 0)))
    below = steps * lines + halo - r * tall
    key = key.reshape(r * tall, wk + halo, -1)
    key = jnp.pad(key, ((0, below), (0, width - wk), (0, 0)))
    filling = ((0, 0), (0, halo), (0, width - wk))
    factor, lost = (
        jnp.pad(x, filling, constant_values=fill).reshape(r * tall, width)
        for x, fill in ((scale, 0.0), (jnp.zeros_like(scale), -jnp.inf))
    )

    def best_of_tile(i: Array) -> Array:
        tile = lax.dynamic_slice_in_dim(query, i * rows, rows + halo)

        def scores(held: list[Array], j: Array, member: int) -> Array:
            """Of every `members`-th key of row j: `(groups, rows, wq)`."""
            total = add(
                held[y][
                    member + x : member + x + members * (groups - 1) + 1 : members,
                    y : y + rows,
                    x : x + wq,
                ]
                for y in range(patch)
                for x in range(patch)
            )
            times, plus = (
                lax.dynamic_index_in_dim(z, j, keepdims=False)[member::members]
                for z in (factor, lost)
            )
            return total * times[:, None, None] + plus[:, None, None]

        def update(
            best: tuple[Array, Array], held: list[Array], j: Array
        ) -> tuple[Array, Array]:
            """The best of every group, and the row and member that it is."""
            rank, place = best
            highest = functools.reduce(
                jnp.maximum, [_rank(scores(held, j, a), a) for a in range(members)]
            )
            highest = jnp.maximum(highest, rank)
            better = highest >> BITS > rank >> BITS  # not an equal in a later row
            return highest, jnp.where(better, j << BITS | highest & LAST, place)

        def some_rows(carry: tuple, step: Array) -> tuple[tuple, None]:
            best, held = carry
            for n in range(lines):
                j = step * lines + n
                held = [*held, _product(key[_after(best[1], j + halo)], tile)]
                best = update(best, held, j)
                held = held[1:]
            return (best, held), None

        least = jnp.full((groups, rows, wq), jnp.iinfo(jnp.int32).min, jnp.int32)
        held = [_product(key[j], tile) for j in range(halo)]
        start = ((least, jnp.zeros_like(least)), held)
        (rank, place), _ = lax.scan(some_rows, start, jnp.arange(steps))[0]
        j, member = place >> BITS, LAST - (place & LAST)
        group = jnp.arange(groups, dtype=jnp.int32)[:, None, None]
        index = (j // tall * hk + j % tall) * wk + group * members + member
        rank |= LAST
        highest = rank == jnp.max(rank, axis=0)[None]
        return jnp.min(jnp.where(highest, index, jnp.iinfo(jnp.int32).max), axis=0)

    return lax.map(best_of_tile, jnp.arange(tiles)).reshape(-1, wq)[:hq]


def _after(place: Array, j: Array) -> Array:
    """`j`, known once `place`, which is never negative, is.

    So the products of a row follow the maximum of the row before; XLA would compute
    them all first and hold and copy them.
    """
    return j + (place[0, 0, 0] < 0)


def _product(key: Array, query: Array) -> Array:
    """Of every pixel of a row `(w', c)` with every one of `(h, w, c)`: `(w', h, w)`."""
    # Keys along the major axis: a maximum over them vectorises over queries.
    return lax.dot_general(
        key,
        query.reshape(-1, query.shape[-1]),
        (((1,), (1,)), ((), ())),
        precision=lax.Precision.HIGHEST,
        preferred_element_type=jnp.float32,
    ).reshape(-1, *query.shape[:2])


def _rank(score: Array, member: int) -> Array:
    """int32 in the order of the scores; of equals the lower member is the higher.

    The bits of a float32 are in its order once those of a negative one, but the sign,
    are turned; the last three make room for the member.
    """
    bits = lax.bitcast_convert_type(score, jnp.int32)
    bits ^= (bits >> 31) & 0x7FFFFFFF
    return bits & ~LAST | LAST - member
