"""A slice in bands is the slice whole."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage

from daasr_jax import released
from daasr_jax.enhancement import Engine, bands
from daasr_jax.models.cwt import CWT
from daasr_jax.models.daasr import DAASR, PRESETS, searching_within
from daasr_jax.models.data_consistency import DataConsistent
from daasr_jax.models.edsr import EDSR
from daasr_jax.models.sat import Matching
from tests.weights import random_variables


def images(h: int, w: int, scale: int, refs: int = 1, seed: int = 0):
    rng = np.random.default_rng(seed)
    ref = rng.random((refs, scale * h, scale * w), np.float32)
    return rng.random((h, w), np.float32), ref


@functools.cache
def network(scale: int = 2, **fields):
    given = {"features": 8, "groups": 2, **PRESETS["fast"], **fields}
    model = DAASR(scale=scale, **given)
    assert bands.can_band(model)
    return model, random_variables(scale=scale, **{**fields, "groups": 2})


CASES = {
    "x2": {},
    "x3": {"scale": 3},
    "x4": {"scale": 4},
    "two blocks": {"blocks_per_group": 2},
    "by the size": {
        "structure": functools.partial(CWT, attention_scale="sqrt_hw", heads=2)
    },
    "without detail": {"detail": None},
    "patches of five, by products": {
        "align": functools.partial(Matching, patch=5, search="chunked")
    },
    "near": {"align": functools.partial(Matching, within=2)},
    "no norm, both": {"sfe_norm": "none", "residual": "both"},
}


@pytest.mark.parametrize(
    "case",
    [
        c if c in ("x4", "near") else pytest.param(c, marks=pytest.mark.full)
        for c in CASES
    ],
)
def test_bands_are_the_whole(case):
    model, variables = network(**CASES[case])
    lr, ref = images(45, 20, model.scale)
    wanted = jax.jit(lambda a, b: model.apply(variables, a, b, train=False))(
        jnp.asarray(lr)[None, ..., None], jnp.asarray(ref)[..., None]
    )
    sr, c, p = bands.Bands(model, variables, 16)(lr, ref)
    size = float(jnp.abs(wanted.sr).max())
    np.testing.assert_allclose(sr, wanted.sr[0, ..., 0], atol=1e-5 * max(1, size))
    np.testing.assert_allclose(c, wanted.aux["confidence"][-1, 0, ..., 0], atol=1e-5)
    np.testing.assert_array_equal(p, wanted.aux["index"][-1, 0])


def test_near_is_searched_where_there_is_a_place():
    """A reference of another size has none, and is searched whole."""
    model, variables = network(align=functools.partial(Matching, within=2))
    lr, ref = images(45, 20, model.scale)
    all_of_it = network()[0]

    def rows_apart(made, given):
        index = bands.Bands(made, variables, 16)(lr, given)[2]
        return np.abs(index // 20 - np.arange(45)[:, None])

    assert rows_apart(model, ref).max() < 16 + 2 * 2 < rows_apart(all_of_it, ref).max()
    other = ref[:, :-2]
    np.testing.assert_array_equal(
        rows_apart(model, other), rows_apart(all_of_it, other)
    )


def test_bands_of_the_released_weights_are_the_whole():
    """Within 1e-5 of the range of training, whatever the output's size."""
    model, variables, _ = released.load("x4")
    lr, ref = images(45, 20, 4)
    lr, ref = (ndimage.gaussian_filter(x, 1.5) for x in (lr, ref[0]))
    wanted = jax.jit(lambda a, b: model.apply(variables, a, b, train=False))(
        lr[None, ..., None], ref[None, ..., None]
    )
    sr, c, p = bands.Bands(model, variables, 16)(lr, ref[None])
    np.testing.assert_allclose(sr, wanted.sr[0, ..., 0], rtol=0, atol=1e-5)
    np.testing.assert_allclose(c, wanted.aux["confidence"][-1, 0, ..., 0], atol=1e-5)
    np.testing.assert_array_equal(p, wanted.aux["index"][-1, 0])


