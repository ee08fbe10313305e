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
        the lowest of equals. With `top = 1`, scores that agree in all but the last
        three bits of their mantissa (to 4.8e-7 of the score, which is within the
        rounding error of their sums) count as equal.
    """
    (hk, wk), s = scale.shape, window.stride
    phases = window.phases()
    halo = max(max(shifts) for shifts in phases.values())
    hq, wq = (1 + (n - 2 * window.reach - 1) // s for n in query.shape[:2])
    members = max(1, min(2**BITS, TERMS // window.patch**2)) if top == 1 else 1
    groups = -(-wk // members)
    members = -(-wk // groups)
    width = groups * members
    lines = halo + 1  # rows of keys whose products are held
    steps = -(-hk // lines)
    row = 4 * len(phases) ** 2 * lines * (width + halo) * (wq + halo)
    rows = max(1, min(hq, budget // row - halo))
    tiles = -(-hq // rows)
    rows = -(-hq // tiles)
    queries = _phase_maps(query, phases, s, (tiles * rows + halo, wq + halo))
    keys = _phase_maps(key, phases, s, (steps * lines + halo, width + halo))
    filling = ((0, steps * lines - hk), (0, width - wk))
    scale = jnp.pad(scale, filling)
    lost = jnp.pad(lost, filling, constant_values=-jnp.inf)

    def best_of_tile(i: Array) -> tuple[Array, Array]:
        tile = {
            name: lax.dynamic_slice_in_dim(x, i * rows, rows + halo)
            for name, x in queries.items()
        }

        def products(j: Array) -> dict[tuple[int, int], Array]:
            return {name: _product(x[j], tile[name]) for name, x in keys.items()}

        def scores(held: list, j: Array, member: int) -> Array:
            """Of every `members`-th key of row j: `(groups, rows, wq)`."""
            total = add(
                held[y][p, q][
                    member + x : member + x + members * (groups - 1) + 1 : members,
                    y : y + rows,
                    x : x + wq,
                ]
                for p in phases
                for q in phases
                for y in phases[p]
                for x in phases[q]
            )
            factor, out = (
                lax.dynamic_index_in_dim(z, j, keepdims=False)[member::members]
                for z in (scale, lost)
            )
            return total * factor[:, None, None] + out[:, None, None]

        def some_rows(carry: tuple, step: Array) -> tuple[tuple, None]:
            best, held = carry
            for n in range(lines):
                j = step * lines + n
                held = [*held, products(_after(best[1], j + halo))]
                best = update(best, held, j)
                held = held[1:]
            return (best, held), None

        def one(best: tuple[Array, Array], held: list, j: Array):
            """The best of every group, and the row and member that it is."""
            rank, place = best
            highest = functools.reduce(
                jnp.maximum, [_rank(scores(held, j, a), a) for a in range(members)]
            )
            highest = jnp.maximum(highest, rank)
            better = highest >> BITS > rank >> BITS  # not an equal in a later row
            return highest, jnp.where(better, j << BITS | highest & LAST, place)

        def several(best: tuple[Array, Array], held: list, j: Array):
            found = _top(scores(held, j, 0), top)
            return merge(best, (found[0], found[1] + j * wk), top)

        if top == 1:
            update, size = one, (groups, rows, wq)
            least = jnp.full(size, jnp.iinfo(jnp.int32).min, jnp.int32)
        else:
            update, size = several, (top, rows, wq)
            least = jnp.full(size, -jnp.inf, jnp.float32)
        start = (least, jnp.zeros(size, jnp.int32))
        held = [products(jnp.int32(j)) for j in range(halo)]
        best, _ = lax.scan(some_rows, (start, held), jnp.arange(steps))[0]
        return best if top > 1 else _of_groups(*best, members, wk)

    found = lax.map(best_of_tile, jnp.arange(tiles))
    score, index = (jnp.moveaxis(x, 1, -1).reshape(-1, wq, top)[:hq] for x in found)
    return score, index


def _after(place: Array, j: Array) -> Array:
    """`j`, known once `place`, which is never negative, is.

    So the products of a row follow the maximum of the row before; XLA would compute
    them all first and hold and copy them.
    """
    return j + (place[0, 0, 0] < 0)


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

    The bits of a float32 are in its order once those of a negative one are turned; the
    last three make room for the member.
    """
    bits = _turn(lax.bitcast_convert_type(score, jnp.int32))
    return bits & ~LAST | LAST - member


def _turn(bits: Array) -> Array:
    """All bits but the sign of the negative ones inverted; twice is nothing."""
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


def _of_groups(
    rank: Array, place: Array, members: int, width: int
) -> tuple[Array, Array]:
    """Score and position `(1, ...)` of the best of the groups along the first axis."""
    group = jnp.arange(rank.shape[0], dtype=jnp.int32)[:, None, None]
    index = (place >> BITS) * width + group * members + LAST - (place & LAST)
    rank |= LAST
    best = jnp.max(rank, axis=0)
    index = jnp.min(jnp.where(rank == best[None], index, jnp.iinfo(jnp.int32).max), 0)
    return lax.bitcast_convert_type(_turn(best), jnp.float32)[None], index[None]


def _top(score: Array, top: int) -> tuple[Array, Array]:
    """The `top` best along the first axis, `(top, ...)`, and their positions."""
    position = jnp.arange(score.shape[0], dtype=jnp.int32)[:, None, None]
    scores, indices = [], []
    for i in range(top):
        best = jnp.max(score, axis=0)
        index = jnp.min(
            jnp.where(score == best[None], position, score.shape[0] - 1), axis=0
        )
        scores.append(best)
        indices.append(index)
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
