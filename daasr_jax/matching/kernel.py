r"""Exact search in one GPU kernel: products, diagonal sums and maximum on the chip.

Scores never reach memory. The `patch` vertical taps are concatenated to the channels;
then the score of a query and a key is the sum of the products of `patch` neighbours,

.. math:: s(n, m) = \sum_{d < patch} \langle Q_{n + d}, K_{m + d} \rangle

on *lines*, the rows of a map one after the other with zeros between. A tile takes every
T-th query and every T'-th key, so the next tile along the diagonal holds all neighbours
at the same places: a program walks along diagonals and adds the last `patch` tiles of
products in registers, where shifted slices of one tile would have to leave them. This
costs `1 + (patch - 1) / T` products of inner size `patch C` where plain products cost
one of `patch^2 C`.

float32 maps are split into three bfloat16 parts, and the six products of 2^-16 and more
are added: float32 accuracy on tensor cores. The kernel is Pallas for Triton; elsewhere
it runs interpreted, to test it, very slowly. On an H100 it is exact and, from 6,400
queries on, 1.6 to 4 times faster than plain products (`docs/results/gpu_search.md`). No
other card has run it.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from daasr_jax.matching.window import Window

WALK = 16  # tiles of queries along a diagonal, T; a power of two
SIDE = 128  # largest side of a tile
PARTS = 3  # bfloat16 parts of a float32; 2 halve the time and leave errors of 2^-16
CHUNK = 64  # largest inner size of one product
WARPS = 8
SUMS = 192 * 32 * WARPS  # scores in the running sums: 192 registers of a thread's 255
SHARED_BYTES = 216 * 2**10  # of the 227 KiB of a multiprocessor (Hopper)
PROGRAMS = 132  # to have at a time: multiprocessors of an H100 or H200
LAST = jnp.iinfo(jnp.int32).max


@dataclasses.dataclass(frozen=True)
class Plan:
    """Sizes of one search; sides and `chunk` are powers of two.

    Attributes:
        patch: Taps along the line.
        side_q, side_k: Queries and keys of a tile.
        chunk, chunks: Inner size of a product, and products that make a tile.
        splits: Programs that share the keys.
        stride_q, stride_k: From one query (key) of a tile to the next; T and T'.
    """

    patch: int
    side_q: int
    side_k: int
    chunk: int
    chunks: int
    splits: int
    stride_q: int
    stride_k: int

    @classmethod
    def of(cls, patch: int, channels: int, b: int, n: int, m: int) -> tuple[Plan, int]:
        """For lines of n queries and m keys; also the number of query tiles."""
        inner = patch * channels
        chunk = min(CHUNK, _power(inner))
        side_q = min(SIDE, _power(-(-n // WALK)))
        side_k = min(SIDE, _power(m))
        while patch * side_q * side_k > SUMS and min(side_q, side_k) > 16:
            side_q, side_k = (
                (side_q, side_k // 2) if side_k >= side_q else (side_q // 2, side_k)
            )
        tiles = -(-n // (WALK * side_q))
        steps = -(-(m + WALK - 1) // side_k)
        splits = max(1, min(PROGRAMS // (b * tiles), steps))
        return cls(
            patch=patch,
            side_q=side_q,
            side_k=side_k,
            chunk=chunk,
            chunks=-(-inner // chunk),
            splits=splits,
            stride_q=WALK,
            stride_k=-(-steps // splits) * splits,
        ), tiles

    @property
    def length(self) -> int:
        """Tiles of products in one walk."""
        return WALK + self.patch - 1

    @property
    def inner(self) -> int:
        """Inner size of one part."""
        return self.chunk * self.chunks

    @property
    def unrolled(self) -> bool:
        """Whether all chunks of a tile, twice, fit into shared memory."""
        return 2 * self.chunks * self._chunk_bytes <= SHARED_BYTES

    @property
    def stages(self) -> int:
        """Buffers of the loop over tiles (over chunks, if not unrolled)."""
        return 2 if self.unrolled else min(4, SHARED_BYTES // self._chunk_bytes)

    @property
    def _chunk_bytes(self) -> int:
        return 2 * (self.side_q + self.side_k) * PARTS * self.chunk


def search_batch(
    query: Array, key: Array, scale: Array, *, window: Window, interpret: bool = False
) -> Array:
    """Best key of every query.

    Args:
        query: `(b, h, w, c)`, float32.
        key: `(b, r, h', w', c)`, r maps.
        scale: `(b, r, h', w')`, factor of each key: its reciprocal norm.
        window: The patches.
        interpret: Emulate the kernel, on any platform.

    Returns:
        Positions `(b, h, w)` in the r key maps one after the other, int32; the lowest
        of equals.
    """
    b, h, w, c = query.shape
    query = _line(_tall(query[:, None], window), window)
    taps = _line(_tall(key, window), window)
    index = jnp.arange(scale[0].size, dtype=jnp.int32).reshape(1, *scale.shape[1:])
    scale, index = (
        _line(x[..., None], window, fill)[..., 0]
        for x, fill in ((scale, 0), (index, LAST))
    )
    n, m = query.shape[1], taps.shape[1]
    plan, tiles = Plan.of(window.patch, c, b, n, m)

    query = _tiles(_split(query, plan), plan.length, tiles * plan.side_q, WALK)
    tile_keys = functools.partial(
        _tiles,
        count=plan.stride_k + plan.length - 1,
        side=plan.side_k,
        stride=plan.stride_k,
        before=WALK - 1,
    )
    score, index = _call(
        query,
        tile_keys(_split(taps, plan)),
        tile_keys(scale),
        tile_keys(index, fill=LAST)[0],
        plan,
        interpret,
    )
    best = jnp.max(score, axis=1)
    index = jnp.min(jnp.where(score == best[:, None], index, LAST), axis=1)
    line = jnp.swapaxes(index, 1, 2).reshape(b, -1)[:, :n]
    return line.reshape(b, h, -1)[:, :, :w]


def _call(
    query: Array,
    key: Array,
    scale: Array,
    index: Array,
    plan: Plan,
    interpret: bool,
) -> tuple[Array, Array]:
    """Scores and indices `(b, splits, T, entries)` of the tiles `(b, tile, entry)`."""
    # Slow to load, and not needed by the other forms.
    from jax.experimental import pallas as pl
    from jax.experimental.pallas import triton

    b, _, entries, inner = query.shape
    count = key.shape[1]
    out = (b, plan.splits, WALK, entries)
    one_out = pl.BlockSpec(
        (None, None, WALK, plan.side_q), lambda i, j, k: (k, j, 0, i)
    )
    return pl.pallas_call(
        functools.partial(_kernel, plan=plan),
        out_shape=(
            jax.ShapeDtypeStruct(out, jnp.float32),
            jax.ShapeDtypeStruct(out, jnp.int32),
        ),
        grid=(entries // plan.side_q, plan.splits, b),
        in_specs=[
            pl.BlockSpec(
                (None, plan.length, plan.side_q, inner), lambda i, j, k: (k, 0, i, 0)
            ),
            pl.BlockSpec(
                (None, count, plan.side_k, inner), lambda i, j, k: (k, 0, 0, 0)
            ),
            pl.BlockSpec((None, count, plan.side_k), lambda i, j, k: (k, 0, 0)),
            pl.BlockSpec((count, plan.side_k), lambda i, j, k: (0, 0)),
        ],
        out_specs=(one_out, one_out),
        interpret=interpret,
        compiler_params=triton.CompilerParams(num_warps=WARPS, num_stages=plan.stages),
        name="patch_search",
    )(query, key, scale, index)


def _kernel(
    query: Any,
    key: Any,
    scale: Any,
    index: Any,
    score_out: Any,
    index_out: Any,
    *,
    plan: Plan,
) -> None:
    """One tile of queries, T times, against one share of the keys."""
    from jax.experimental import pallas as pl

    sides = (plan.side_q, plan.side_k)
    share = plan.stride_k // plan.splits
    first = pl.program_id(1) * share
    phase = lax.broadcasted_iota(jnp.int32, (WALK, plan.side_q), 0)

    def products(q: Array, k: Array) -> Array:
        """Tile of products of the query tile q and the key tile k."""

        def part(ref: Any, tile: Array, start: Array | int) -> Array:
            return ref[tile, :, pl.ds(start, plan.chunk)]

        def chunk(i: Array | int, total: Array) -> Array:
            qs, ks = (
                [part(ref, tile, i * plan.chunk + p * plan.inner) for p in range(PARTS)]
                for ref, tile in ((query, q), (key, k))
            )
            for order in reversed(range(PARTS)):  # smallest first
                for a in range(order + 1):
                    total = total + lax.dot_general(
                        qs[a],
                        ks[order - a],
                        (((1,), (1,)), ((), ())),
                        preferred_element_type=jnp.float32,
                    )
            return total

        total = jnp.zeros(sides, jnp.float32)
        if plan.unrolled:
            for i in range(plan.chunks):
                total = chunk(i, total)
            return total
        return lax.fori_loop(0, plan.chunks, chunk, total)

    def step(i: Array, carry: tuple) -> tuple:
        sums, best, where = carry
        walk = lax.div(i, plan.length)
        q = i - walk * plan.length
        k = first + walk + q
        # The diagonal sum that ends with this tile belongs to the patches that start
        # `patch - 1` tiles ago. Loaded before the products, these would spill.
        begin = jnp.maximum(k - (plan.patch - 1), 0)
        new = products(q, k)
        factor, name = scale[begin, :], index[begin, :]
        score = new if not sums else sums[-1] + new
        sums = (new, *(old + new for old in sums[:-1])) if sums else ()
        name = jnp.broadcast_to(name[None, :], sides)
        score = jnp.where(name < LAST, score * factor[None, :], -jnp.inf)  # or no key
        top = jnp.max(score, axis=1)
        equal = score == jnp.broadcast_to(top[:, None], sides)
        found = jnp.min(jnp.where(equal, name, LAST), axis=1)
        top, found = (
            jnp.broadcast_to(x[None, :], (WALK, plan.side_q)) for x in (top, found)
        )
        # In the first steps of a walk no phase is done, and none is equal.
        better = (top > best) | ((top == best) & (found < where))
        better = better & (phase == q - (plan.patch - 1))
        return sums, jnp.where(better, top, best), jnp.where(better, found, where)

    start = (
        (jnp.zeros(sides, jnp.float32),) * (plan.patch - 1),
        jnp.full((WALK, plan.side_q), -jnp.inf, jnp.float32),
        jnp.zeros((WALK, plan.side_q), jnp.int32),
    )
    _, best, where = lax.fori_loop(0, share * plan.length, step, start)
    score_out[...] = best
    index_out[...] = where


def _power(n: int) -> int:
    """Least power of two from 16 on that is not below n."""
    return max(16, 1 << (n - 1).bit_length())


def _tall(maps: Array, window: Window) -> Array:
    """`(b, r, h, w, c)` -> `(b, r, h, w, patch c)`: the vertical taps of each pixel."""
    h = maps.shape[2]
    padded = jnp.pad(maps, ((0, 0), (0, 0), (window.reach,) * 2, (0, 0), (0, 0)))
    return jnp.concatenate([padded[:, :, i : i + h] for i in range(window.patch)], -1)


def _line(maps: Array, window: Window, fill: int | None = None) -> Array:
    """`(b, r, h, w, c)` -> `(b, length, c)`: the rows one after the other.

    A gap of `patch // 2` follows each row; a line of entries (`fill` None) starts with
    one instead, so that place n holds the first tap of patch n.
    """
    gap = (window.reach, 0) if fill is None else (0, window.reach)
    around = ((0, 0), (0, 0), (0, 0), gap, (0, 0))
    maps = jnp.pad(maps, around, constant_values=0 if fill is None else fill)
    return maps.reshape(maps.shape[0], -1, maps.shape[-1])


def _split(line: Array, plan: Plan) -> Array:
    """The bfloat16 parts of `(b, length, c)` side by side, each of the inner size."""
    line = jnp.pad(line, ((0, 0), (0, 0), (0, plan.inner - line.shape[-1])))
    parts = []
    for _ in range(PARTS):
        # XLA may leave out a plain cast there and back.
        parts.append(lax.reduce_precision(line, 8, 7))
        line = line - parts[-1]
    return jnp.concatenate(parts, axis=-1).astype(jnp.bfloat16)


def _tiles(
    line: Array, count: int, side: int, stride: int, before: int = 0, fill: int = 0
) -> Array:
    """`(b, length, ...)` -> `(b, count, side, ...)`: place `stride j + i - before`."""
    after = stride * (side - 1) + count - before - line.shape[1]
    line = jnp.pad(
        line,
        ((0, 0), (before, max(0, after)), *((0, 0),) * (line.ndim - 2)),
        constant_values=fill,
    )
    place = jnp.arange(count)[:, None] + stride * jnp.arange(side)[None, :]
    return jnp.take(line, place, axis=1, mode="clip")
