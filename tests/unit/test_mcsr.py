"""MCSR by hand: levels, what each sees, gradients."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from daasr_jax.models.mcsr import MCSR
from daasr_jax.resampling import downsample, upsample
from tests.parity.weights import flatten, random_variables

QUICK = {"xla_backend_optimization_level": 0}
TINY = {"features": 4, "blocks": 1, "layers": 1}
LEVEL = 2 * (640 + 3 * 36_928) + 128 * 64 + 64 + 16 * 36_928 + 577


def noise(*shape):
    return np.random.default_rng(0).random(shape).astype(np.float32)


def images(scale, h=4, w=5):
    return noise(2, h, w, 1), noise(2, scale * h, scale * w, 1)


def shapes(model):
    lr, ref = images(model.scale)
    return jax.eval_shape(lambda: model.init(jax.random.key(0), lr, ref, train=False))


def jit(f):
    return jax.jit(f, compiler_options=QUICK)


@pytest.mark.parametrize(("scale", "levels"), [(2, 1), (3, 1), (4, 2)])
def test_parameter_counts(scale, levels):
    leaves = jax.tree.leaves(shapes(MCSR(scale=scale))["params"])
    assert sum(math.prod(leaf.shape) for leaf in leaves) == levels * LEVEL


@pytest.mark.parametrize("scale", [2, 3])
def test_one_level_adds_to_the_bicubic_image(scale):
    model = MCSR(scale=scale, **TINY)
    lr, ref = images(scale)
    variables = random_variables(shapes(model), seed=1)
    variables["params"]["level1"]["last"] = jax.tree.map(
        np.zeros_like, variables["params"]["level1"]["last"]
    )
    out, bicubic = jit(
        lambda v: (model.apply(v, lr, ref, train=False), upsample(lr, scale))
    )(variables)
    assert out.aux == {}
    np.testing.assert_array_equal(out.sr, bicubic)


def test_first_of_two_levels_is_the_network_of_x2():
    """It sees the reference reduced by 2; the second starts from its picture."""
    lr, ref = images(4)
    variables = random_variables(shapes(MCSR(scale=4, **TINY)), seed=1)
    first = {"params": {"level1": variables["params"]["level1"]}}
    second = {"params": {"level1": variables["params"]["level2"]}}

    def run(lr, ref):
        whole = MCSR(scale=4, **TINY).apply(variables, lr, ref, train=False)
        two = MCSR(scale=2, **TINY)
        half = two.apply(first, lr, downsample(ref, 2), train=False).sr
        return whole, half, two.apply(second, half, ref, train=False).sr

    whole, half, sr = jit(run)(lr, ref)
    assert half.shape == (2, 8, 10, 1)
    np.testing.assert_allclose(whole.aux["level1"], half, atol=1e-5)
    np.testing.assert_allclose(whole.sr, sr, atol=1e-5)


def test_every_parameter_has_a_gradient_from_sr():
    model = MCSR(scale=4, **TINY)
    lr, ref = images(4)
    params = random_variables(shapes(model), seed=1)["params"]

    def loss(params):
        return jnp.mean(model.apply({"params": params}, lr, ref, train=True).sr ** 2)

    for name, grad in flatten(jit(jax.grad(loss))(params)).items():
        assert np.isfinite(grad).all(), name
        assert np.any(grad), name


def test_errors():
    with pytest.raises(ValueError, match="scale must be one of"):
        shapes(MCSR(scale=8, **TINY))
    lr, ref = images(2)
    with pytest.raises(ValueError, match=r"ref must have the HR size \(16, 20\)"):
        MCSR(scale=4, **TINY).init(jax.random.key(0), lr, ref, train=False)
