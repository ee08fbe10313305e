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
are added: float32 accuracy on tensor cores. bfloat16 maps take one product. The kernel
is Pallas for Triton; elsewhere it runs interpreted, to test it, very slowly.
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
        parts: bfloat16 parts of a value.
        splits: Programs that share the keys.
        stride_q, stride_k: From one query (key) of a tile to the next; T and T'.
    """

    patch: int
    side_q: int
    side_k: int
    chunk: int
    chunks: int
    parts: int
    splits: int
    stride_q: int
    stride_k: int

    @classmethod
    def of(
        cls, patch: int, channels: int, parts: int, b: int, n: int, m: int
    ) -> tuple[Plan, int]:
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
            parts=parts,
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
        return 2 * (self.side_q + self.side_k) * self.parts * self.chunk


def search_batch(
    query: Array,
    key: Array,
    scale: Array,
    lost: Array,
    *,
    window: Window,
    top: int,
    budget: int,
    interpret: bool = False,
) -> tuple[Array, Array]:
    """Best key of every query.

    Args:
        query: `(b, h, w, c)`, float32 or bfloat16.
        key: `(b, r, h', w', c)`, r maps, in the dtype of `query`.
        scale: `(b, r, gk, wk)`, factor of each key: its reciprocal norm.
        lost: `(b, r, gk, wk)`, added to each key's score: 0 or -inf.
        window: The patches, of stride 1.
        top: 1.
        budget: Not used: no scores are held.
        interpret: Emulate the kernel, on any platform.

    Returns:
        Scores `(b, h, w, 1)` float32 and positions in the r key grids one after the
        other, int32; the lowest of equals.

    Raises:
        ValueError: If `top` or the stride is not 1.
    """
    del budget
    if top != 1:
        raise ValueError(
            "the kernel finds one key: top (and candidates, below float32) must be 1, "
            f"got {top}."
        )
    if window.stride != 1:
        raise ValueError(f"the kernel needs patches of stride 1, got {window.stride}.")
    b, hq, wq, c = query.shape
    query = _line(_tall(query[:, None], window), window)
    taps = _line(_tall(key, window), window)
    index = jnp.arange(scale[0].size, dtype=jnp.int32).reshape(1, *scale.shape[1:])
    scale, lost, index = (
        _line(x[..., None], window, fill)[..., 0]
        for x, fill in ((scale, 0.0), (lost, -jnp.inf), (index, 0))
    )
    parts = 1 if query.dtype == jnp.bfloat16 else PARTS
    n, m = query.shape[1], taps.shape[1]
    plan, tiles = Plan.of(window.patch, c, parts, b, n, m)

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
        tile_keys(lost, fill=-jnp.inf),
        tile_keys(index)[0],
        plan,
        interpret,
    )
    best = jnp.max(score, axis=1)
    index = jnp.min(jnp.where(score == best[:, None], index, LAST), axis=1)

    def in_grid(found: Array) -> Array:
        d = window.dilation
        line = jnp.swapaxes(found, 1, 2).reshape(b, -1)[:, :n]
        rows = line.reshape(b, hq, d, -1)[..., : -(-wq // d)].swapaxes(2, 3)
        return rows.reshape(b, hq, -1, 1)[:, :, :wq]

    return in_grid(best), in_grid(index)


def _call(
    query: Array,
    key: Array,
    scale: Array,
    lost: Array,
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
    keys = pl.BlockSpec((None, count, plan.side_k), lambda i, j, k: (k, 0, 0))
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
            keys,
            keys,
            pl.BlockSpec((count, plan.side_k), lambda i, j, k: (0, 0)),
        ],
        out_specs=(one_out, one_out),
        interpret=interpret,
        compiler_params=triton.CompilerParams(num_warps=WARPS, num_stages=plan.stages),
        name="patch_search",
    )(query, key, scale, lost, index)


def _kernel(
    query: Any,
    key: Any,
    scale: Any,
    lost: Any,
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
                [
                    part(ref, tile, i * plan.chunk + p * plan.inner)
                    for p in range(plan.parts)
                ]
                for ref, tile in ((query, q), (key, k))
            )
            for order in reversed(range(plan.parts)):  # smallest first
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
        factor, out, name = scale[begin, :], lost[begin, :], index[begin, :]
        score = new if not sums else sums[-1] + new
        sums = (new, *(old + new for old in sums[:-1])) if sums else ()
        score = score * factor[None, :] + out[None, :]
        top = jnp.max(score, axis=1)
        equal = score == jnp.broadcast_to(top[:, None], sides)
        name = jnp.broadcast_to(name[None, :], sides)
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
    h, d = maps.shape[2], window.dilation
    padded = jnp.pad(maps, ((0, 0), (0, 0), (window.reach,) * 2, (0, 0), (0, 0)))
    rows = [padded[:, :, i * d : i * d + h] for i in range(window.patch)]
    return jnp.concatenate(rows, axis=-1)


def _line(maps: Array, window: Window, fill: float | None = None) -> Array:
    """`(b, r, h, w, c)` -> `(b, length, c)`: neighbours of a patch, neighbours in line.

    Columns `dilation` apart lie side by side, followed by a gap of `patch // 2`; a line
    of entries (`fill` None) starts with a gap, so that place n holds the first tap of
    patch n.
    """
    b, _, _, w, c = maps.shape
    d, gap = window.dilation, window.patch // 2
    value = 0 if fill is None else fill
    maps = jnp.pad(maps, ((0, 0),) * 3 + ((0, -w % d), (0, 0)), constant_values=value)
    maps = maps.reshape(*maps.shape[:3], -1, d, c).swapaxes(3, 4)
    before, after = (gap, 0) if fill is None else (0, gap)
    maps = jnp.pad(
        maps, ((0, 0),) * 4 + ((before, after), (0, 0)), constant_values=value
    )
    return maps.reshape(b, -1, c)


def _split(line: Array, plan: Plan) -> Array:
    """The bfloat16 parts of `(b, length, c)` side by side, each of the inner size."""
    line = jnp.pad(line, ((0, 0), (0, 0), (0, plan.inner - line.shape[-1])))
    parts = []
    for _ in range(plan.parts):
        # XLA may leave out a plain cast there and back.
        parts.append(lax.reduce_precision(line, 8, 7))
        line = line - parts[-1]
    return jnp.concatenate(parts, axis=-1).astype(jnp.bfloat16)


def _tiles(
    line: Array, count: int, side: int, stride: int, before: int = 0, fill: float = 0
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
