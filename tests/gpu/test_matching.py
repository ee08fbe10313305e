"""The forms of the search on the device, against float64 NumPy and each other."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from daasr_jax.matching import Window, search
from tests.unit.test_matching import patches

METHODS = ("chunked", "diagonal", "kernel")
# Side of the maps, references, channels.
SIZES = {
    "small": (13, 2, 8),
    "1600": (40, 1, 64),
    "1600_of_3": (40, 3, 16),
    "6400": (80, 1, 16),
    "6400_of_2": (80, 2, 16),
}
PERIOD = 4
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


def unit(x: np.ndarray) -> np.ndarray:
    norm = np.linalg.norm(x, axis=-1, keepdims=True)
    return np.divide(x, norm, out=np.zeros_like(x), where=norm > 0)


@functools.cache
def unit_patches(size: str, content: str) -> tuple[np.ndarray, np.ndarray]:
    """Patches of the query, and of all keys one after the other, float64, of norm 1."""
    query, keys = maps(size, content)
    q, k = patches(query, 3)[0], patches(keys[0], 3)
    return unit(q), unit(k.reshape(-1, k.shape[-1]))


@functools.cache
def highest(size: str, content: str) -> np.ndarray:
    """The highest cosine of each query, float64."""
    q, k = unit_patches(size, content)
    some = max(1, 2**23 // len(k))  # 64 MiB of scores at a time
    return np.concatenate(
        [(q[i : i + some] @ k.T).max(1) for i in range(0, len(q), some)]
    )


@pytest.fixture(scope="module")
def find(device, request) -> Iterator[Any]:
    """`(method, size) -> (query, keys) -> index`, compiled once."""
    # JAX looks for what cannot be lowered before it asks which device there is.

    @functools.cache
    def compiled(method: str, size: str) -> Any:
        shapes = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in maps(size, "random")]
        run = jax.jit(lambda q, k: search(q, k, method=method))
        try:
            return run.lower(*shapes).compile()
        except Exception as error:  # whatever the compiler of kernels raises
            if method != "kernel":
                raise
            return f"{type(error).__name__}: {' '.join(str(error).split())[:1500]}"

    yield compiled
    compiled.cache_clear()


@pytest.fixture
def found(find, device, measured):
    """`(method, size, content) -> P` of every query, flat."""

    def run(method: str, size: str, content: str) -> np.ndarray:
        if method == "kernel" and device.platform == "cpu" and size != "small":
            pytest.skip("a CPU interprets the kernel, which takes minutes at this size")
        program = find(method, size)
        if isinstance(program, str):
            measured(f"KERNEL NOT COMPILED: {program}")
            pytest.xfail(f"the kernel does not compile here: {program}")
        index = np.asarray(program(*map(jnp.asarray, maps(size, content))))
        assert index.dtype == np.int32
        return index.ravel()

    return run


def chosen(index: np.ndarray, size: str, content: str) -> np.ndarray:
    """float64 cosine of each query and its choice."""
    q, k = unit_patches(size, content)
    assert index.min() >= 0
    assert index.max() < len(k)
    return np.einsum("qc,qc->q", q, k[index])


@pytest.mark.parametrize("content", ["random", "background"])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("method", METHODS)
def test_the_choice_is_the_best(method, size, content, found):
    index = found(method, size, content)
    lost = highest(size, content) - chosen(index, size, content)
    assert lost.max() <= NEAR
    if (
        content == "background"
    ):  # a black patch agrees with nothing: the first of equals
        assert not index[~unit_patches(size, content)[0].any(1)].any()


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("method", METHODS)
def test_the_lowest_of_exact_ties(method, size, found):
    """Also the lowest reference, since all are the same."""
    side = SIZES[size][0]
    index = found(method, size, "ties").reshape(side, side)
    inside = np.arange(1, side - 1)
    first = 1 + (inside - 1) % PERIOD
    np.testing.assert_array_equal(
        index[1:-1, 1:-1], first[:, None] * side + first[None]
    )


@pytest.mark.parametrize("content", ["random", "background"])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("method", METHODS[1:])
def test_methods_agree(method, size, content, found, measured):
    """With the chunked form: the same P but for scores that are equal by rounding."""
    a, b = (found(name, size, content) for name in ("chunked", method))
    gap = np.abs(chosen(a, size, content) - chosen(b, size, content))
    measured(f"equal P={np.mean(a == b):.5f}, scores off by {gap.max():.1e}")
    assert gap.max() <= NEAR
    # Of continuous values hardly two scores of a query are that near.
    assert np.mean(a == b) >= 0.995


@pytest.mark.parametrize("size", ["small", "1600_of_3"])
def test_reciprocal_norms(size, device):
    """float32 sums of squares and the device's reciprocal root, within 1e-6."""
    _, keys = maps(size, "random")
    got = np.asarray(jax.jit(Window(3).inverse_norm)(jnp.asarray(keys)), np.float64)
    wanted = 1 / np.linalg.norm(patches(keys[0], 3), axis=-1)
    np.testing.assert_allclose(got.ravel(), wanted.ravel(), rtol=1e-6)
