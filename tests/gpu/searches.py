"""Maps to search, what float64 NumPy finds in them, and the kernel's program.

    python -m tests.gpu.searches DIR SIZE ...

writes P of the kernel at each size and content to `DIR/SIZE-CONTENT.npy`, or to
`DIR/SIZE.txt` why it cannot. It is a process of its own, because a compiler of kernels
may end the process, or not end.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np

from daasr_jax.matching import search
from tests.unit.test_matching import patches

CONTENTS = ("random", "background", "ties")
# Side of the maps, references, channels.
SIZES = {
    "small": (13, 2, 8),
    "1600": (40, 1, 64),
    "1600_of_3": (40, 3, 16),
    "6400": (80, 1, 16),
}
PERIOD = 4  # of the ties
# A float32 cosine of 72 to 576 entries is off by some 1e-7; diagonal sums compare it
# to 5e-7. Two scores this near count as equal.
NEAR = 2e-6


def normal(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@functools.cache
def maps(size: str, content: str) -> tuple[np.ndarray, np.ndarray]:
    """Query `(1, h, w, c)` and keys `(1, r, h, w, c)`."""
    side, r, c = SIZES[size]
    query, keys = normal(0, 1, side, side, c), normal(1, 1, r, side, side, c)
    if content == "background":  # black, but for a third of each side
        a, b = side // 3, 2 * side // 3
        black = np.zeros_like(query), np.zeros_like(keys)
        black[0][:, a:b, a:b] = query[:, a:b, a:b]
        black[1][:, :, a + 2 : b, a - 2 : b] = keys[:, :, a + 2 : b, a - 2 : b]
        return black
    if content == "ties":  # +1 and -1, so sums are exact; interior patches recur
        tile = np.where(normal(2, 1, PERIOD, PERIOD, c) > 0, 1, -1)
        times = -(-side // PERIOD)
        query = np.tile(tile.astype(np.float32), (1, times, times, 1))
        query = query[:, :side, :side]
        keys = np.repeat(query[:, None], r, axis=1)
    return query, keys


def compiled(method: str, size: str) -> Callable[..., jax.Array]:
    """`(query, keys) -> P` of maps of a size."""
    shapes = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in maps(size, "random")]
    run = jax.jit(lambda query, key: search(query, key, method=method))
    return run.lower(*shapes).compile()


def assert_best(index: np.ndarray, size: str, content: str) -> None:
    """The scores of the choices are the highest, within `NEAR`.

    Of exact ties the lowest position is chosen, so also the lowest of equal references.
    """
    side = SIZES[size][0]
    assert index.dtype == np.int32
    lost = _highest(size, content) - cosine(index, size, content)
    assert lost.max() <= NEAR
    if content == "background":  # a black patch agrees with nothing: all are equal
        assert not index.ravel()[~_unit_patches(size, content)[0].any(1)].any()
    if content == "ties":
        first = 1 + np.arange(side - 2) % PERIOD
        np.testing.assert_array_equal(
            index[0, 1:-1, 1:-1], first[:, None] * side + first[None]
        )


def cosine(index: np.ndarray, size: str, content: str) -> np.ndarray:
    """float64 cosine of each query and its choice."""
    query, key = _unit_patches(size, content)
    assert index.min() >= 0
    assert index.max() < len(key)
    return np.einsum("qc,qc->q", query, key[index.ravel()])


@functools.cache
def _unit_patches(size: str, content: str) -> tuple[np.ndarray, np.ndarray]:
    """Patches of the query, and of all keys one after the other, of norm 1 or 0."""
    query, keys = maps(size, content)

    def unit(x: np.ndarray) -> np.ndarray:
        x = x.reshape(-1, x.shape[-1])
        norm = np.linalg.norm(x, axis=-1, keepdims=True)
        return np.divide(x, norm, out=np.zeros_like(x), where=norm > 0)

    return unit(patches(query, 3)), unit(patches(keys[0], 3))


@functools.cache
def _highest(size: str, content: str) -> np.ndarray:
    """The highest cosine of each query, float64."""
    query, key = _unit_patches(size, content)
    some = max(1, 2**23 // len(key))  # 64 MiB of scores at a time
    return np.concatenate(
        [(query[i : i + some] @ key.T).max(1) for i in range(0, len(query), some)]
    )


def main(folder: str, *sizes: str) -> None:
    for size in sizes:
        try:
            run = compiled("kernel", size)
        except Exception as error:  # whatever a compiler of kernels raises
            said = f"{type(error).__name__}: {' '.join(str(error).split())[:1500]}"
            (Path(folder) / f"{size}.txt").write_text(said)
            continue
        for content in CONTENTS:
            index = np.asarray(run(*map(jax.device_put, maps(size, content))))
            np.save(Path(folder) / f"{size}-{content}.npy", index)


if __name__ == "__main__":
    main(*sys.argv[1:])
