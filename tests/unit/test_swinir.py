"""SwinIR and the shared parts of the window transformers, by hand."""

from __future__ import annotations

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from daasr_jax.models import swin
from daasr_jax.models.swinir import SwinIR, SwinIRLight

QUICK = {"xla_backend_optimization_level": 0}
TINY = {"features": 4, "groups": 1, "blocks": 2, "heads": 2, "window": 4}


def shapes(model):
    lr, ref = jnp.zeros((1, 16, 16, 1)), jnp.zeros((1, 64, 64, 1))
    return jax.eval_shape(lambda: model.init(jax.random.key(0), lr, ref, train=False))


def apply(module, x, **kwargs):
    """Output of random weights, and those weights."""

    def run(x):
        variables = module.init(jax.random.key(0), x, **kwargs)
        return module.apply(variables, x, **kwargs)

    return jax.jit(run, compiler_options=QUICK)(x)


def noise(*shape):
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize(
    ("model", "scale", "count"),
    [
        (SwinIR, 2, 11_748_093),
        (SwinIR, 3, 11_932_733),
        (SwinIR, 4, 11_895_805),
        (SwinIRLight, 2, 904_744),
        (SwinIRLight, 3, 907_449),
        (SwinIRLight, 4, 911_236),
    ],
)
def test_parameter_counts(model, scale, count):
    """Those of the public code with one channel."""
    leaves = jax.tree.leaves(shapes(model(scale=scale))["params"])
    assert sum(math.prod(leaf.shape) for leaf in leaves) == count


def test_relative_index_by_hand():
    expected = [[4, 3, 1, 0], [5, 4, 2, 1], [7, 6, 4, 3], [8, 7, 5, 4]]
    np.testing.assert_array_equal(swin.relative_index(2, 2), expected)
    wide = swin.relative_index(2, 3)
    assert wide.shape == (4, 9)
    assert set(wide.ravel().tolist()) == set(range(16))


def test_windows_by_hand():
    x = jnp.arange(16).reshape(1, 4, 4, 1)
    windows = swin.window_partition(x, 2)
    np.testing.assert_array_equal(windows[0, 1, :, 0], [2, 3, 6, 7])
    np.testing.assert_array_equal(windows[0, 2, :, 0], [8, 9, 12, 13])
    y = jnp.asarray(noise(2, 6, 9, 5))
    np.testing.assert_array_equal(
        swin.window_merge(swin.window_partition(y, 3), 3, (6, 9)), y
    )


def test_regions_separate_what_wrapped_round():
    """Two tokens of a window share a region if they were near before the roll."""
    h, w, n, shift = 8, 12, 4, 2
    regions = np.asarray(swin.shift_regions((h, w), n, shift))
    at = np.stack(np.meshgrid(np.arange(h), np.arange(w), indexing="ij"), -1)
    rolled = np.roll(at, (-shift, -shift), (0, 1))[None].astype(np.float32)
    places = np.asarray(swin.window_partition(jnp.asarray(rolled), n))[0]
    for region, place in zip(regions, places, strict=True):
        near = (np.abs(place[:, None] - place[None]) < n).all(-1)
        np.testing.assert_array_equal(region[:, None] == region[None], near)


def test_regions_of_a_single_window():
    regions = swin.shift_regions((2, 2), 2, 1)
    assert len(set(regions.ravel().tolist())) == 4


def test_padding_by_hand():
    x = jnp.arange(3.0).reshape(1, 3, 1, 1)
    padded = swin.pad_to_multiple(x, 8)
    assert padded.shape == (1, 8, 8, 1)
    np.testing.assert_array_equal(padded[0, :, 0, 0], [0, 1, 2, 1, 0, 1, 2, 1])
    np.testing.assert_array_equal(padded[0, :, 7, 0], padded[0, :, 0, 0])
    assert swin.pad_to_multiple(padded, 4) is padded


def test_equal_keys_give_the_mean_of_a_region():
    v = jnp.asarray([1.0, 3.0, 10.0, 20.0]).reshape(1, 1, 4, 1, 1)
    regions = jnp.asarray([[0, 0, 1, 1]])
    out = swin.attend(v, 0 * v, v, jnp.zeros((1, 4, 4)), regions)
    np.testing.assert_allclose(out[0, 0, :, 0], [2, 2, 15, 15])


@pytest.mark.parametrize(("shift", "reach"), [(0, range(4)), (2, range(2, 6))])
def test_attention_stays_in_its_window(shift, reach):
    x = jnp.asarray(noise(1, 8, 8, 4))
    layer = swin.SwinLayer(heads=2, window=4, shift=shift)
    changed = jnp.concatenate([x, x.at[:, 2, 3, 0].add(1.0)])
    a, b = apply(layer, changed, train=False)
    differs = np.asarray(jnp.abs(a - b).max(-1) > 1e-6)
    expected = np.zeros((8, 8), bool)
    for i, j in itertools.product(reach, reach):
        expected[i, j] = True
    np.testing.assert_array_equal(differs, expected)


@pytest.mark.parametrize("shift", [0, 4])
def test_layer_takes_any_size(shift):
    x = jnp.asarray(noise(2, 5, 11, 6))
    out = apply(swin.SwinLayer(heads=3, window=8, shift=shift), x, train=False)
    assert out.shape == x.shape
    assert np.isfinite(out).all()


def test_stochastic_depth():
    x = jnp.ones((64, 2, 2, 1))
    drop = swin.StochasticDepth(0.25)
    np.testing.assert_array_equal(drop.apply({}, x, train=False), x)
    rngs = {"dropout": jax.random.key(0)}
    y = np.asarray(drop.apply({}, x, train=True, rngs=rngs))
    first = y[:, :1, :1]
    np.testing.assert_array_equal(y, np.broadcast_to(first, y.shape))
    kept = first != 0
    assert 0.6 < kept.mean() < 0.9
    np.testing.assert_allclose(first[kept], 4 / 3, rtol=1e-6)
    np.testing.assert_allclose(
        swin.drop_path_rates(0.1, 2, 3), [[0, 0.02, 0.04], [0.06, 0.08, 0.1]]
    )


def test_stochastic_depth_acts_in_training_only():
    lr, ref = jnp.asarray(noise(1, 4, 4, 1)), jnp.zeros((1, 8, 8, 1))
    model = SwinIR(scale=2, drop_path=0.9, **TINY)

    def run():
        keys = {"params": jax.random.key(0), "dropout": jax.random.key(1)}
        variables = model.init(keys, lr, ref, train=False)
        still = model.apply(variables, lr, ref, train=False).sr
        moving = model.apply(variables, lr, ref, train=True, rngs=keys).sr
        return still, moving

    still, moving = jax.jit(run, compiler_options=QUICK)()
    assert float(jnp.abs(still - moving).max()) > 0


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"scale": 8}, "scale must be one of"),
        ({"upsampler": "nearest+conv"}, "upsampler must be one of"),
        ({"heads": 3}, "heads must divide"),
        ({"channels": 2}, "channels must be 1 or 3"),
    ],
)
def test_errors(fields, message):
    with pytest.raises(ValueError, match=message):
        shapes(SwinIR(**{**TINY, **fields}))


def test_shift_must_be_below_the_window():
    with pytest.raises(ValueError, match="shift must be from 0 to 3"):
        apply(swin.SwinLayer(heads=1, window=4, shift=4), noise(1, 4, 4, 2), train=True)
