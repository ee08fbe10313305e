"""The GPU search kernel, interpreted, against float64 NumPy; and its lowering."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from daasr_jax.matching import Window, search
from daasr_jax.matching import kernel as module
from daasr_jax.matching.kernel import Plan, search_batch


def run(query, key, patch):
    """Index in the key maps `(b, r, h, w, c)`, interpreted."""
    window = Window(patch)
    return jax.jit(
        lambda q, k: search_batch(
            q, k, window.inverse_norm(k), window=window, interpret=True
        )
    )(query, key)


def normal(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def patches(x, patch):
    """`(..., h w, patch^2 c)` in float64, zero outside the map."""
    *b, h, w, _ = x.shape
    r = patch // 2
    x = np.pad(np.asarray(x, np.float64), (*((0, 0),) * len(b), (r, r), (r, r), (0, 0)))
    entries = [x[..., i : i + h, j : j + w, :] for i, j in np.ndindex(patch, patch)]
    return np.concatenate(entries, -1).reshape(*b, h * w, -1)


def table(query, key, patch):
    """Cosines `(b, queries, r keys)`."""
    q, k = patches(query, patch), patches(key, patch)
    k = k.reshape(k.shape[0], -1, k.shape[-1])
    norm_q, norm_k = (np.linalg.norm(x, axis=-1, keepdims=True) for x in (q, k))
    q = np.divide(q, norm_q, out=np.zeros_like(q), where=norm_q > 0)
    k = np.divide(k, norm_k, out=np.zeros_like(k), where=norm_k > 0)
    return q @ k.swapaxes(1, 2)


def assert_best(query, key, patch=3):
    """The chosen score is the maximum within 1e-5."""
    index = run(query, key, patch)
    assert index.shape == query.shape[:3]
    assert index.dtype == jnp.int32
    truth = table(query, key, patch)
    flat = np.asarray(index).reshape(len(query), -1, 1)
    assert flat.min() >= 0
    assert flat.max() < truth.shape[-1]
    chosen = np.take_along_axis(truth, flat, -1)[..., 0]
    assert (truth.max(-1) - chosen).max() <= 1e-5


@pytest.mark.parametrize(
    ("patch", "query", "key"),
    [
        (1, (2, 9, 10), (2, 1, 9, 10)),
        (3, (1, 21, 33), (1, 1, 5, 40)),
        (5, (1, 3, 13), (1, 1, 17, 6)),
        (3, (1, 7, 9), (1, 2, 11, 8)),
    ],
)
def test_the_maximum(patch, query, key):
    assert_best(normal(0, *query, 5), normal(1, *key, 5), patch)


def test_alike_positive_maps():
    # All cosines near 1: what a product loses shows in the choice.
    query, key = 4 + normal(2, 1, 12, 12, 16), 4 + normal(3, 1, 1, 12, 12, 16)
    assert_best(query, key)


def test_chunks_in_a_loop(monkeypatch):
    maps = normal(4, 1, 9, 10, 12), normal(5, 1, 1, 9, 10, 12)
    monkeypatch.setattr(module, "SHARED_BYTES", 2**10)
    monkeypatch.setattr(module, "CHUNK", 16)
    plan, _ = Plan.of(3, 12, 1, 99, 99)
    assert not plan.unrolled
    assert plan.chunks == 3
    assert_best(*maps)


def test_small_tiles_and_no_splits(monkeypatch):
    monkeypatch.setattr(module, "SIDE", 16)
    monkeypatch.setattr(module, "PROGRAMS", 1)
    assert_best(normal(6, 1, 18, 18, 4), normal(7, 1, 1, 12, 13, 4))


def test_empty_patches():
    query, key = np.zeros((1, 12, 12, 4), np.float32), normal(8, 1, 2, 8, 9, 4)
    query[:, 4:9, 3:8] = normal(9, 1, 5, 5, 4)
    key[:, 0, :5] = 0
    assert_best(query, key)


def test_all_zero_maps():
    zero = jnp.zeros((1, 6, 7, 4))
    np.testing.assert_array_equal(run(zero, zero[:, None], 3), 0)


@pytest.mark.parametrize("programs", [1, module.PROGRAMS])
def test_lowest_of_exact_ties(monkeypatch, programs):
    monkeypatch.setattr(module, "PROGRAMS", programs)
    # +1 and -1, so sums are exact; period 4, so interior patches recur, also in the
    # second key map.
    tile = np.where(normal(11, 1, 4, 4, 8) > 0, 1.0, -1.0).astype(np.float32)
    x = jnp.asarray(np.tile(tile, (1, 4, 4, 1)))
    index = run(x, jnp.stack([x, x], axis=1), 3)[0]
    first = 1 + np.arange(14) % 4
    np.testing.assert_array_equal(index[1:15, 1:15], first[:, None] * 16 + first[None])


def test_search_takes_the_kernel():
    x = jnp.asarray(normal(12, 1, 6, 7, 4))
    index = search(x, x, method="kernel")
    np.testing.assert_array_equal(index[0].ravel(), np.arange(42))


@pytest.mark.parametrize(("side", "channels", "patch"), [(256, 64, 3), (40, 256, 5)])
def test_lowers_for_cuda(side, channels, patch):
    # To Triton's dialect; no GPU is needed for that, but one is to compile it.
    x = jax.ShapeDtypeStruct((1, side, side, channels), jnp.float32)
    found = jax.jit(lambda q, k: search(q, k, patch=patch, method="kernel"))
    try:
        text = found.trace(x, x).lower(lowering_platforms=("cuda",)).as_text()
    except RuntimeError as error:  # JAX 0.11 asks a GPU what it can do
        if "No supported GPU" not in str(error):
            raise
        pytest.skip("this version of JAX lowers GPU kernels only beside a GPU")
    assert text.count("xla.gpu.triton") + text.count("triton_kernel_call") == 1
    assert "patch_search" in text
