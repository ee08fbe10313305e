"""Fault 19: a loss or a gradient that is NaN or infinite.

Expected: the update is left out. After 20 in a row the run goes back, once, to the last
checkpoint without trouble, with half the learning rates; then it ends with exit code 5.
`not_finite.json` has the samples of those updates. A score that is no number is never
the best.
"""

from __future__ import annotations

import json
import math
from types import SimpleNamespace

import jax
import numpy as np
import optax
import pytest

from daasr_jax.data import Names, TrainingTriples
from daasr_jax.errors import DivergedError
from daasr_jax.experiment.train import record_blame
from daasr_jax.models.srcnn import SRCNN
from daasr_jax.registry import LOSSES
from daasr_jax.training import loop
from daasr_jax.training.checkpoints import Checkpoints
from daasr_jax.training.schedules import make_optimiser
from daasr_jax.training.state import create_state
from daasr_jax.training.step import LOWERED, make_train_step
from tests.data_fixtures import table
from tests.unit.test_checkpoints import opened, write
from tests.unit.test_training import batch, rows, run_loop

NAN = math.nan


def small():
    """State and step of a small network, by Adam."""
    model = SRCNN(scale=2)
    optimiser = make_optimiser("adam", optax.constant_schedule(1e-3), b1=0.9, b2=0.999)
    state = create_state(
        model, optimiser, scale=2, crop=8, seed=0, ema=False, adversarial=None
    )
    losses = {"rec": (1.0, LOSSES.get("pixel.rec"))}
    return state, make_train_step(model, optimiser, losses, scale=2, ema_decay=0.0)


def test_19_back_once_then_the_end(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(loop, "MAX_SKIPPED", 3)
    blamed = []
    values = [1, 2, 4, 8, NAN, NAN, NAN, 16, 32, NAN, NAN, NAN, 1]
    with pytest.raises(DivergedError, match="E501") as error:
        run_loop(tmp_path, values, blame=blamed.append)
    assert error.value.exit_code == 5
    assert "going back to checkpoint 4, once, with learning rates times 0.5" in (
        caplog.text
    )
    assert blamed == [range(5, 8), range(10, 13)]
    assert rows(tmp_path)[-1]["g/total"] == "nan"
    store = Checkpoints(tmp_path, read_only=True)
    assert store.latest() == 10  # saved in trouble, and the good one before it stays
    assert store.clean_steps()[-1] == 8
    store.close()


def test_19_an_update_that_is_not_finite_is_left_out():
    state, step = small()
    bad = batch()
    bad["hr"][0, 0, 0, 0] = NAN
    new, metrics = jax.jit(step)(state, bad)
    assert not math.isfinite(float(metrics["g/total"]))
    for name in ("gen", "gen_opt", "batch_stats"):
        same = jax.tree.map(np.array_equal, getattr(new, name), getattr(state, name))
        assert all(jax.tree.leaves(same))
    assert (int(new.step), int(new.skipped_in_a_row)) == (1, 1)


def test_19_half_the_rate_after_going_back():
    state, step = small()
    run = jax.jit(step)
    whole, told = run(state, batch())
    half, after = run(state.replace(restores=state.restores + 1), batch())
    for a, b, start in zip(
        *(jax.tree.leaves(s.gen) for s in (whole, half, state)), strict=True
    ):
        np.testing.assert_allclose(b - start, LOWERED * (a - start), atol=1e-7)
    assert after["g/learning_rate"] == LOWERED * told["g/learning_rate"]


@pytest.mark.parametrize("names", [False, True])
def test_19_the_samples_of_bad_updates_are_written(tmp_path, names):
    """Those that the batches were made of, by the names of the run's results."""
    slices, size = table(), 4
    triples = TrainingTriples(slices, batch_size=size, crop=8, scale=2, steps=9, seed=3)

    def samples(step):
        drawn = [triples.draw(i) for i in range((step - 1) * size, step * size)]
        return [(target, [d.reference for d in refs]) for target, refs in drawn]

    plan = SimpleNamespace(
        prepared=SimpleNamespace(splits={"train": slices}), samples=samples
    )
    seen = {"salt": "abc", "subjects": {}, "volumes": {}}
    (tmp_path / "subjects.json").write_text(json.dumps(seen))
    record_blame(plan, range(3, 5), tmp_path, names=names)
    found = json.loads((tmp_path / "not_finite.json").read_text())
    assert list(found) == ["3", "4"]
    label = slices.keys if names else Names("abc").slices(slices)
    target, _ = triples.draw(2 * size)
    assert found["3"][0]["slice"] == label[target]
    first = triples[2 * size]["hr"]
    assert first.shape == (16, 16, 1)
    assert all(len(sample["references"]) == 1 for sample in found["4"])


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, "absent"])
def test_19_a_score_that_is_no_number_is_never_the_best(tmp_path, bad):
    write(tmp_path, [20.0, bad, bad, bad])
    assert opened(tmp_path) == ([1, 3, 4], 4, 1)
