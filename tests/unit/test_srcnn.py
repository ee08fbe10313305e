"""SRCNN by hand."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from daasr_jax.models.srcnn import SRCNN, SRCNN915
from daasr_jax.resampling import upsample

QUICK = {"xla_backend_optimization_level": 0}


def shapes(model):
    lr, ref = jnp.zeros((1, 8, 8, 1)), jnp.zeros((1, 32, 32, 1))
    return jax.eval_shape(lambda: model.init(jax.random.key(0), lr, ref, train=False))


@pytest.mark.parametrize("scale", [2, 3, 4])
@pytest.mark.parametrize(("model", "count"), [(SRCNN, 57_281), (SRCNN915, 8_129)])
def test_parameter_counts(model, count, scale):
    """The same network for every scale."""
    leaves = jax.tree.leaves(shapes(model(scale=scale))["params"])
    assert sum(math.prod(leaf.shape) for leaf in leaves) == count


def test_works_on_the_bicubic_image_without_residual():
    """Kernels that pass one channel on give Up(LR); the last one halves it."""
    model = SRCNN(scale=3, features=4)
    lr = jnp.asarray(np.random.default_rng(0).random((2, 5, 4, 1)), jnp.float32)
    params = jax.tree.map(lambda s: jnp.zeros(s.shape), shapes(model)["params"])
    for name, value in (("extract", 1.0), ("map", 1.0), ("reconstruct", 0.5)):
        kernel = params[name]["kernel"]
        centre = kernel.shape[0] // 2
        params[name]["kernel"] = kernel.at[centre, centre, 0, 0].set(value)
    params["reconstruct"]["bias"] = jnp.array([0.25])

    def run(lr):
        return model.apply({"params": params}, lr, lr, train=False).sr, upsample(lr, 3)

    sr, bicubic = jax.jit(run, compiler_options=QUICK)(lr)
    np.testing.assert_allclose(sr, 0.25 + 0.5 * np.maximum(bicubic, 0), atol=1e-6)


def test_initial_weights():
    lr = jnp.zeros((1, 4, 4, 1))

    def run(start):
        model = SRCNN(start=start)
        return model.init(jax.random.key(0), lr, lr, train=False)["params"]

    published = jax.jit(lambda: run("published"), compiler_options=QUICK)()
    default = jax.jit(lambda: run("default"), compiler_options=QUICK)()
    for layer in published.values():
        assert np.std(layer["kernel"]) == pytest.approx(0.001, rel=0.1)
        np.testing.assert_array_equal(layer["bias"], 0)
    for name, fan_in in (("extract", 81), ("map", 1600), ("reconstruct", 800)):
        largest = np.abs(default[name]["kernel"]).max()
        assert largest == pytest.approx(fan_in**-0.5, rel=0.02)
        assert 0 < np.abs(default[name]["bias"]).max() <= fan_in**-0.5


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"scale": 5}, "scale must be one of"),
        ({"start": "zeros"}, "start must be one of"),
        ({"kernels": (9, 4, 5)}, "kernels must be three odd sides"),
        ({"kernels": (9, 5)}, "kernels must be three odd sides"),
    ],
)
def test_errors(fields, message):
    with pytest.raises(ValueError, match=message):
        shapes(SRCNN(**fields))
