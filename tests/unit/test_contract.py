"""What every registered model must keep to, at every scale, at tiny width."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from daasr_jax.evaluation.controls import uses_reference
from daasr_jax.models.outputs import Outputs
from daasr_jax.registry import LOSSES, MODELS
from daasr_jax.resampling import upsample
from daasr_jax.training.state import create_state
from daasr_jax.training.step import make_train_step
from tests.parity.weights import flatten, random_variables

NAMES = MODELS.names()
# `make test-all` takes every scale, `make test` the usual one.
SCALES = [pytest.param(scale, marks=pytest.mark.full) for scale in (2, 3)] + [4]
# Models that ignore the reference; every other one must react to it.
SINGLE_IMAGE = {
    *("srcnn", "srcnn_915", "edsr", "edsr_l"),
    *("swinir", "swinir_light", "hat", "hat_s", "hat_l"),
}
# One vocabulary of fields; a model takes those it has.
TINY = {
    "features": 12,
    "groups": 1,
    "blocks": 1,
    "layers": 1,
    "level_blocks": (1, 1, 1),
    "heads": 2,
    "window": 4,
    "compress": 3,
    "squeeze": 6,
}
FAST_COMPILE = {"xla_backend_optimization_level": 0}


def jit(f):
    return jax.jit(f, compiler_options=FAST_COMPILE)


def tiny(name, scale, **fields):
    """The model with few features, whichever of the usual fields it has."""
    kind = MODELS.get(name)
    known = {f.name for f in dataclasses.fields(kind)}
    fields = {"scale": scale, **TINY, **fields}
    return kind(**{k: v for k, v in fields.items() if k in known})


def distinct(names):
    """Names less those that are another variant's network at tiny width."""
    seen, kept = set(), []
    for name in names:
        model = tiny(name, 4)
        fields = {
            f.name: getattr(model, f.name)
            for f in dataclasses.fields(model)
            if f.name not in ("parent", "name")
        }
        identity = (type(model).__module__, repr(fields))
        if identity not in seen:
            seen.add(identity)
            kept.append(name)
    return kept


SLOW = ("mcmrsr", "ttsr")  # to trace and to compile; they have tests of their own


def quick(names: list[str]) -> list[Any]:
    """The names, of which `make test-all` alone takes the slow ones."""
    return [
        pytest.param(name, marks=[pytest.mark.full] * (name in SLOW)) for name in names
    ]


SYSTEMS = distinct(NAMES)
# Gradients, a step and another type compile long; `make test` has those of DAASR.
LIGHT = [
    pytest.param(name, marks=[pytest.mark.full] * (name != "daasr")) for name in SYSTEMS
]


def images(scale, *, h=6, w=7, batch=2, seed=0):
    rng = np.random.default_rng(seed)
    lr = rng.random((batch, h, w, 1), np.float32)
    return lr, rng.random((batch, h * scale, w * scale, 1), np.float32)


def shapes_of(model, lr, ref):
    return jax.eval_shape(
        lambda k: model.init(k, lr, ref, train=False), jax.random.key(0)
    )


