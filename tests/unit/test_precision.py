"""What is never TF32, and that a CPU does not care."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from daasr_jax.matching import pair_score, search
from daasr_jax.models.cwt import ChannelAttention
from daasr_jax.resampling import degrade, downsample, upsample
from tests.parity.weights import random_variables
from tests.unit.test_contract import images, shapes_of, tiny

HIGHEST = jax.lax.Precision.HIGHEST


def products(traced: Any) -> list[tuple[int, Any]]:
    """Number of batch axes and precision of every matrix product, the inner too."""
    found = []
    for equation in getattr(traced, "jaxpr", traced).eqns:
        if equation.primitive.name == "dot_general":
            batch = equation.params["dimension_numbers"][1][0]
            found.append((len(batch), equation.params["precision"]))
        for inner in jax.tree.leaves(list(equation.params.values())):
            if hasattr(inner, "eqns") or hasattr(inner, "jaxpr"):
                found += products(inner)
    return found


def traced(function, *arrays):
    """Its products where TF32 is the default, in the gradient too."""
    with jax.default_matmul_precision("tensorfloat32"):
        return products(jax.make_jaxpr(function)(*arrays))


def gradient(function):
    return jax.grad(lambda *x: jnp.sum(function(*x) ** 2), argnums=(0, 1))


def test_channel_attention():
    model = ChannelAttention(heads=2)
    x = jnp.ones((2, 9, 4))
    variables = model.init(jax.random.key(0), x)
    for form in (model.apply, gradient(model.apply)):
        found = traced(form, variables, x)
        channels = [precision for axes, precision in found if axes == 2]
        assert len(channels) >= 2  # batch and head: the C x C product and its use
        assert all(p == (HIGHEST, HIGHEST) for p in channels)
        # the linear maps take the default
        assert any(p != (HIGHEST, HIGHEST) for _, p in found)


@pytest.mark.parametrize(
    "function",
    [
        pytest.param(lambda q, k: search(q, k, method="chunked"), id="chunked"),
        pytest.param(lambda q, k: search(q, k, method="diagonal"), id="diagonal"),
        pytest.param(
            lambda q, k: pair_score(q, k, jnp.zeros(q.shape[:3], jnp.int32)),
            id="pair_score",
        ),
        pytest.param(lambda q, k: degrade(q, 2, degradation="kspace"), id="kspace"),
        pytest.param(lambda q, k: upsample(downsample(q, 2), 2), id="bicubic"),
    ],
)
def test_search_and_resampling(function):
    q = jnp.ones((1, 8, 8, 4))
    found = traced(function, q, q)
    assert found
    assert all(precision == (HIGHEST, HIGHEST) for _, precision in found)


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="is of a CPU")
def test_a_cpu_computes_the_same_bits():
    model = tiny("daasr", 2)
    lr, ref = images(2)
    variables = random_variables(shapes_of(model, lr, ref), seed=1)
    results = []
    for precision in ("float32", "tensorfloat32"):
        with jax.default_matmul_precision(precision):
            run = jax.jit(lambda v, n=precision: model.apply(v, lr, ref, train=False))
            results.append(run(variables))
    jax.tree.map(np.testing.assert_array_equal, *results)
