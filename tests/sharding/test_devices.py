"""One device and four agree: under `shard_map` and under `pmap`."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from daasr_jax.models.daasr import DAASR, PRESETS
from daasr_jax.models.discriminator import PatchDiscriminator
from daasr_jax.registry import LOSSES
from daasr_jax.training import parallel
from daasr_jax.training.adversarial import Adversarial
from daasr_jax.training.state import create_state
from daasr_jax.training.step import make_train_step

SCALE, CROP, STEPS = 2, 8, 3
RATE = 2e-4


def model(axis):
    fields = {"features": 8, "groups": 1, **PRESETS["fast"]}
    return DAASR(scale=SCALE, axis_name=axis, **fields)


def build(ema_decay=0.9):
    optimiser = optax.adam(RATE)
    adversarial = (
        Adversarial(  # its penalty draws random numbers; off in the first step
            PatchDiscriminator(features=4, stages=1),
            optax.adam(RATE),
            "wgan-gp",
            0.1,
            1,
            2,
        )
    )
    state = create_state(
        model(None),
        optimiser,
        scale=SCALE,
        crop=CROP,
        seed=0,
        ema=ema_decay > 0,
        adversarial=adversarial,
    )
    step = make_train_step(
        model(parallel.AXIS),
        optimiser,
        {
            n: (w, LOSSES.get(f"pixel.{n}"))
            for n, w in (("rec", 1.0), ("cwt", 0.1), ("sat", 0.01))
        },
        scale=SCALE,
        ema_decay=ema_decay,
        axis=parallel.AXIS,
        adversarial=adversarial,
    )
    return state, step


def batches():
    rng = np.random.default_rng(0)
    side = SCALE * CROP
    return [
        {k: rng.random((4, side, side, 1), np.float32) for k in ("hr", "ref")}
        for _ in range(STEPS)
    ]


def on_mesh(devices):
    state, step = build()
    mesh = parallel.make_mesh(4, devices)
    state = parallel.replicate(state, mesh)
    run, rows = parallel.compile_step(step, mesh), []
    for batch in batches():
        state, metrics = run(state, parallel.shard_batch(batch, mesh))
        jax.block_until_ready((state, metrics))
        rows.append(jax.device_get(metrics))
    return jax.device_get(state), rows


def under_pmap():
    state, step = build()
    run = jax.pmap(step, axis_name=parallel.AXIS)
    state = jax.tree.map(lambda x: jnp.stack([x] * 4), state)
    rows = []
    for batch in batches():
        parts = {k: v.reshape(4, 1, *v.shape[1:]) for k, v in batch.items()}
        state, metrics = run(state, parts)
        jax.block_until_ready((state, metrics))
        rows.append({k: np.asarray(v)[0] for k, v in metrics.items()})
    state = jax.device_get(state)
    for x in jax.tree.leaves(state):  # every device holds the same
        np.testing.assert_array_equal(x, np.broadcast_to(x[:1], x.shape))
    return jax.tree.map(lambda x: x[0], state), rows


@pytest.fixture(scope="module")
def single():
    return on_mesh(1)


@pytest.mark.parametrize("way", [lambda: on_mesh(4), under_pmap], ids=["mesh", "pmap"])
def test_four_devices_agree_with_one(single, way):
    assert jax.device_count() == 4
    state, rows = way()
    want, want_rows = single
    for name in ("gen", "ema", "batch_stats", "disc"):
        got, expected = getattr(state, name), getattr(want, name)
        assert jax.tree.leaves(got)
        for path, x in jax.tree_util.tree_leaves_with_path(got):
            y = expected
            for key in path:
                y = y[key.key]
            np.testing.assert_allclose(x, y, atol=1e-5, err_msg=str(path))
    for name in ("gen", "disc"):  # the agreement is not that of rest
        begin = getattr(build()[0], name)
        moved = jax.tree.map(
            lambda a, b: np.abs(a - b).max(), getattr(want, name), begin
        )
        assert max(jax.tree.leaves(moved)) > RATE
    assert [float(r["d/penalty"]) > 0 for r in rows] == [False, True, True]
    for a, b in zip(rows, want_rows, strict=True):
        assert set(a) == set(b)
        for name in a:
            np.testing.assert_allclose(
                a[name], b[name], rtol=1e-4, atol=1e-5, err_msg=name
            )