def randomise(model, lr, ref):
    """Variables of which none is zero, the heads that start at zero included."""
    return random_variables(shapes_of(model, lr, ref), seed=1)


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("name", quick(NAMES))
def test_shapes_and_types(name, scale):
    model = tiny(name, scale)
    for h, w in ((8, 10), (7, 5), (4, 17)):
        lr, ref = images(scale, h=h, w=w)
        variables = shapes_of(model, lr, ref)
        assert {v.dtype for v in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
        for train in (False, True):
            out, _ = jax.eval_shape(
                lambda v, train=train, lr=lr, ref=ref: model.apply(
                    v,
                    lr,
                    ref,
                    train=train,
                    mutable=["batch_stats"],
                    rngs={"dropout": jax.random.key(1)},
                ),
                variables,
            )
            assert isinstance(out, Outputs)
            assert out.sr.shape == (2, h * scale, w * scale, 1)
            assert out.sr.dtype == jnp.float32


@pytest.mark.parametrize("name", quick(NAMES))
def test_parameters_do_not_depend_on_the_size(name):
    model = tiny(name, 4)
    sizes = [shapes_of(model, *images(4, h=h, w=w)) for h, w in ((8, 8), (5, 21))]
    assert jax.tree.map(jnp.shape, sizes[0]) == jax.tree.map(jnp.shape, sizes[1])


@pytest.mark.parametrize("name", quick(SYSTEMS))
def test_the_graph_tells_who_takes_a_reference(name):
    model = tiny(name, 4)
    variables = shapes_of(model, *images(4, h=8, w=8))
    used = uses_reference(model, variables, scale=4, side=8)
    assert used == (name not in SINGLE_IMAGE)


def test_no_reference_without_alignment():
    model = tiny("daasr", 4, align=None)
    variables = shapes_of(model, *images(4, h=8, w=8))
    assert not uses_reference(model, variables, scale=4, side=8)


@pytest.mark.parametrize("name", NAMES)
def test_wrong_scale(name):
    with pytest.raises(ValueError, match="scale"):
        shapes_of(tiny(name, 5), *images(5))


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("name", LIGHT)
def test_values_and_gradients(name, scale):
    """Finite output, independent images, a finite gradient to every parameter."""
    model = tiny(name, scale, drop_path=0.0)
    lr, ref = images(scale)
    hr = images(scale, seed=3)[1]
    variables = randomise(model, lr, ref)
    stats = {k: v for k, v in variables.items() if k != "params"}

    @jit
    def run(params, lr, ref):
        def loss(params):
            out = model.apply({"params": params, **stats}, lr, ref, train=False)
            pictures = [v for k, v in out.aux.items() if v.dtype == jnp.float32]
            total = jnp.mean(jnp.abs(out.sr - hr))
            return total + sum(jnp.mean(p**2) for p in pictures), out.sr

        return jax.value_and_grad(loss, has_aux=True)(params)

    (_, sr), gradient = run(variables["params"], lr, ref)
    assert np.isfinite(sr).all()
    bicubic = np.asarray(upsample(jnp.asarray(lr), scale))
    assert np.abs(np.asarray(sr) - bicubic).max() > 1e-3
    for path, grad in flatten(gradient).items():
        assert grad.dtype == jnp.float32, path
        assert np.isfinite(grad).all(), path
        assert np.any(grad), f"no gradient reaches {path}"

    # The second image changes, the first must not.
    (other_lr, other_ref) = (x.copy() for x in (lr, ref))
    other_lr[1], other_ref[1] = lr[1, ::-1], ref[1, ::-1]
    (_, other), _ = run(variables["params"], other_lr, other_ref)
    np.testing.assert_allclose(other[0], sr[0], atol=1e-5)
    assert np.abs(np.asarray(other[1] - sr[1])).max() > 1e-3

    # The reference matters to those systems that have one.
    other_ref = ref[:, ::-1].copy()
    (_, other), _ = run(variables["params"], lr, other_ref)
    if name in SINGLE_IMAGE:
        np.testing.assert_array_equal(other, sr)
    else:
        assert np.abs(np.asarray(other - sr)).max() > 1e-4, "the reference is ignored"


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("name", LIGHT)
def test_one_step_lowers_the_loss(name, scale):
    """The step of training, from the initial weights, without stochastic depth."""
    model, optimiser = tiny(name, scale, drop_path=0.0), optax.adam(1e-4)
    state = create_state(model, optimiser, scale=scale, crop=6, seed=0, ema=False)
    losses = {"rec": (1.0, LOSSES.get("pixel.rec"))}
    step = jit(make_train_step(model, optimiser, losses, scale=scale))
    hr, ref = (images(scale, h=6, w=6, seed=seed)[1] for seed in (3, 4))
    state, before = step(state, {"hr": hr, "ref": ref})
    state, after = step(state, {"hr": hr, "ref": ref})
    assert after["g/rec"] < before["g/rec"]
    assert int(state.skipped) == 0


@pytest.mark.parametrize("name", LIGHT)
def test_bfloat16(name):
    model = tiny(name, 2, dtype=jnp.bfloat16)
    lr, ref = images(2)
    variables = randomise(model, lr, ref)
    out = jit(lambda v, *x: model.apply(v, *x, train=False))(variables, lr, ref)
    assert out.sr.dtype == jnp.float32
    assert np.isfinite(out.sr).all()
