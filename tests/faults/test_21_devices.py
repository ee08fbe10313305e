"""Fault 21: another number of devices, and a last batch that they cannot share evenly.

Expected: losses within 1e-5 and weights within 1e-5 after 20 steps on 1, 2, 4 and 8
devices. An evaluation has every slice once on any number of them, with the same scores.
`tests/sharding` holds the same of batch normalisation, of the adversarial term and of a
run that is resumed on fewer devices.
"""

from __future__ import annotations

import os
import subprocess
import sys

import jax
import numpy as np
import optax
import pytest

from daasr_jax.data import draw_pairing
from daasr_jax.evaluation.predict import make_predict, run_split
from daasr_jax.models.srcnn import SRCNN
from daasr_jax.registry import LOSSES
from daasr_jax.runtime import devices
from daasr_jax.training.state import create_state
from daasr_jax.training.step import make_train_step
from tests.conftest import DEVICES
from tests.data_fixtures import table

pytestmark = pytest.mark.timeout(300)  # devices of one CPU may wait for ever
SCALE, CROP, STEPS, BATCH = 2, 8, 20, 8


def counts() -> list[int]:
    return [n for n in (1, 2, 4, 8) if n <= jax.device_count()]


def trained(count: int):
    """Weights and losses of 20 steps on some devices."""
    model, optimiser = SRCNN(scale=SCALE), optax.adam(2e-4)
    state = create_state(
        model, optimiser, scale=SCALE, crop=CROP, seed=0, ema=True, adversarial=None
    )
    losses = {"rec": (1.0, LOSSES.get("pixel.rec"))}
    step = make_train_step(
        model, optimiser, losses, scale=SCALE, ema_decay=0.9, axis=devices.AXIS
    )
    mesh = devices.make_mesh(BATCH, count)
    assert mesh.size == count
    state, run = devices.replicate(state, mesh), devices.compile_step(step, mesh)
    rng, found = np.random.default_rng(0), []
    for _ in range(STEPS):
        side = SCALE * CROP
        batch = {
            k: rng.random((BATCH, side, side, 1), np.float32) for k in ("hr", "ref")
        }
        state, metrics = run(state, devices.shard_batch(batch, mesh))
        jax.block_until_ready((state, metrics))
        found.append(float(metrics["g/total"]))
    return jax.device_get((state.gen, state.ema)), found


def test_21_twenty_steps_on_more_devices():
    weights, losses = trained(1)
    assert losses[-1] < losses[0]
    for count in counts()[1:]:
        others, more = trained(count)
        np.testing.assert_allclose(more, losses, rtol=1e-5)
        for a, b in zip(jax.tree.leaves(others), jax.tree.leaves(weights), strict=True):
            np.testing.assert_allclose(a, b, rtol=0, atol=1e-5)


def test_21_every_slice_once_on_any_number():
    slices = table(subjects=3, contrasts=("T1",), slices=3)
    model = SRCNN(scale=SCALE)
    lr, ref = np.zeros((1, 16, 16, 1), np.float32), np.zeros((1, 32, 32, 1), np.float32)
    variables = model.init(jax.random.key(0), lr, ref, train=False)
    expected = None
    for count in counts():  # 9 slices: no number of them divides evenly but 1
        mesh = devices.make_mesh(count, count)
        predict = make_predict(model, scale=SCALE, border=2, method="srcnn", mesh=mesh)
        rows = run_split(
            predict,
            devices.replicate(variables, mesh),
            slices,
            draw_pairing(slices),
            scale=SCALE,
        )
        found = [(row.position, row.scores["srcnn"]["ssim"]) for row in rows]
        assert [position for position, _ in found] == list(range(9))
        expected = expected or found
        np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.full
def test_21_eight_devices():
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    command += [__file__, "-k", "more_devices or any_number"]
    env = os.environ | {DEVICES: "8"}
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    assert "2 passed" in done.stdout
