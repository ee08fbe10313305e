"""Fault 20: two runs of one seed that differ.

Expected: on a CPU the same seed gives the same bits: initial weights, order, crops,
references and every step. Another seed gives others. `tests/gpu` holds it on a GPU with
`XLA_FLAGS=--xla_gpu_deterministic_ops=true`, and prints what that costs.
"""

from __future__ import annotations

import jax
import numpy as np
import optax

from daasr_jax.data import training_batches
from daasr_jax.models.srcnn import SRCNN
from daasr_jax.registry import LOSSES
from daasr_jax.training.state import create_state
from daasr_jax.training.step import make_train_step
from tests.data_fixtures import table

SCALE, CROP, STEPS = 2, 8, 3


def bits(seed: int) -> list[np.ndarray]:
    """All that a run computes: batches, metrics and the last state."""
    model, optimiser = SRCNN(scale=SCALE), optax.adam(1e-3)
    state = create_state(
        model, optimiser, scale=SCALE, crop=CROP, seed=seed, ema=True, adversarial=None
    )
    losses = {"rec": (1.0, LOSSES.get("pixel.rec"))}
    step = jax.jit(
        make_train_step(model, optimiser, losses, scale=SCALE, ema_decay=0.9)
    )
    found = []
    batches = training_batches(
        table(), batch_size=4, crop=CROP, scale=SCALE, steps=STEPS, seed=seed
    )
    for batch in batches:
        state, metrics = step(state, batch)
        found += [batch["hr"], batch["ref"], *jax.tree.leaves(jax.device_get(metrics))]
    return [np.asarray(x) for x in (*found, *jax.tree.leaves(jax.device_get(state)))]


def test_20_one_seed_gives_the_same_bits():
    first, again, other = bits(0), bits(0), bits(1)
    assert len(first) > 3 * STEPS
    for a, b in zip(first, again, strict=True):
        assert a.tobytes() == b.tobytes()
    assert any(a.tobytes() != b.tobytes() for a, b in zip(first, other, strict=True))
