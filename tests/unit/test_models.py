"""The readings DAASR offers; the contract of every model is in `test_contract`."""

from __future__ import annotations

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from daasr_jax.models import daasr
from daasr_jax.models.cwt import CWT
from daasr_jax.models.daasr import DAASR, PRESETS
from daasr_jax.models.sat import Matching
from daasr_jax.resampling import blur, upsample
from tests.parity.weights import random_variables

FAST_COMPILE = {"xla_backend_optimization_level": 0}


def jit(f):
    return jax.jit(f, compiler_options=FAST_COMPILE)


def images(scale, *, h=8, w=8, batch=2, ref=None, seed=0):
    rng = np.random.default_rng(seed)
    size = ref or (h * scale, w * scale)
    lr = rng.random((batch, h, w, 1), np.float32)
    return lr, rng.random((batch, *size, 1), np.float32)


def initialise(model, lr, ref):
    return jit(lambda k, *x: model.init(k, *x, train=False))(jax.random.key(0), lr, ref)


def shapes_of(model, lr, ref):
    return jax.eval_shape(
        lambda k: model.init(k, lr, ref, train=False), jax.random.key(0)
    )


def randomise(model, lr, ref):
    """Variables of which none is zero, the heads that start at zero included."""
    return random_variables(shapes_of(model, lr, ref), seed=1)


def evaluate(model, variables, lr, ref):
    return jit(lambda v, *x: model.apply(v, *x, train=False))(variables, lr, ref)


# The paper preset takes twice as long to compile.
HEAVIER = ["fast", pytest.param("paper", marks=pytest.mark.full)]


@pytest.mark.parametrize("preset", HEAVIER)
def test_untrained_network_is_bicubic(preset):
    model = DAASR(scale=3, features=8, groups=1, **PRESETS[preset])
    lr, ref = images(3, h=6, w=7)
    variables = initialise(model, lr, ref)
    out, bicubic = jit(
        lambda v, lr: (model.apply(v, lr, ref, train=False), upsample(lr, 3))
    )(variables, lr)
    np.testing.assert_array_equal(out.sr, bicubic)
    np.testing.assert_array_equal(out.aux["cwt"][0], bicubic)
    np.testing.assert_array_equal(out.aux["sat"][0], bicubic)


def test_paper_preset_is_the_default():
    default = {f.name: f.default for f in dataclasses.fields(DAASR)}
    assert PRESETS["paper"].items() <= default.items()
    assert (default["features"], default["groups"]) == (64, 6)


LITERAL, FAST = PRESETS["paper"], PRESETS["fast"]
READINGS = {
    "paper": LITERAL,
    "fast": FAST,
    "blocks": LITERAL | {"blocks_per_group": 2, "structure": partial(CWT, mlp_ratio=3)},
    "group_conv": LITERAL | {"group_block": "conv"},
    "layer_scale": LITERAL | {"group_block": "conv", "layer_scale": 0.01},
    "heads": LITERAL | {"structure": partial(CWT, heads=4)},
    "sqrt_hw": LITERAL | {"structure": partial(CWT, attention_scale="sqrt_hw")},
    "group_norm": LITERAL | {"sfe_norm": "group"},
    "no_norm": FAST | {"sfe_norm": "none"},
    "no_sat": LITERAL | {"align": None},
    "no_sat_lr": FAST | {"align": None, "detail": None},
    "sat_lr": LITERAL | {"sat_grid": "lr"},
    "shared": LITERAL | {"query": "shared"},
    "shared_dense": LITERAL | {"query": "shared", "match_stride": 1},
    "projected_lr": FAST | {"query": "projected", "detail": None},
    "shared_lr": FAST | {"query": "shared", "detail": None},
    "phases": FAST | {"phases": 2},
    "residual_input": LITERAL | {"residual": "input"},
    "residual_both": FAST | {"residual": "both"},
    "dense": LITERAL | {"match_stride": 1},
    "dense_sat_lr": LITERAL | {"match_stride": 1, "sat_grid": "lr"},
    "blur_s": LITERAL | {"blur_factor": 0},
    "all_groups": FAST | {"supervise_cwt": "all"},
}


