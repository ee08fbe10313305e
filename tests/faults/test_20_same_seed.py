"""Fault 20: two runs of one seed that differ.

Expected: on a CPU the same seed gives the same bits: initial weights, order, crops,
references and every step. Another seed gives others. `--deterministic` has a GPU do so;
`tests/gpu` holds that there, and prints what a step takes with it and without; no
figure is kept. The record of a run says whether it was given, and resuming in the other
way warns on a GPU.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys

import jax
import numpy as np
import optax
import pytest

from daasr_jax.data import training_batches
from daasr_jax.experiment import record
from daasr_jax.experiment.configuration import load
from daasr_jax.models.srcnn import SRCNN
from daasr_jax.registry import LOSSES
from daasr_jax.runtime import devices
from daasr_jax.training.state import create_state
from daasr_jax.training.step import make_train_step
from tests.data_fixtures import table
from tests.e2e.commands import run_all

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


@pytest.mark.parametrize("given", ["", "--xla_gpu_autotune_level=0"])
def test_20_the_flag_reaches_xla_beside_those_of_the_user(given):
    """Asked in a process of its own, as flags are read once; it compiles with them."""
    code = (
        "import json, os; from daasr_jax.runtime import devices;"
        "devices.make_deterministic(); devices.find();"
        "import jax; jax.jit(lambda x: x + 1)(1.0);"
        "print(json.dumps(os.environ['XLA_FLAGS'].split()))"
    )
    asked = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"XLA_FLAGS": given},
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(asked.stdout) == [*given.split(), devices.DETERMINISTIC]


def test_20_the_command_takes_the_flag(tmp_path):
    """It is said, and before the data are looked for."""
    given = ["--config=configs/srcnn_x4.py", "--deterministic",
             f"--config.data.root={tmp_path / 'none'}",
             f"--workdir={tmp_path / 'run'}"]  # fmt: skip
    (ended,) = run_all([["train.py", *given]], tmp_path / "cache")
    said = ended["out"] + ended["err"]
    assert ended["code"] == 3, said
    assert said.index(devices.DETERMINISTIC) < said.index("error E301"), said
    assert not (tmp_path / "run").exists()  # nothing is left of a root that is none


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ("", False),
        (devices.DETERMINISTIC, True),
        ("--xla_gpu_deterministic_ops", True),
        (f"{devices.DETERMINISTIC} --xla_gpu_deterministic_ops=false", False),
        ("--xla_gpu_deterministic_ops_of_another_name=true", False),
    ],
)
def test_20_the_environment_tells(monkeypatch, given, found):
    monkeypatch.setenv("XLA_FLAGS", f"--xla_gpu_autotune_level=0 {given}".strip())
    assert devices.is_deterministic() is found


@pytest.mark.parametrize("platform", ["cpu", "gpu"])
def test_20_the_record_tells_and_another_choice_warns(
    tmp_path, monkeypatch, caplog, platform
):
    monkeypatch.setattr(jax, "default_backend", lambda: platform)
    given = load("fastmri_x4").to_dict()

    def recorded(*, deterministic: bool, begun: bool) -> bool:
        inputs = {"deterministic": deterministic}
        record.record_config(given, tmp_path, inputs, begun=begun)
        return record.read_record(tmp_path)["deterministic"]

    assert recorded(deterministic=True, begun=False) is True
    assert recorded(deterministic=True, begun=True) is True
    assert "--deterministic" not in caplog.text
    assert recorded(deterministic=False, begun=True) is False
    said = "trained with --deterministic and goes on without it"
    assert (said in caplog.text) is (platform == "gpu")
