"""How the reference reaches the output in `fast`: search, gate, detail, and none."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from daasr_jax.matching import transfer
from daasr_jax.models.ablations import OwnPosition
from daasr_jax.models.cwt import CWT
from daasr_jax.models.daasr import DAASR, PRESETS
from daasr_jax.models.sat import GatedFusion
from daasr_jax.resampling import downsample, space_to_depth, upsample, upsample_at
from tests.parity.weights import random_variables

SCALE = 2
FAST = {"scale": SCALE, "features": 8, "groups": 2, **PRESETS["fast"]}


def images(seed=0, *, references=0):
    rng = np.random.default_rng(seed)
    hr = rng.random((2, 12, 14, 1), np.float32)
    shape = (2, references, 12, 14, 1) if references else hr.shape
    return jnp.asarray(hr), jnp.asarray(rng.random(shape, np.float32))


def variables_of(model, lr, ref):
    shapes = jax.eval_shape(
        lambda k: model.init(k, lr, ref, train=False), jax.random.key(0)
    )
    return random_variables(shapes, seed=1)


def evaluate(model, variables, lr, ref):
    run = jax.jit(
        lambda v, *x: model.apply(v, *x, train=False),
        compiler_options={"xla_backend_optimization_level": 0},
    )
    return run(variables, lr, ref)


@pytest.fixture(scope="module")
def network():
    model = DAASR(**FAST)
    hr, ref = images()
    lr = downsample(hr, SCALE)
    return model, variables_of(model, lr, ref), lr, hr, ref


def test_the_answer_is_found_where_it_is(network):
    """The query does not depend on what is learned, so every group finds it."""
    model, variables, lr, hr, _ = network
    # The blur of the target is the enlarged LR image.
    out = evaluate(model, variables, lr, hr)
    own = np.arange(6 * 7).reshape(6, 7)
    np.testing.assert_array_equal(out.aux["index"], np.broadcast_to(own, (2, 2, 6, 7)))
    np.testing.assert_allclose(out.aux["confidence"], 1.0, atol=1e-5)


def test_no_reference_leaves_no_trace(network):
    """Weights of what a reference gives make no difference where there is none."""
    model, variables, lr, _, ref = network
    none = jnp.zeros_like(ref)
    before = evaluate(model, variables, lr, none)
    changed = jax.tree.map(lambda x: x, variables)
    for group in ("group0", "group1"):
        kernel = jnp.asarray(changed["params"][group]["sat"]["fuse"]["kernel"])
        of_t = kernel.shape[0] - FAST["features"]
        changed["params"][group]["sat"]["fuse"]["kernel"] = kernel.at[:of_t].add(1.0)
    after = evaluate(model, changed, lr, none)
    np.testing.assert_array_equal(after.sr, before.sr)
    assert not before.aux["confidence"].any()
    with_one = (
        evaluate(model, changed, lr, ref).sr - evaluate(model, variables, lr, ref).sr
    )
    assert np.abs(with_one).max() > 1e-3


def test_a_second_reference_that_is_none_changes_nothing(network):
    model, variables, lr, _, ref = network
    alone = evaluate(model, variables, lr, ref)
    for order in (lambda a, b: (a, b), lambda a, b: (b, a)):
        two = jnp.stack(order(ref, jnp.zeros_like(ref)), axis=1)
        out = evaluate(model, variables, lr, two)
        np.testing.assert_allclose(out.sr, alone.sr, atol=1e-5)
        np.testing.assert_allclose(
            out.aux["confidence"], alone.aux["confidence"], atol=1e-6
        )


def test_of_two_references_the_better_is_found(network):
    model, variables, lr, hr, ref = network
    out = evaluate(model, variables, lr, jnp.stack([ref, hr], axis=1))
    own = 6 * 7 + np.arange(6 * 7).reshape(6, 7)  # in the second map
    np.testing.assert_array_equal(out.aux["index"][0], np.broadcast_to(own, (2, 6, 7)))
    itself = evaluate(model, variables, lr, hr)
    np.testing.assert_allclose(out.sr, itself.sr, atol=1e-5)


@pytest.mark.parametrize("gate", ["confidence", "network", "literal"])
@pytest.mark.parametrize("grid", ["lr", "hr"])
def test_gates(gate, grid):
    """The gate closes: then T makes no difference, and F_CWT stays."""
    rng = np.random.default_rng(0)
    cells = () if grid == "lr" else (4,)
    t = jnp.asarray(rng.random((2, 3, 5, *cells, 8), np.float32))
    f = jnp.asarray(rng.random((2, 3, 5, 8), np.float32))
    fuse = GatedFusion(features=8, gate=gate)

    def enlarge(x):
        if grid == "lr":
            return x
        return space_to_depth(upsample(x, 2), 2).reshape(*x.shape[:3], 4, -1)

    c = jnp.zeros((*t.shape[:-1], 1))
    params = fuse.init(jax.random.key(0), t, f, c, enlarge)["params"]
    if gate == "confidence":
        params["gate_bias"] = jnp.float32(-60.0)
    if gate == "network":
        params["gate_out"]["bias"] = jnp.full(8, -60.0)
    closed = fuse.apply({"params": params}, t, f, c, enlarge)
    other = fuse.apply({"params": params}, 3 * t, f, c, enlarge)
    np.testing.assert_allclose(other, closed, atol=1e-6)
    moved = fuse.apply({"params": params}, t, f + 1, c, enlarge)
    assert np.abs(moved - closed).max() > 0.1


def test_an_unknown_gate_is_named():
    model = DAASR(**FAST | {"fuse": partial(GatedFusion, gate="open")})
    with pytest.raises(ValueError, match="gate must be confidence, network or literal"):
        jax.eval_shape(lambda: model.init(jax.random.key(0), *_pair(), train=False))


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"query": "shared"}, "detail needs query='extractor'"),
        ({"sfe_grid": "hr", "sat_grid": "hr"}, "detail needs .*sfe_grid='lr'"),
        ({"align": None}, "detail needs an alignment"),
        ({"align": OwnPosition, "query": "projected"}, "detail needs"),
    ],
)
def test_detail_needs_one_search(fields, words):
    model = DAASR(**FAST | fields)
    with pytest.raises(ValueError, match=words):
        jax.eval_shape(lambda: model.init(jax.random.key(0), *_pair(), train=False))


def _pair():
    return jnp.zeros((1, 6, 7, 1)), jnp.zeros((1, 12, 14, 1))


def test_own_position_has_detail_too():
    model = DAASR(**FAST | {"align": OwnPosition})
    hr, ref = images()
    lr = downsample(hr, SCALE)
    variables = variables_of(model, lr, ref)
    out = evaluate(model, variables, lr, ref)
    assert np.isfinite(out.sr).all()
    assert "index" not in out.aux


def test_phases_find_what_lies_between_cells():
    """A reference moved by half a cell: with two phases the match is exact again."""
    rng = np.random.default_rng(0)
    small = jnp.asarray(rng.random((1, 8, 8, 1), np.float32))
    smooth = jax.image.resize(small, (1, 32, 32, 1), "cubic")
    lr, ref = downsample(smooth, SCALE), jnp.roll(smooth, (1, 1), (1, 2))
    scores = {}
    for phases in (1, 2):
        model = DAASR(**FAST | {"phases": phases})
        variables = variables_of(model, lr, ref)
        out = evaluate(model, variables, lr, ref)
        scores[phases] = out.aux["confidence"][0, 0, 4:-4, 4:-4]
    np.testing.assert_allclose(scores[2], 1.0, atol=1e-4)
    assert scores[1].min() < 0.999
    with pytest.raises(ValueError, match="phases must be 1 to the scale, 2, got 3"):
        evaluate(DAASR(**FAST | {"phases": 3}), variables, lr, ref)


def test_channel_attention_with_projection():
    f = jnp.asarray(np.random.default_rng(0).random((2, 4, 5, 8), np.float32))
    plain = CWT().init(jax.random.key(0), f)["params"]["attention"]
    given = CWT(projection=True, temperature=0.1)
    mixed = given.init(jax.random.key(0), f)["params"]["attention"]
    assert set(mixed) - set(plain) == {"projection"}
    np.testing.assert_allclose(mixed["temperature"], 0.1)


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_one_pixel_of_each_cell_of_an_enlargement(scale):
    x = jnp.asarray(np.random.default_rng(0).random((2, 5, 7, 3), np.float32))
    whole = upsample(x, scale)[:, scale // 2 :: scale, scale // 2 :: scale]
    np.testing.assert_allclose(upsample_at(x, scale), whole, atol=1e-6)


def test_a_constant_stays_in_bfloat16():
    ones = jnp.ones((1, 6, 6, 2), jnp.bfloat16)
    for enlarged in (upsample(ones, 4), upsample_at(ones, 4)):
        assert enlarged.dtype == jnp.bfloat16
        np.testing.assert_array_equal(enlarged, jnp.ones_like(enlarged))
    value = jnp.full((1, 6, 6, 2), 0.3, jnp.bfloat16)
    index = jnp.arange(36).reshape(1, 6, 6)
    moved = transfer(value, index)
    assert moved.dtype == jnp.bfloat16
    np.testing.assert_array_equal(moved, value)


def test_a_mean_of_patches_in_bfloat16_is_rounded_once():
    rng = np.random.default_rng(0)
    value = jnp.asarray(rng.random((1, 8, 8, 4), np.float32)).astype(jnp.bfloat16)
    index = jnp.asarray(rng.integers(0, 64, (1, 8, 8)), jnp.int32)
    wide = transfer(value.astype(jnp.float32), index)
    np.testing.assert_array_equal(transfer(value, index), wide.astype(jnp.bfloat16))
