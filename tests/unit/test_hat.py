"""HAT by hand."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from daasr_jax.models.hat import HAT, HATL, HATS, OCAB, overlapping_windows

QUICK = {"xla_backend_optimization_level": 0}
TINY = {"features": 4, "groups": 1, "blocks": 1, "heads": 2, "window": 4}


def shapes(model):
    lr, ref = jnp.zeros((1, 16, 16, 1)), jnp.zeros((1, 64, 64, 1))
    return jax.eval_shape(lambda: model.init(jax.random.key(0), lr, ref, train=False))


@pytest.mark.parametrize(
    ("model", "scale", "count"),
    [
        (HAT, 2, 20_620_401),
        (HAT, 3, 20_805_041),
        (HAT, 4, 20_768_113),
        (HATS, 4, 9_617_437),
        (HATL, 4, 40_842_181),
    ],
)
def test_parameter_counts(model, scale, count):
    """Those of the public code with one channel; the scale acts on the tail alone."""
    leaves = jax.tree.leaves(shapes(model(scale=scale))["params"])
    assert sum(math.prod(leaf.shape) for leaf in leaves) == count


@pytest.mark.parametrize("n", [4, 5, 8])
def test_overlapping_windows(n):
    m = n + n // 2
    p = (m - n) // 2
    x = np.random.default_rng(0).random((2, 2 * n, 3 * n, 2)).astype(np.float32)
    windows = overlapping_windows(jnp.asarray(x), n, m)
    padded = np.pad(x, ((0, 0), (p, p), (p, p), (0, 0)))
    expected = [
        padded[:, i : i + m, j : j + m].reshape(2, m * m, 2)
        for i in range(0, 2 * n, n)
        for j in range(0, 3 * n, n)
    ]
    np.testing.assert_array_equal(windows, np.stack(expected, 1))


def test_overlapping_attention_reaches_the_rim_of_the_next_window():
    x = jnp.asarray(np.random.default_rng(0).standard_normal((1, 4, 12, 4)))
    x = x.astype(jnp.float32)
    block = OCAB(heads=2, window=4)
    changed = [x, x.at[:, 1, 4, 0].add(1.0), x.at[:, 1, 5, 0].add(1.0)]

    def run(x):
        return block.apply(block.init(jax.random.key(0), x), x)

    out = jax.jit(run, compiler_options=QUICK)(jnp.concatenate(changed))
    reach = [np.asarray(jnp.abs(out[i] - out[0]).max((0, 2)) > 1e-6) for i in (1, 2)]
    np.testing.assert_array_equal(reach[0], [True] * 8 + [False] * 4)
    np.testing.assert_array_equal(reach[1], [False] * 4 + [True] * 4 + [False] * 4)


def test_narrow_network_keeps_one_channel_in_its_bottlenecks():
    cab = shapes(HAT(**TINY))["params"]["group0"]["block0"]["cab"]
    assert cab["conv1"]["kernel"].shape == (3, 3, 4, 1)
    assert cab["squeeze"]["kernel"].shape == (4, 1)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"scale": 1}, "scale must be one of"),
        ({"window": 6}, "window must have an even half"),
        ({"heads": 3}, "heads must divide"),
        ({"channels": 2}, "channels must be 1 or 3"),
    ],
)
def test_errors(fields, message):
    with pytest.raises(ValueError, match=message):
        shapes(HAT(**{**TINY, **fields}))
