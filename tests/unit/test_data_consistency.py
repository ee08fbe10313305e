"""Data consistency around every kind of model: what it changes and what it leaves."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from daasr_jax.models.data_consistency import DataConsistent
from daasr_jax.registry import LOSSES
from daasr_jax.resampling import degrade
from daasr_jax.training.state import create_state
from daasr_jax.training.step import make_train_step
from tests.parity.weights import random_variables
from tests.unit.test_contract import images, shapes_of, tiny

CASES = [("daasr", 4), ("edsr", 3), ("mcsr", 2)]


@pytest.fixture(scope="module", params=CASES, ids=lambda case: case[0])
def case(request):
    """`(bare model, wrapped model, lr, ref, variables)`, no variable zero."""
    name, scale = request.param
    bare = tiny(name, scale)
    lr, ref = images(scale, h=6, w=7)
    return (
        bare,
        DataConsistent(model=bare, scale=scale),
        *(lr, ref, random_variables(shapes_of(bare, lr, ref), seed=1)),
    )


def test_the_variables_are_the_models(case):
    _, wrapped, lr, ref, variables = case
    shapes = shapes_of(wrapped, lr, ref)
    assert jax.tree.structure(shapes) == jax.tree.structure(variables)
    assert jax.tree.map(jnp.shape, shapes) == jax.tree.map(jnp.shape, variables)


def test_output_degrades_to_lr(case):
    bare, wrapped, lr, ref, variables = case
    plain, got = (
        jax.jit(lambda v, m=m: m.apply(v, lr, ref, train=False))(variables)
        for m in (bare, wrapped)
    )
    assert got.sr.dtype == jnp.float32
    seen = [degrade(x.sr, wrapped.scale, degradation="kspace") for x in (plain, got)]
    assert np.abs(seen[0] - lr).max() > 1e-2
    np.testing.assert_allclose(seen[1], lr, atol=1e-6)
    jax.tree.map(np.testing.assert_array_equal, got.aux, plain.aux)


@pytest.mark.full
def test_gradient_reaches_every_parameter(case):
    bare, wrapped, lr, ref, variables = case
    hr = images(wrapped.scale, h=6, w=7, seed=5)[1]

    def norms(model):
        def loss(params):
            out, _ = model.apply(
                {**variables, "params": params},
                *(lr, ref),
                train=True,
                mutable=["batch_stats"],
                rngs={"dropout": jax.random.key(0)},
            )
            return jnp.mean(jnp.abs(out.sr - hr))

        gradient = jax.jit(jax.grad(loss))(variables["params"])
        return {
            jax.tree_util.keystr(path): float(jnp.linalg.norm(g))
            for path, g in jax.tree.leaves_with_path(gradient)
        }

    plain, got = norms(bare), norms(wrapped)
    assert all(np.isfinite(v) for v in got.values())
    assert {k for k, v in got.items() if v} >= {
        # a constant shift of SR is in the centre that is replaced
        k
        for k, v in plain.items()
        if v and not k.endswith("['bias']")
    }


def test_a_step_trains_what_lies_beyond_lr():
    """Two steps from one state: the model learns with the layer as without."""
    model = DataConsistent(model=tiny("edsr", 2), scale=2)
    optimiser = optax.adam(1e-3)
    state = create_state(model, optimiser, scale=2, crop=6, seed=0, ema=False)
    step = jax.jit(
        make_train_step(
            *(model, optimiser, {"rec": (1.0, LOSSES.get("pixel.rec"))}),
            scale=2,
            degradation="kspace",
        )
    )
    hr, ref = (images(2, h=6, w=6, seed=s)[1] for s in (0, 1))
    losses = []
    for _ in range(8):
        state, metrics = step(state, {"hr": hr, "ref": ref})
        losses.append(float(metrics["g/rec"]))
    assert losses[-1] < losses[0]