@pytest.mark.parametrize(("preset", "factors"), [("paper", 444), ("fast", 234)])
def test_blur_of_the_reference(monkeypatch, preset, factors):
    """The text has x4 at every scale; `fast` takes the scale."""
    seen = []
    monkeypatch.setattr(
        daasr, "blur", lambda x, factor: (seen.append(factor), blur(x, factor))[1]
    )
    for scale in (2, 3, 4):
        model = DAASR(scale=scale, features=8, groups=1, **PRESETS[preset])
        trace(model, *images(scale, h=5, w=6))
    assert "".join(map(str, seen)) == str(factors)


# `make test` takes x4, `make test-all` the rest.
SCALES = [4, *(pytest.param(s, marks=pytest.mark.full) for s in (2, 3))]


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("reading", READINGS)
def test_every_reading_at_every_scale(reading, scale):
    fields = READINGS[reading]
    model = DAASR(scale=scale, features=8, groups=2, **fields)
    lr, ref = images(scale, h=5, w=6)
    out, _ = jax.eval_shape(
        lambda k: model.init_with_output(k, lr, ref, train=False),
        jax.random.key(0),
    )
    big, pictures = (2, 5 * scale, 6 * scale, 1), 1
    if fields.get("supervise_cwt") == "all":
        pictures = 2
    shapes = {"cwt": (pictures, *big)}
    if fields.get("align", Matching):
        side = scale if fields.get("match_stride") == 1 else 1
        shapes["sat"] = (1, *big)
        shapes["index"] = (2, 2, 5 * side, 6 * side)
        shapes["confidence"] = (*shapes["index"], 1)
    assert out.sr.shape == big
    assert {k: v.shape for k, v in out.aux.items()} == shapes
    for name, array in out.aux.items():
        assert array.dtype == (jnp.int32 if name == "index" else jnp.float32)


@pytest.mark.parametrize(
    ("reading", "scale"),
    [("shared", 3), ("projected_lr", 4), ("dense", 2)],
)
def test_reading_runs(reading, scale):
    """Values, once for each path; the others are run against PyTorch in `parity`."""
    model = DAASR(scale=scale, features=8, groups=1, **READINGS[reading])
    lr, ref = images(scale, h=4, w=5)
    out = evaluate(model, randomise(model, lr, ref), lr, ref)
    for array in (out.sr, *out.aux.values()):
        assert np.isfinite(array).all()
    assert out.aux["confidence"].max() <= 1 + 1e-5


@pytest.mark.parametrize(
    "wrong",
    [
        {"scale": 5},
        {"group_block": "dense"},
        {"residual": "none"},
        {"sat_grid": "mid"},
        {"sfe_grid": "mid"},
        {"sfe_norm": "layer"},
        {"query": "own"},
        {"supervise_cwt": "first"},
        {"match_stride": 3},
    ],
    ids=lambda wrong: next(iter(wrong)),
)
def test_wrong_value_names_its_field(wrong):
    model = DAASR(features=8, groups=1, **wrong)
    with pytest.raises(ValueError, match=next(iter(wrong))):
        trace(model, *images(4, h=4, w=4))


def test_wrong_option_of_a_part_is_named():
    structure = partial(CWT, attention_scale="none")
    with pytest.raises(ValueError, match="attention_scale"):
        trace(DAASR(features=8, groups=1, structure=structure), *images(4, h=4, w=4))
    align = partial(Matching, search="exact")
    with pytest.raises(ValueError, match="method must be one of"):
        trace(DAASR(features=8, groups=1, align=align), *images(4, h=4, w=4))


def test_combinations_that_cannot_be():
    for fields in ({"sat_grid": "hr"}, {"sat_grid": "lr", "match_stride": 1}):
        model = DAASR(features=8, groups=1, sfe_grid="lr", **fields)
        with pytest.raises(ValueError, match="sfe_grid='lr' has no HR maps"):
            trace(model, *images(4, h=4, w=4))
    with pytest.raises(ValueError, match="ref of 16x18 is not divisible by scale 4"):
        trace(DAASR(features=8, groups=1), *images(4, h=4, w=4, ref=(16, 18)))
    structure = partial(CWT, heads=3)
    with pytest.raises(ValueError, match="do not divide into 3 heads"):
        trace(DAASR(features=8, groups=1, structure=structure), *images(4, h=4, w=4))


