"""Frozen weights are arguments of the compiled step, not constants in it."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
import optax
import pytest

from daasr_jax.losses.perceptual import make_perceptual, make_texture
from daasr_jax.registry import LOSSES
from daasr_jax.runtime import devices
from daasr_jax.training.state import create_state
from daasr_jax.training.step import make_train_step
from tests.unit.test_contract import tiny
from tests.unit.test_perceptual import random_vgg

LARGE = 2**20  # bytes


@pytest.fixture(scope="module")
def made():
    """`(step, state, batch)` of a small network with both terms by VGG."""
    vgg = random_vgg("caffe")
    losses = {
        "rec": (1.0, LOSSES.get("pixel.rec")),
        "perceptual": (0.1, make_perceptual(vgg, "rec", scale=2)),
        "texture": (0.1, make_texture(vgg, "rec")),
    }
    model, optimiser = tiny("srcnn", 2), optax.sgd(1e-3)
    state = create_state(model, optimiser, scale=2, crop=8, seed=0, ema=False)
    rng = np.random.default_rng(0)
    batch = {k: rng.random((2, 16, 16, 1), np.float32) for k in ("hr", "ref")}
    step = make_train_step(model, optimiser, losses, scale=2, axis=devices.AXIS)
    return step, jax.device_get(state), batch


def constants(traced: Any) -> list[int]:
    """Bytes of every array that is written into a program, in inner programs too."""
    sizes = [c.nbytes for c in getattr(traced, "consts", ())]
    for equation in getattr(traced, "jaxpr", traced).eqns:
        sizes += [
            value.nbytes
            for v in equation.invars
            if hasattr(value := getattr(v, "val", None), "nbytes")
        ]
        for inner in jax.tree.leaves(list(equation.params.values())):
            if hasattr(inner, "eqns") or hasattr(inner, "jaxpr"):
                sizes += constants(inner)
    return sizes


def test_no_large_constant_in_the_step(made):
    step, *given = made
    mesh = devices.make_mesh(2, 2)
    run = devices.compile_step(step, mesh)
    assert max(constants(jax.make_jaxpr(run.func)(*run.args, *given))) < LARGE
    # the same count does see what a step closes over
    closed = devices.compile_step(lambda state, batch: step(state, batch), mesh)
    assert max(constants(jax.make_jaxpr(closed.func)(*closed.args, *given))) > LARGE


def test_the_step_is_the_same_either_way(made):
    step, *given = made
    mesh = devices.make_mesh(2, 1)
    results = []
    for form in (step, lambda state, batch: step(state, batch)):
        run = devices.compile_step(form, mesh)
        results.append(run(devices.replicate(given[0], mesh), given[1]))
    (a, rows), (b, other) = results
    assert float(rows["g/perceptual"]) > 0
    assert float(rows["g/texture"]) > 0
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6, atol=1e-6),
        (a, rows),
        (b, other),
    )


def test_the_weights_stay_and_may_differ(made):
    """Other weights are another argument, and no second compilation."""
    step, *given = made
    mesh = devices.make_mesh(2, 1)
    run = devices.compile_step(step, mesh)
    for factor in (1.0, 2.0):
        other = jax.tree.map(lambda x, f=factor: f * x, run.args[0])
        _, rows = run.func(other, devices.replicate(given[0], mesh), given[1])
        assert np.isfinite(float(rows["g/total"]))
    assert run.func._cache_size() == 1
