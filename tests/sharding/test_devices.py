"""One device and several agree over twenty steps: `shard_map`, `pmap`, accumulation."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from daasr_jax.models.daasr import DAASR, PRESETS
from daasr_jax.models.discriminator import PatchDiscriminator
from daasr_jax.registry import LOSSES
from daasr_jax.runtime import devices
from daasr_jax.training.adversarial import Adversarial
from daasr_jax.training.state import create_state
from daasr_jax.training.step import make_train_step

pytestmark = pytest.mark.timeout(300)  # devices of one CPU may wait for ever
SCALE, CROP, STEPS, BATCH = 2, 8, 20, 4
RATE = 2e-4


def model(axis, **fields):
    fields = {"features": 8, "groups": 1, **PRESETS["fast"], **fields}
    return DAASR(scale=SCALE, axis_name=axis, **fields)


def parts():
    """Optimiser, and an adversarial part, whose penalty draws random numbers."""
    return optax.adam(RATE), Adversarial(
        PatchDiscriminator(features=4, stages=1), optax.adam(RATE), "wgan-gp", 0.1, 1, 2
    )


@functools.cache
def initial(**fields):
    """The state that all begin with, on the host."""
    optimiser, adversarial = parts()
    state = create_state(
        model(None, **fields),
        optimiser,
        scale=SCALE,
        crop=CROP,
        seed=0,
        ema=True,
        adversarial=adversarial,
    )
    return jax.device_get(state)


def build(accumulate=1, **fields):
    """`(state, step)`."""
    optimiser, adversarial = parts()
    state = initial(**fields)
    step = make_train_step(
        model(devices.AXIS, **fields),
        optimiser,
        {
            n: (w, LOSSES.get(f"pixel.{n}"))
            for n, w in (("rec", 1.0), ("cwt", 0.1), ("sat", 0.01))
        },
        scale=SCALE,
        ema_decay=0.9,
        axis=devices.AXIS,
        adversarial=adversarial,
        accumulate=accumulate,
    )
    return state, step


def batches():
    rng = np.random.default_rng(0)
    side = SCALE * CROP
    return [
        {k: rng.random((BATCH, side, side, 1), np.float32) for k in ("hr", "ref")}
        for _ in range(STEPS)
    ]


@functools.cache
def on_mesh(count, steps=STEPS, **changes):
    state, step = build(**changes)
    mesh = devices.make_mesh(BATCH, count, changes.get("accumulate", 1))
    state = devices.replicate(state, mesh)
    run, rows = devices.compile_step(step, mesh), []
    for batch in batches()[:steps]:
        state, metrics = run(state, devices.shard_batch(batch, mesh))
        jax.block_until_ready((state, metrics))
        rows.append(jax.device_get(metrics))
    return jax.device_get(state), rows


def under_pmap(count):
    state, step = build()
    run = jax.pmap(step, axis_name=devices.AXIS, devices=jax.devices()[:count])
    state = jax.tree.map(lambda x: jnp.stack([x] * count), state)
    rows = []
    for batch in batches():
        parts = {k: v.reshape(count, -1, *v.shape[1:]) for k, v in batch.items()}
        state, metrics = run(state, parts)
        jax.block_until_ready((state, metrics))
        rows.append({k: np.asarray(v)[0] for k, v in metrics.items()})
    state = jax.device_get(state)
    for x in jax.tree.leaves(state):  # every device holds the same
        np.testing.assert_array_equal(x, np.broadcast_to(x[:1], x.shape))
    return jax.tree.map(lambda x: x[0], state), rows


def compare(got, want):
    """Losses within 1e-5 of them, parameters within 1e-5."""
    (state, rows), (expected, expected_rows) = got, want
    for name in ("gen", "ema", "batch_stats", "disc"):
        a, b = getattr(state, name), getattr(expected, name)
        assert jax.tree.structure(a) == jax.tree.structure(b)
        for path, x in jax.tree_util.tree_leaves_with_path(a):
            y = functools.reduce(lambda tree, key: tree[key.key], path, b)
            np.testing.assert_allclose(x, y, rtol=0, atol=1e-5, err_msg=str(path))
    assert len(rows) == len(expected_rows) == STEPS
    for number, (a, b) in enumerate(zip(rows, expected_rows, strict=True)):
        assert set(a) == set(b)
        for name in a:
            np.testing.assert_allclose(
                a[name], b[name], rtol=1e-5, atol=1e-6, err_msg=f"{name} of {number}"
            )


@pytest.mark.full
@pytest.mark.parametrize("count", [2, 4])
def test_several_devices_agree_with_one(count):
    assert jax.device_count() == 4
    compare(on_mesh(count), on_mesh(1))


@pytest.mark.full
def test_the_agreement_is_not_that_of_rest():
    state, rows = on_mesh(1)
    for name in ("gen", "disc"):
        moved = jax.tree.map(
            lambda a, b: np.abs(a - b).max(),
            getattr(state, name),
            getattr(build()[0], name),
        )
        assert max(jax.tree.leaves(moved)) > RATE
    assert [float(r["d/penalty"]) > 0 for r in rows] == [False] + [True] * (STEPS - 1)


@pytest.mark.full
def test_pmap_and_shard_map_are_bit_equal():
    (a, a_rows), (b, b_rows) = on_mesh(4), under_pmap(4)
    for field in dataclasses.fields(a):
        jax.tree.map(
            np.testing.assert_array_equal, *(getattr(x, field.name) for x in (a, b))
        )
    for x, y in zip(a_rows, b_rows, strict=True):
        jax.tree.map(np.testing.assert_array_equal, x, y)


@pytest.mark.parametrize(
    ("count", "parts"),
    [
        pytest.param(1, 2, marks=pytest.mark.full),
        pytest.param(1, 4, marks=pytest.mark.full),
        pytest.param(2, 2, marks=pytest.mark.full),
    ],
)
def test_accumulation_agrees_with_the_whole_batch(count, parts):
    """Without batch statistics, which a part takes of itself."""
    changes = {"sfe_norm": "group"}
    got = on_mesh(count, accumulate=parts, **changes)
    compare(got, on_mesh(1, **changes))


@pytest.mark.full
def test_running_statistics_of_parts_are_their_mean():
    """The mean over parts of equal size is that of the batch; the variance is less."""
    got, want = (
        on_mesh(1, steps=1, accumulate=n)[0].batch_stats["sfe"]["block0_norm1"]
        for n in (2, 1)
    )
    np.testing.assert_allclose(got["mean"], want["mean"], rtol=1e-5, atol=1e-7)
    assert np.all(got["var"] <= want["var"])
    assert np.any(got["var"] < want["var"])
    np.testing.assert_allclose(got["var"], want["var"], rtol=1e-2)


@pytest.mark.full
def test_rematerialisation_computes_again():
    """Every block is computed again: there are more convolutions, and barriers."""

    def counted(remat):
        state, step = build(remat=remat)
        mesh = devices.make_mesh(BATCH, 1)
        batch = {k: jnp.asarray(v) for k, v in batches()[0].items()}
        text = str(jax.make_jaxpr(devices.compile_step(step, mesh))(state, batch))
        return text.count("conv_general_dilated["), text.count("prevent_cse=True")

    (plain, no_barriers), (again, barriers) = counted(False), counted(True)
    assert again > plain
    assert barriers > no_barriers


@pytest.mark.full
def test_rematerialisation_agrees():
    compare(on_mesh(1, remat=True), on_mesh(1))
