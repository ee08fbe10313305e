"""What every registered model must keep to, at every scale, at tiny width."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from daasr_jax.models.outputs import Outputs
from daasr_jax.registry import LOSSES, MODELS
from daasr_jax.resampling import upsample
from daasr_jax.training.state import create_state
from daasr_jax.training.step import make_train_step
from tests.parity.weights import flatten, random_variables

NAMES = MODELS.names()
# `make test-all` runs every scale, `make test` the usual one.
SCALED = pytest.mark.parametrize(
    "scale", [pytest.param(s, marks=pytest.mark.full) for s in (2, 3)] + [4]
)
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


SYSTEMS = distinct(NAMES)


def images(scale, *, h=6, w=7, batch=2, seed=0):
    rng = np.random.default_rng(seed)
    lr = rng.random((batch, h, w, 1), np.float32)
    return lr, rng.random((batch, h * scale, w * scale, 1), np.float32)


def batch(scale):
    """A batch of training."""
    hr, ref = (images(scale, seed=seed)[1] for seed in (3, 4))
    return {"hr": hr, "ref": ref}


def start(model, optimiser, scale):
    return create_state(model, optimiser, scale=scale, crop=6, seed=0, ema=False)


def shapes_of(model, lr, ref):
    return jax.eval_shape(
        lambda k: model.init(k, lr, ref, train=False), jax.random.key(0)
    )


def randomise(model, lr, ref, seed=1):
    """Variables of which none is zero, the heads that start at zero included."""
    return random_variables(shapes_of(model, lr, ref), seed=seed)


@SCALED
@pytest.mark.parametrize("name", NAMES)
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


@pytest.mark.parametrize("name", NAMES)
def test_parameters_do_not_depend_on_the_size(name):
    model = tiny(name, 4)
    sizes = [shapes_of(model, *images(4, h=h, w=w)) for h, w in ((8, 8), (5, 21))]
    assert jax.tree.map(jnp.shape, sizes[0]) == jax.tree.map(jnp.shape, sizes[1])


@pytest.mark.parametrize("name", NAMES)
def test_wrong_scale(name):
    with pytest.raises(ValueError, match="scale"):
        shapes_of(tiny(name, 5), *images(5))


def pictures(outputs, *_, **__):
    """A loss that every picture beside the result takes part in."""
    found = [v for v in outputs.aux.values() if v.dtype == jnp.float32]
    return sum((jnp.mean(p**2) for p in found), jnp.float32(0))


def keep_gradient():
    """A part of an optimiser that changes nothing; its state is the last gradient."""
    return optax.GradientTransformation(
        lambda params: jax.tree.map(jnp.zeros_like, params),
        lambda gradient, state, params=None: (gradient, gradient),
    )


@functools.cache
def training(name, scale):
    """`(model, optimiser, step)` without stochastic depth, compiled once for all tests.

    The last argument of the step is the weight of `pictures`.
    """
    model = tiny(name, scale, drop_path=0.0)
    optimiser = optax.chain(keep_gradient(), optax.adam(1e-4))

    @jit
    def step(state, batch, weight):
        losses = {"rec": (1.0, LOSSES.get("pixel.rec")), "aux": (weight, pictures)}
        return make_train_step(model, optimiser, losses, scale=scale)(state, batch)

    return model, optimiser, step


@SCALED
@pytest.mark.parametrize("name", SYSTEMS)
def test_values(name, scale):
    """Finite output, independent images, a reference that matters."""
    model = training(name, scale)[0]
    lr, ref = images(scale)
    variables = randomise(model, lr, ref)
    run = jit(lambda v, *x: model.apply(v, *x, train=False).sr)
    sr = run(variables, lr, ref)
    assert np.isfinite(sr).all()
    bicubic = np.asarray(upsample(jnp.asarray(lr), scale))
    assert np.abs(np.asarray(sr) - bicubic).max() > 1e-3

    # The second image changes, the first must not.
    (other_lr, other_ref) = (x.copy() for x in (lr, ref))
    other_lr[1], other_ref[1] = lr[1, ::-1], ref[1, ::-1]
    other = run(variables, other_lr, other_ref)
    np.testing.assert_allclose(other[0], sr[0], atol=1e-5)
    assert np.abs(np.asarray(other[1] - sr[1])).max() > 1e-3

    # The reference matters to those systems that have one.
    other = run(variables, lr, ref[:, ::-1].copy())
    if name in SINGLE_IMAGE:
        np.testing.assert_array_equal(other, sr)
    else:
        assert np.abs(np.asarray(other - sr)).max() > 1e-4, "the reference is ignored"


@SCALED
@pytest.mark.parametrize("name", SYSTEMS)
def test_gradients(name, scale):
    """A finite gradient to every parameter, in the step of training."""
    model, optimiser, step = training(name, scale)
    variables = randomise(model, *images(scale), seed=6)  # no dead units
    shapes = jax.eval_shape(lambda: start(model, optimiser, scale))
    state = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes)
    state = state.replace(
        gen=variables["params"], batch_stats=variables.get("batch_stats", {})
    )
    state, _ = step(state, batch(scale), 1.0)
    for path, grad in flatten(state.gen_opt[0]).items():
        assert grad.dtype == jnp.float32, path
        assert np.isfinite(grad).all(), path
        assert np.any(grad), f"no gradient reaches {path}"
    assert int(state.skipped) == 0


@SCALED
@pytest.mark.parametrize("name", SYSTEMS)
def test_one_step_lowers_the_loss(name, scale):
    """The step of training, from the initial weights."""
    model, optimiser, step = training(name, scale)
    state = start(model, optimiser, scale)
    state, before = step(state, batch(scale), 0.0)
    state, after = step(state, batch(scale), 0.0)
    assert after["g/rec"] < before["g/rec"]
    assert int(state.skipped) == 0


@pytest.mark.parametrize("name", SYSTEMS)
def test_bfloat16(name):
    model = tiny(name, 2, dtype=jnp.bfloat16)
    lr, ref = images(2)
    variables = randomise(model, lr, ref)
    out = jit(lambda v, *x: model.apply(v, *x, train=False))(variables, lr, ref)
    assert out.sr.dtype == jnp.float32
    assert np.isfinite(out.sr).all()
