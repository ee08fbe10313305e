"""EDSR by hand."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from daasr_jax.models.edsr import EDSR, EDSRL, ResidualBlock
from tests.parity.weights import random_variables

QUICK = {"xla_backend_optimization_level": 0}


def shapes(model):
    lr, ref = jnp.zeros((1, 8, 8, 1)), jnp.zeros((1, 32, 32, 1))
    return jax.eval_shape(lambda: model.init(jax.random.key(0), lr, ref, train=False))


@pytest.mark.parametrize(
    ("model", "scale", "channels", "count"),
    [
        (EDSR, 2, 1, 1_367_553),
        (EDSR, 3, 1, 1_552_193),
        (EDSR, 4, 1, 1_515_265),
        (EDSR, 2, 3, 1_369_859),
        (EDSR, 3, 3, 1_554_499),
        (EDSR, 4, 3, 1_517_571),
        (EDSRL, 2, 1, 40_720_385),
        (EDSRL, 3, 1, 43_670_785),
        (EDSRL, 4, 1, 43_080_705),
    ],
)
def test_parameter_counts(model, scale, channels, count):
    """Those of the public code."""
    leaves = jax.tree.leaves(shapes(model(scale=scale, channels=channels))["params"])
    assert sum(math.prod(leaf.shape) for leaf in leaves) == count


def test_residual_block_scales_its_branch():
    x = jnp.asarray(np.random.default_rng(0).random((1, 4, 4, 2)), jnp.float32)
    params = ResidualBlock().init(jax.random.key(0), x)
    whole = ResidualBlock().apply(params, x)
    tenth = ResidualBlock(res_scale=0.1).apply(params, x)
    np.testing.assert_allclose(tenth - x, 0.1 * (whole - x), atol=1e-6)


def test_range_only_weighs_the_biases():
    """With range R the network is that of range 1 with its biases divided by R."""
    fields = {"scale": 2, "features": 4, "blocks": 1}
    lr = jnp.asarray(np.random.default_rng(0).random((1, 4, 5, 1)), jnp.float32)
    variables = random_variables(shapes(EDSR(**fields)), seed=1)
    small = jax.tree.map_with_path(
        lambda path, v: v / 255 if path[-1].key == "bias" else v, variables
    )

    def run(variables, img_range):
        model = EDSR(img_range=img_range, **fields)
        return jax.jit(
            lambda v: model.apply(v, lr, lr, train=False).sr, compiler_options=QUICK
        )(variables)

    np.testing.assert_allclose(run(variables, 255.0), run(small, 1.0), atol=1e-5)
    assert np.abs(run(variables, 1.0) - run(small, 1.0)).max() > 0.01


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"scale": 8}, "scale must be one of"),
        ({"channels": 2}, "channels must be 1 or 3"),
        ({"img_range": 0.0}, "img_range must be above 0"),
    ],
)
def test_errors(fields, message):
    with pytest.raises(ValueError, match=message):
        shapes(EDSR(features=4, blocks=1, **fields))
