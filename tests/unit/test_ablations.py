"""The rows of the paper's ablations: every field value, and every configuration."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

from configs import ablation_x4, ablation_x4_small
from daasr_jax.experiment import checks, parts
from daasr_jax.models.ablations import (
    ConvBlock,
    CrossAttention,
    GatedWithoutFCWT,
    Identity,
    OwnPosition,
    SEBlock,
    WindowBlock,
    WithoutC,
    WithoutFCWT,
    WithoutP,
    cross_attention,
)
from daasr_jax.models.cwt import CWT
from daasr_jax.models.daasr import DAASR, PRESETS
from daasr_jax.models.sat import SAT
from daasr_jax.models.swin import WindowAttention
from daasr_jax.registry import resolved
from daasr_jax.resampling import space_to_depth, upsample
from tests.parity.weights import flatten, random_variables

LITERAL, FAST = PRESETS["paper"], PRESETS["fast"]
VARIANTS = {
    "without_cwt": {"structure": Identity},
    "without_both": {"structure": Identity, "align": None, "detail": None},
    "conv": {"structure": ConvBlock},
    "se": {"structure": SEBlock},
    "window": {"structure": WindowBlock},
    "without_matching": {"align": OwnPosition},
    "cross_attention": {"align": CrossAttention},
    "without_f_cwt": {"fuse": WithoutFCWT},
    "gated_without_f_cwt": {"fuse": GatedWithoutFCWT},
    "without_p": {"align": WithoutP},
    "without_c": {"fuse": WithoutC},
}
REPLACEMENTS = {"conv": ConvBlock, "se": SEBlock, "window": WindowBlock}
FAST_COMPILE = {"xla_backend_optimization_level": 0}


def jit(f):
    return jax.jit(f, compiler_options=FAST_COMPILE)


def images(scale, *, h=4, w=5, ref=None, seed=0):
    rng = np.random.default_rng(seed)
    size = ref or (h * scale, w * scale)
    lr = rng.random((2, h, w, 1), np.float32)
    return lr, rng.random((2, *size, 1), np.float32)


def shapes_of(model, lr, ref):
    return jax.eval_shape(
        lambda k: model.init(k, lr, ref, train=False), jax.random.key(0)
    )


def evaluate(model, variables, lr, ref):
    return jit(lambda v, *x: model.apply(v, *x, train=False))(variables, lr, ref)


def count(module, *arrays):
    shapes = jax.eval_shape(lambda k: module.init(k, *arrays), jax.random.key(0))
    return sum(x.size for x in jax.tree.leaves(shapes))


# `make test` takes x4, `make test-all` the rest.
SCALES = [4, *(pytest.param(s, marks=pytest.mark.full) for s in (2, 3))]


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("variant", VARIANTS)
def test_shapes_at_every_scale(variant, scale):
    fields = VARIANTS[variant]
    presets = [LITERAL, FAST]
    if "structure" not in fields and scale == 2:
        dense = LITERAL | {"match_stride": 1}
        presets += [dense, dense | {"sat_grid": "lr"}]
    for preset in presets:
        lr, ref = images(scale)
        model = DAASR(scale=scale, features=8, groups=1, **preset | fields)
        out, _ = jax.eval_shape(
            lambda k, m=model, a=lr, b=ref: m.init_with_output(k, a, b, train=False),
            jax.random.key(0),
        )
        big, side = (2, 4 * scale, 5 * scale, 1), 1
        if preset.get("match_stride") == 1:
            side = scale
        shapes = {"cwt": (1, *big)}
        if fields.get("align", True):
            shapes["sat"] = (1, *big)
            if fields.get("align") not in (OwnPosition, CrossAttention):
                shapes["index"] = (1, 2, 4 * side, 5 * side)
                shapes["confidence"] = (*shapes["index"], 1)
        assert out.sr.shape == big
        assert {k: v.shape for k, v in out.aux.items()} == shapes


# One of each place in the network; `make test-all` takes the rest.
QUICK = ("conv", "cross_attention")


@pytest.mark.parametrize(
    ("variant", "preset"),
    [
        pytest.param(
            name,
            preset,
            marks=[pytest.mark.full] * (preset == "paper" or name not in QUICK),
        )
        for name, fields in VARIANTS.items()
        for preset in PRESETS
        if preset == "fast" or "structure" not in fields
    ],
)
def test_gradients_and_a_step(variant, preset):
    """Every parameter learns that should; two blocks, so that windows move."""
    fields = PRESETS[preset] | VARIANTS[variant]
    if variant in REPLACEMENTS:  # the SAT takes most of the time to compile
        fields |= {"align": None, "detail": None, "blocks_per_group": 2}
    model = DAASR(scale=2, features=8, groups=1, **fields)
    lr, ref = images(2)
    hr = images(2, seed=3)[1]
    variables = random_variables(shapes_of(model, lr, ref), seed=1)
    stats = {k: v for k, v in variables.items() if k != "params"}
    optimiser = optax.adam(1e-3)

    @jit
    def step(params):
        def loss(params):
            out, _ = model.apply(
                {"params": params, **stats}, lr, ref, train=True, mutable=list(stats)
            )
            pictures = [out.aux[k] for k in ("cwt", "sat") if k in out.aux]
            terms = [jnp.mean(jnp.abs(p - hr[None])) for p in pictures]
            return jnp.mean(jnp.abs(out.sr - hr)) + sum(terms)

        value, gradient = jax.value_and_grad(loss)(params)
        updates, _ = optimiser.update(gradient, optimiser.init(params))
        return value, gradient, optax.apply_updates(params, updates)

    before, gradient, params = step(variables["params"])
    for path, grad in flatten(gradient).items():
        assert np.isfinite(grad).all(), path
        # Nothing but C carries a gradient to the query.
        unreached = variant == "without_c" and "sat/query/" in path
        assert np.any(grad) != unreached, path
    assert step(params)[0] < before


@pytest.mark.parametrize("features", [24, 64])
def test_replacements_have_as_many_parameters_as_the_cwt(features):
    f = jnp.zeros((1, 8, 8, features))
    for r in (2, 3):
        wanted = count(CWT(r), f)
        for kind, block in REPLACEMENTS.items():
            assert abs(count(block(r), f) / wanted - 1) < 0.05, kind
    stated = {
        24: {"conv": 4354, "se": 4211, "window": 4215},
        64: {"conv": 28889, "se": 29151, "window": 29182},
    }[features]
    assert {k: count(block(), f) for k, block in REPLACEMENTS.items()} == stated


def test_a_window_sees_no_further_unless_it_moves():
    """Positions 0 and 9 of a row are in two windows of 8; moved by 4 they share one."""
    f = np.random.default_rng(0).standard_normal((1, 16, 16, 8)).astype(np.float32)
    other = f.copy()
    other[:, 9, 9] += 1
    for shifted in (False, True):
        block = WindowBlock(number=int(shifted))
        shapes = jax.eval_shape(lambda k, b=block: b.init(k, f), jax.random.key(0))
        variables = random_variables(shapes, seed=1)
        apply = jit(block.apply)
        changed = np.any(apply(variables, f) != apply(variables, other), axis=-1)[0]
        assert changed[9, 9]
        assert changed[4:8, 4:8].any() == shifted
        assert not changed[:4, :4].any()


def test_windows_move_in_every_other_block():
    def shapes_to_moves(blocks):
        model = DAASR(
            features=8, groups=3, blocks_per_group=blocks, structure=WindowBlock
        )
        moves = []

        def note(call, args, kwargs, context):
            module = context.module
            if isinstance(module, WindowAttention):
                moves.append(module.shift == 4)
            return call(*args, **kwargs)

        with nn.intercept_methods(note):
            shapes_of(model, *images(4))
        return moves

    assert shapes_to_moves(1) == [False, True, False]
    assert shapes_to_moves(3) == [False, True] * 4 + [False]


@pytest.mark.parametrize("budget", [1, 4 * 2 * 42 * 7, 2**20])
def test_cross_attention_is_the_materialised_softmax(budget):
    rng = np.random.default_rng(0)
    q, k, v = (
        rng.standard_normal(s).astype(np.float32)
        for s in ((2, 4, 5, 8), (2, 6, 7, 8), (2, 6, 7, 3))
    )

    def plain(q, k, v):
        logits = jnp.einsum("bhwc,bijc->bhwij", q, k) / np.sqrt(8)
        weights = jax.nn.softmax(logits, axis=(-2, -1))
        return jnp.einsum("bhwij,bijd->bhwd", weights, v)

    def loss(attend):
        return lambda *x: (lambda y: (jnp.sum(jnp.sin(y)), y))(attend(*x))

    def both(attend):
        return jit(jax.grad(loss(attend), argnums=(0, 1, 2), has_aux=True))(q, k, v)

    streamed = both(lambda *x: cross_attention(*x, budget_bytes=budget))
    for got, wanted in zip(
        jax.tree.leaves(streamed), jax.tree.leaves(both(plain)), strict=True
    ):
        np.testing.assert_allclose(got, wanted, atol=1e-5)


def test_cross_attention_of_a_whole_slice_holds_a_budget():
    """All 4096 x 4096 scores of an image would be 64 MiB, twice that for two images."""
    x = jax.ShapeDtypeStruct((2, 64, 64, 4), jnp.float32)

    def loss(q, k, v):
        return jnp.sum(cross_attention(q, k, v, budget_bytes=2**22) ** 2)

    run = jit(jax.grad(loss, argnums=(0, 1, 2))).lower(x, x, x).compile()
    assert run.memory_analysis().temp_size_in_bytes < 32 * 2**20


@pytest.mark.full
@pytest.mark.parametrize("preset", ["fast", "paper"])
def test_parts_of_the_matching(preset):
    """w/o P is full where P is the identity, w/o C where C is 1; none is neither."""
    grids = {
        "grid": PRESETS[preset]["sat_grid"],
        "map_grid": PRESETS[preset]["sat_grid"],
    }
    base = {"features": 8, "scale": 2, "match_stride": 2, **grids}
    side = 2 if preset == "paper" else 1
    rng = np.random.default_rng(0)
    f = rng.standard_normal((2, 4, 5, 8)).astype(np.float32)
    key, value = rng.standard_normal((2, 2, 4 * side, 5 * side, 8)).astype(np.float32)
    arguments = (f, (None, key, value))
    shapes = jax.eval_shape(
        lambda k: SAT(**base).init(k, *arguments), jax.random.key(0)
    )
    variables = random_variables(shapes, seed=1)
    identity = jnp.broadcast_to(
        jnp.arange(20, dtype=jnp.int32).reshape(4, 5), (2, 4, 5)
    )

    def run(index=None, **fields):
        sat = SAT(**base, **fields)
        return jit(lambda v: sat.apply(v, *arguments, index=index))(variables)

    full, without_p = run(identity), run(identity, align=WithoutP)
    np.testing.assert_allclose(full[0], without_p[0], atol=1e-6)
    found, without_p = run(), run(align=WithoutP)
    assert np.abs(found[0] - without_p[0]).max() > 1e-2
    np.testing.assert_array_equal(found[1], without_p[1])
    np.testing.assert_array_equal(found[2], without_p[2])

    without_c, none = run(identity, fuse=WithoutC), run(align=OwnPosition)
    np.testing.assert_allclose(without_c[0], none[0], atol=1e-5)
    assert none[1:] == (None, None)
    weight = full[2]
    if preset == "paper":  # of each pixel of a cell, for all its channels
        weight = np.repeat(space_to_depth(upsample(weight, 2), 2), 8, axis=-1)
    np.testing.assert_allclose(full[0], none[0] * weight, atol=1e-5)


def test_without_f_cwt_only_t_is_fused():
    shapes = shapes_of(DAASR(scale=2, features=8, fuse=WithoutFCWT), *images(2))
    group = shapes["params"]["group0"]
    assert group["sat"]["fuse"]["kernel"].shape == (8, 8)
    assert group["sat"]["query"]["kernel"].shape == (8, 8)


def test_without_search_nothing_serves_it():
    for fields in (LITERAL, FAST):
        model = DAASR(scale=2, features=8, groups=1, align=OwnPosition, **fields)
        shapes = shapes_of(model, *images(2))["params"]
        assert set(shapes["group0"]["sat"]) == {"fuse"}


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"align": OwnPosition, "fuse": WithoutC}, "the alignment makes none"),
        ({"align": CrossAttention, "fuse": WithoutC}, "the alignment makes none"),
        ({"structure": partial(WindowBlock, heads=3)}, "heads must divide the channel"),
    ],
)
def test_what_cannot_be(fields, says):
    with pytest.raises(ValueError, match=says):
        shapes_of(DAASR(features=8, groups=1, **fields), *images(4))


def test_own_position_needs_a_reference_of_the_output_s_size():
    lr, ref = images(2, ref=(8, 12))
    for fields in ({"align": OwnPosition}, {"align": WithoutP}):
        for preset in PRESETS.values():
            model = DAASR(scale=2, features=8, groups=1, **preset | fields)
            with pytest.raises(ValueError, match="ref must have the size"):
                shapes_of(model, lr, ref)
    for fields in ({"align": CrossAttention}, {"fuse": WithoutC}):
        shapes_of(DAASR(scale=2, features=8, groups=1, **fields), lr, ref)


def test_indices_stand_for_a_search():
    lr, ref = images(2)
    model = DAASR(scale=2, features=8, groups=1, align=OwnPosition)
    with pytest.raises(ValueError, match="the search of Matching; OwnPosition"):
        jax.eval_shape(
            lambda k: model.init(
                k, lr, ref, train=False, indices=jnp.zeros((1, 2, 4, 5), jnp.int32)
            ),
            jax.random.key(0),
        )


@pytest.mark.parametrize(
    "fields",
    [{"align": CrossAttention}, *({"structure": x} for x in REPLACEMENTS.values())],
)
def test_bfloat16(fields):
    if "structure" in fields:
        fields = fields | {"align": None, "detail": None}
    model = DAASR(scale=2, features=8, groups=1, dtype=jnp.bfloat16, **FAST | fields)
    lr, ref = images(2)
    variables = random_variables(shapes_of(model, lr, ref), seed=1)
    assert {v.dtype for v in jax.tree.leaves(variables)} == {np.dtype("float32")}
    out = evaluate(model, variables, lr, ref)
    assert out.sr.dtype == jnp.float32
    assert np.isfinite(out.sr).all()


@pytest.mark.parametrize(
    "row",
    [
        pytest.param(
            row, marks=[pytest.mark.full] * row.startswith(("crop_", "lambda_"))
        )
        for row in ablation_x4_small.ROWS
    ],
)
@pytest.mark.parametrize(
    "module",
    [pytest.param(ablation_x4, marks=pytest.mark.full), ablation_x4_small],
    ids=["paper", "small"],
)
def test_every_row_builds(module, row):
    if row not in module.ROWS:
        pytest.skip("a row beyond the paper, of the small network")
    config = module.get_config(row)
    assert config.is_locked
    assert config.preset == row
    assert row in ablation_x4.__doc__ + module.__doc__
    checks.check_ranges(config)
    parts.make_losses(config)
    model, side = parts.make_model(config), config.train.crop
    lr = jax.ShapeDtypeStruct((1, side, side, 1), jnp.float32)
    hr = jax.ShapeDtypeStruct((1, 4 * side, 4 * side, 1), jnp.float32)
    shapes = jax.eval_shape(
        lambda k, *x: model.init(k, *x, train=False), jax.random.key(0), lr, hr
    )
    kinds = {p for path in flatten(shapes["params"]) for p in path.split("/")}
    assert ("cwt0" in kinds) == (config.model.kwargs.structure.name == "cwt")
    assert ("sat" in kinds) == (config.model.kwargs.align.name != "none")


@pytest.mark.parametrize("module", [ablation_x4, ablation_x4_small])
def test_a_row_changes_what_it_says(module):
    full = module.get_config()
    assert full == module.get_config("")
    networks = {}
    for row, edits in module.ROWS.items():
        config = module.get_config(row)
        with config.unlocked():
            for key in edits:
                *path, last = key.split(".")
                part, whole = config, full
                for name in path:
                    part, whole = part[name], whole[name]
                part[last] = whole[last]
            config.preset = "full"
        assert config == full
        networks.setdefault(repr(sorted(edits.items())), []).append(row)
    assert ["without_matching", "without_p_c"] in networks.values()
    with pytest.raises(ValueError, match=r"row must be one of full, .*'without'"):
        module.get_config("without")


def test_the_full_row_is_the_base_configuration():
    fields = DAASR().__dataclass_fields__
    for row in ("full", "without_cwt"):
        kwargs = ablation_x4.get_config(row).model.kwargs
        made = {
            k: v.func if isinstance(v, partial) else v
            for k, v in resolved(kwargs).items()
        }
        assert set(made) == set(kwargs)
        changed = {k for k, v in made.items() if v != fields[k].default}
        assert changed == (set() if row == "full" else {"structure"})
        options = [
            v.keywords for v in resolved(kwargs).values() if isinstance(v, partial)
        ]
        assert options == [{}] * 3  # structure, alignment and fusion
    for row in ("crop_40", "lambda_0.1_0.01"):
        config = ablation_x4.get_config(row)
        with config.unlocked():
            config.preset = "full"
        assert config == ablation_x4.get_config()