def trace(model, lr, ref):
    return jax.eval_shape(
        lambda k: model.init_with_output(k, lr, ref, train=False)[0], jax.random.key(0)
    )


@pytest.mark.parametrize("preset", HEAVIER)
def test_reference_of_another_size(preset):
    for scale, size in ((2, (8, 22)), (3, (9, 33)), (4, (24, 12))):
        for query in ("projected", "shared"):
            fields = PRESETS[preset] | {"query": query, "detail": None}
            model = DAASR(scale=scale, features=8, groups=1, **fields)
            out = trace(model, *images(scale, h=5, w=6, ref=size))
            assert out.sr.shape == (2, 5 * scale, 6 * scale, 1)
            assert out.aux["index"].shape == (1, 2, 5, 6)
    lr, ref = images(2, h=5, w=6, ref=(8, 22))
    model = DAASR(scale=2, features=8, groups=1, **PRESETS[preset])
    out = evaluate(model, randomise(model, lr, ref), lr, ref)
    assert np.isfinite(out.sr).all()
    assert out.aux["index"].max() < 4 * 11


def test_injected_index_is_used():
    model = DAASR(scale=2, features=8, groups=1, **FAST)
    lr, ref = images(2, h=5, w=6)
    variables = randomise(model, lr, ref)
    run = jit(lambda v, i: model.apply(v, lr, ref, train=False, indices=i))
    found = evaluate(model, variables, lr, ref)
    again = run(variables, found.aux["index"])
    np.testing.assert_allclose(again.sr, found.sr, atol=1e-6)
    other = run(variables, jnp.zeros_like(found.aux["index"]))
    assert not other.aux["index"].any()
    assert np.abs(np.asarray(other.sr - found.sr)).max() > 1e-4


@pytest.mark.parametrize("preset", HEAVIER)
def test_full_slice_at_x3(preset):
    model = DAASR(scale=3, features=8, groups=1, **PRESETS[preset])
    lr, ref = images(3, h=85, w=85, batch=1)
    variables = randomise(model, lr[:, :8, :8], ref[:, :24, :24])
    out = jax.jit(lambda v, *x: model.apply(v, *x, train=False))(variables, lr, ref)
    assert out.sr.shape == (1, 255, 255, 1)
    assert np.isfinite(out.sr).all()


@pytest.mark.parametrize("train", [False, pytest.param(True, marks=pytest.mark.full)])
def test_dense_search_of_a_whole_slice_adds_less_than_a_gibibyte(train):
    """256x256 at x4: 65,536 queries; all pairs of one group would take 16 GiB."""
    model = DAASR(scale=4, **PRESETS["paper"] | {"match_stride": 1, "groups": 2})
    lr, ref = (jax.ShapeDtypeStruct((1, n, n, 1), jnp.float32) for n in (64, 256))
    variables = jax.eval_shape(
        lambda a, b: model.init(jax.random.key(0), a, b, train=False), lr, ref
    )
    indices = jax.ShapeDtypeStruct((2, 1, 256, 256), jnp.int32)

    def infer(variables, lr, ref, indices=None):
        return model.apply(variables, lr, ref, train=False, indices=indices).sr

    def gradient(variables, lr, ref, indices=None):
        def loss(params):
            out, _ = model.apply(
                variables | {"params": params},
                lr,
                ref,
                train=True,
                indices=indices,
                mutable=["batch_stats"],
            )
            return jnp.mean(out.sr**2)

        return jax.grad(loss)(variables["params"])

    run = jax.jit(gradient if train else infer)
    with_search, without = (
        run.lower(variables, *x).compile().memory_analysis().temp_size_in_bytes
        for x in ((lr, ref), (lr, ref, indices))
    )
    assert without > 50 * 2**20
    assert with_search - without < 2**30
