"""Contextual matching of McMRSR: a reference position for every LR position.

The LR map is cut into blocks of 8 x 8. Each looks for one position in the whole map of
the reference (coarse) and then, for each of its positions, within a window of 15 x 15
around it (fine). Both compare 3x3 patches by their cosine. The scheme is that of L. Lu
et al., "MASA-SR: Matching Acceleration and Spatial Adaptation for Reference-Based Image
Super-Resolution", CVPR 2021, with the numbers of McMRSR.

A position is row * width + column in the grid of the reference's LR map. Sums over
patches are products of maps, so that no map of patches is held for the fine search.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int

from daasr_jax.resampling import depth_to_space, space_to_depth

BLOCK = 8  # side of a block of LR positions; both sides of the LR map are multiples
_DILATIONS = (1, 2, 3)  # of the patches of the coarse search
_RADIUS = 6  # 1.5 half blocks: candidates lie within it, their patches one further
WINDOW = 2 * _RADIUS + 3  # smallest side of the reference's LR map
_TAPS = tuple((i, j) for i in range(3) for j in range(3))
_ZERO = 1e-24  # a patch of smaller squared norm is zero; PyTorch's epsilon squared
_HIGHEST = lax.Precision.HIGHEST


def find(
    query: Float[Array, "b h w c"], key: Float[Array, "b h2 w2 c"]
) -> Int[Array, "b h w"]:
    """Coarse and fine search; no gradient.

    Args:
        query: Features of the LR image, h and w multiples of `BLOCK`.
        key: Features of the reference's LR counterpart, h2 and w2 at least `WINDOW`.

    Returns:
        Position of the centre of the best patch, never at the border of `key`.
        Of equal candidates the first in the order of rows.

    Raises:
        ValueError: If a size does not fit.
    """
    _check(query, key)
    query, key = (lax.stop_gradient(x).astype(jnp.float32) for x in (query, key))
    return fine(query, key, coarse(query, key))


def coarse(
    query: Float[Array, "b h w c"], key: Float[Array, "b h2 w2 c"]
) -> Int[Array, "b m n"]:
    """Position for every block: that with the largest sum of three cosines.

    The patches have dilations 1, 2 and 3 and are centred on position (4, 4) of a block;
    those of the reference are centred everywhere, with zeros outside.
    """
    b, h, w, c = query.shape
    h2, w2 = key.shape[1:3]
    total = jnp.zeros((b, (h // BLOCK) * (w // BLOCK), h2 * w2), jnp.float32)
    for d in _DILATIONS:
        start = BLOCK // 2 - d
        taps = [
            query[:, start + d * i :: BLOCK, start + d * j :: BLOCK] for i, j in _TAPS
        ]
        patches = jnp.concatenate(taps, -1).reshape(b, -1, 9 * c)
        padded = jnp.pad(key, ((0, 0), (d, d), (d, d), (0, 0)))
        taps = [padded[:, d * i : d * i + h2, d * j : d * j + w2] for i, j in _TAPS]
        everywhere = jnp.concatenate(taps, -1).reshape(b, h2 * w2, 9 * c)
        total += jnp.einsum(
            "bqc,bkc->bqk", _unit(patches), _unit(everywhere), precision=_HIGHEST
        )
    best = jnp.argmax(total, axis=-1).astype(jnp.int32)
    return best.reshape(b, h // BLOCK, w // BLOCK)


def fine(
    query: Float[Array, "b h w c"],
    key: Float[Array, "b h2 w2 c"],
    centre: Int[Array, "b m n"],
) -> Int[Array, "b h w"]:
    """Position for every position of the LR map, inside the window of its block.

    Args:
        query, key: See `find`. Outside the LR map its border is repeated.
        centre: Position of every block; the window around it is moved inside the map.
    """
    b, h, w = query.shape[:3]
    h2, w2 = key.shape[1:3]
    m, n = centre.shape[1:]
    half = WINDOW // 2
    top = jnp.clip(centre // w2 - half, 0, h2 - WINDOW)
    left = jnp.clip(centre % w2 - half, 0, w2 - WINDOW)

    side = np.arange(WINDOW)
    corner = (top * w2 + left)[..., None, None]
    windows = _pick(
        key, corner + (side[:, None] * w2 + side[None, :])[None, None, None]
    )
    padded = _repeat_border(query)
    rows, columns = (
        BLOCK * np.arange(k)[:, None] + np.arange(BLOCK + 2)[None, :] for k in (m, n)
    )
    blocks = padded[:, rows][:, :, :, columns].transpose(0, 1, 3, 2, 4, 5)

    products = jnp.einsum("bmnijc,bmnklc->bmnijkl", blocks, windows, precision=_HIGHEST)
    k = WINDOW - 2
    dots = sum(
        products[..., i : i + BLOCK, j : j + BLOCK, i : i + k, j : j + k]
        for i, j in _TAPS
    )
    squares = jnp.sum(windows**2, axis=-1)
    energy = [squares[..., i : i + k, j : j + k] for i, j in _TAPS]
    cosine = dots * _inverse_root(sum(energy[1:], energy[0]))[:, :, :, None, None]
    best = jnp.argmax(cosine.reshape(b, m, n, BLOCK, BLOCK, k * k), axis=-1)
    position = corner + (best // k + 1) * w2 + best % k + 1
    return position.transpose(0, 1, 3, 2, 4).reshape(b, h, w).astype(jnp.int32)


def score(
    query: Float[Array, "b h w c"],
    key: Float[Array, "b h2 w2 c"],
    index: Int[Array, "b h w"],
) -> Float[Array, "b h w 1"]:
    """Cosine of every LR patch and the one it was given; differentiable in both maps.

    It is 0, with zero gradient, where a patch is zero.

    Args:
        query, key: See `find`.
        index: Its result.

    Returns:
        float32 in [-1, 1].
    """
    h, w = query.shape[1:3]
    padded, key = _repeat_border(query.astype(jnp.float32)), key.astype(jnp.float32)
    shape = (*index.shape, 1)
    dots, of_query, of_key = (jnp.zeros(shape, jnp.float32) for _ in range(3))
    for i, j in _TAPS:
        q = padded[:, i : i + h, j : j + w]
        k = _pick(key, index + (i - 1) * key.shape[2] + j - 1)
        dots += jnp.sum(q * k, axis=-1, keepdims=True)
        of_query += jnp.sum(q * q, axis=-1, keepdims=True)
        of_key += jnp.sum(k * k, axis=-1, keepdims=True)
    return dots * _inverse_root(of_query) * _inverse_root(of_key)


def transfer(
    value: Float[Array, "b h2 w2 c"],
    index: Int[Array, "b h w"],
    confidence: Float[Array, "b h w 1"],
    *,
    cell: int,
) -> Float[Array, "b h3 w3 c"]:
    """The chosen patches, put together block by block, times the confidence.

    A patch is 3 cell x 3 cell pixels, moved in steps of `cell`. Where patches of a
    block overlap, the result is their mean: 9 of them, 6 and 4 at edges and corners of
    every block. The confidence is enlarged within each block, its corners kept.

    Args:
        value: Features of the reference, `cell` times finer than the search.
        index: Positions in the grid of the reference's cells, see `find`.
        confidence: See `score`.
        cell: Pixels along the side of one place of the search.

    Returns:
        Map of `cell` times the grid of `index`, in the type of `value`.
    """
    cells = space_to_depth(value, cell)
    inside = np.arange(BLOCK)
    total = jnp.zeros((*index.shape, cells.shape[-1]), jnp.float32)
    count = np.zeros(index.shape[1:], np.float32)
    for i, j in _TAPS:
        # The patch of the place one up and one left gives its last row and column.
        moved = jnp.roll(index, (i - 1, j - 1), axis=(1, 2))
        rows, columns = (
            np.tile((inside - t + 1 >= 0) & (inside - t + 1 < BLOCK), n // BLOCK)
            for t, n in zip((i, j), index.shape[1:], strict=True)
        )
        own = np.outer(rows, columns)
        part = _pick(cells, moved + (i - 1) * cells.shape[2] + j - 1)
        total += jnp.where(own[None, :, :, None], part.astype(jnp.float32), 0.0)
        count += own
    mean = depth_to_space(total / count[None, :, :, None], cell)
    return (mean * _enlarge_blocks(confidence, cell)).astype(value.dtype)


def _enlarge_blocks(x: Float[Array, "b h w 1"], factor: int) -> Array:
    """Bilinear within blocks; first and last of a block's pixels keep their values."""
    if factor == 1:
        return x
    b, h, w, _ = x.shape
    at = np.linspace(0.0, BLOCK - 1.0, BLOCK * factor)
    weights = np.maximum(0.0, 1.0 - np.abs(at[:, None] - np.arange(BLOCK)[None, :]))
    weights = jnp.asarray(weights, jnp.float32)
    blocks = x.reshape(b, h // BLOCK, BLOCK, w // BLOCK, BLOCK)
    out = jnp.einsum("bminj,pi,qj->bmpnq", blocks, weights, weights, precision=_HIGHEST)
    return out.reshape(b, h * factor, w * factor, 1)


def _pick(x: Float[Array, "b h w c"], index: Int[Array, "b ..."]) -> Array:
    """Channels of `x` at positions: `(*index.shape, c)`."""
    flat = x.reshape(x.shape[0], -1, x.shape[-1])
    return jax.vmap(lambda image, at: image[at])(flat, index)


def _repeat_border(x: Array) -> Array:
    return jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="edge")


def _inverse_root(energy: Array) -> Array:
    """1 / sqrt, and 0 with zero gradient where the energy is as good as 0.

    Much below, the gradient of 1 / sqrt is not finite in float32.
    """
    some = energy > _ZERO
    return jnp.where(some, lax.rsqrt(jnp.where(some, energy, 1.0)), 0.0)


def _unit(x: Array) -> Array:
    return x * _inverse_root(jnp.sum(x**2, axis=-1, keepdims=True))


def _check(query: Array, key: Array) -> None:
    if any(n % BLOCK for n in query.shape[1:3]):
        raise ValueError(
            f"query must have sides that are multiples of {BLOCK}, "
            f"got {query.shape[1]}x{query.shape[2]}."
        )
    if min(key.shape[1:3]) < WINDOW:
        raise ValueError(
            f"key must have sides of at least {WINDOW}, "
            f"got {key.shape[1]}x{key.shape[2]}."
        )