@pytest.mark.full
def test_several_references_of_another_size_and_one_of_zeros():
    model, variables = network()
    lr, ref = images(40, 20, 2, refs=3)
    ref = ref[:, :60]
    ref[1] = 0
    wanted = model.apply(
        variables, lr[None, ..., None], ref[None, ..., None], train=False
    )
    sr, _, p = bands.Bands(model, variables, 16)(lr, ref)
    size = float(jnp.abs(wanted.sr).max())
    np.testing.assert_allclose(sr, wanted.sr[0, ..., 0], atol=1e-5 * max(1, size))
    np.testing.assert_array_equal(p, wanted.aux["index"][-1, 0])
    assert set(np.unique(p // (30 * 20))) == {0, 2}


@pytest.mark.full
def test_data_consistency_is_of_the_whole():
    model, variables = network()
    outer = DataConsistent(model=model, scale=2)
    lr, ref = images(40, 20, 2)
    wanted = outer.apply(variables, lr[None, ..., None], ref[..., None], train=False)
    sr = bands.Bands(outer, variables, 16)(lr, ref)[0]
    size = float(jnp.abs(wanted.sr).max())
    np.testing.assert_allclose(sr, wanted.sr[0, ..., 0], atol=1e-5 * max(1, size))


@pytest.mark.full
def test_a_wrong_halo_is_seen(monkeypatch):
    """The comparison notices rows that are too few."""
    model, variables = network()
    lr, ref = images(45, 20, 2)
    right = bands.Bands(model, variables, 16)(lr, ref)[0]
    for name, less in (("_SFE", 2), ("_GROUP", 1), ("_TAIL", 3)):
        with monkeypatch.context() as patch:
            patch.setattr(bands, name, less)
            wrong = bands.Bands(model, variables, 16)(lr, ref)[0]
        assert np.abs(wrong - right).max() > 1e-4, name


@pytest.mark.full
def test_the_halo_of_patches_is_theirs():
    """The comparison notices a row of patches that is too few."""
    model, variables = network(align=functools.partial(Matching, patch=5))
    lr, ref = images(45, 20, 2)
    whole, narrow = (bands.Bands(model, variables, 16) for _ in range(2))
    narrow._around = 1
    (_, right, _), (_, wrong, _) = whole(lr, ref), narrow(lr, ref)
    assert np.abs(wrong - right).max() > 1e-4


def test_which_networks_have_bands():
    assert not bands.can_band(EDSR(scale=2))
    assert not bands.can_band(DAASR(scale=2))  # the preset `paper`
    assert not bands.can_band(DAASR(**{**PRESETS["fast"], "phases": 2}))
    assert bands.can_band(DataConsistent(model=network()[0]))


def test_how_far_is_searched_is_set():
    """0 searches all, whatever a network was trained with."""
    model, outer = network()[0], DataConsistent(model=network()[0])
    near = searching_within(model, 16)
    assert near.align().within == 16
    assert searching_within(near, 0).align().within == 0
    assert searching_within(model, 0) is model
    assert searching_within(outer, 16).model.align().within == 16
    assert searching_within(EDSR(scale=2), 16) == EDSR(scale=2)


def test_rows_follow_the_memory():
    few, many = (bands.rows_within(m, (512, 512), 1, 64) for m in (2**30, 2**32))
    assert 16 <= few < many
    assert bands.rows_within(0, (512, 512), 1, 64) == 16
    least = bands.least_bytes((512, 512), 1, 64)
    row = 24 * 4 * 64 * 512  # of a window
    assert bands.rows_within(least, (512, 512), 1, 64) == 16
    assert bands.rows_within(least + row, (512, 512), 1, 64) == 17


def test_a_memory_that_the_least_bands_exceed_is_told(caplog):
    weights = released.load("x4")
    lr, ref = np.zeros((1, 24, 24), np.float32), np.zeros((1, 1, 96, 96), np.float32)
    with caplog.at_level("WARNING", "daasr_jax"):
        Engine(weights, memory=1000)(lr, ref)
    assert "GB so, the least; 9.3e-07 may be taken" in caplog.text
