"""Parts of the network by name: their options in a configuration, and a new one."""

from __future__ import annotations

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import brain_x4_small, fastmri_x4
from daasr_jax.errors import CheckpointError, ConfigError
from daasr_jax.experiment import parts
from daasr_jax.experiment.keywords import keywords, part
from daasr_jax.experiment.saved_run import load_run
from daasr_jax.models.cwt import CWT
from daasr_jax.models.sat import Matching
from daasr_jax.registry import PARTS, resolved
from daasr_jax.training.step import make_train_step
from tests.docs.blocks import blocks

ROOT = Path(__file__).parents[2]


def small():
    config = brain_x4_small.get_config().unlock()
    config.model.kwargs.features, config.model.kwargs.groups = 8, 1
    config.scale, config.train.crop = 2, 4
    return config


def test_keywords_are_the_fields_of_the_class():
    given = keywords("daasr").to_dict()
    assert given["features"] == 64
    options = {"patch", "search", "within"}
    assert given["align"] == {"name": "sat.matching"} | dict.fromkeys(options)
    assert given["fuse"] == {"name": "sat.fusion"}
    assert given["detail"] == {"name": "none"}
    options = {"mlp_ratio", "heads", "attention_scale", "temperature", "projection"}
    assert set(given["structure"]) == {"name", *options}
    assert not {"scale", "dtype", "axis_name", "name", "parent"} & set(given)


def test_options_reach_the_part():
    config = fastmri_x4.get_config()
    config.model.kwargs.structure.heads = 4
    config.model.kwargs.align.search = "kernel"
    model = parts.make_model(config)
    assert (model.structure.func, model.structure.keywords) == (CWT, {"heads": 4})
    assert (model.align.func, model.align.keywords) == (Matching, {"search": "kernel"})
    config.model.kwargs.align.name = "none"
    assert parts.make_model(config).align is None


def test_wrong_names_and_options():
    config = fastmri_x4.get_config()
    with pytest.raises(AttributeError, match="temperature"):  # it is locked
        config.model.kwargs.align.temperature = 0.1
    with pytest.raises(TypeError):
        config.model.kwargs.structure.heads = "four"
    config.model.kwargs.align.name = "sat.pairing"
    with pytest.raises(ConfigError, match=r"E227.*sat\.matching"):
        resolved(config.model.kwargs)
    config.model.kwargs.align.name = "ablations.own_position"
    config.model.kwargs.align.patch = 5
    with pytest.raises(ConfigError, match=r"E210.*patch"):
        resolved(config.model.kwargs)


def test_a_run_of_another_version_is_named(tmp_path):
    config = small().to_dict()
    config["model"]["kwargs"] |= {"sat": "full", "structure": "cwt"}  # of before
    record = {"config": config, "config_sha256": "", "perceptual": {}, "start": None}
    (tmp_path / "config.json").write_text(json.dumps(record))
    with pytest.raises(CheckpointError, match=r"E405.*is of another version.*sat"):
        load_run(tmp_path)


def test_the_worked_example_trains(monkeypatch):
    """CONTRIBUTING's alignment: its class, its line, and a step in which it learns."""
    known = {k: v for k, v in PARTS._items.items() if k != "soft_matching"}
    monkeypatch.setattr(PARTS, "_items", known)  # the pages' own test may have added it
    code = [b for b in blocks(ROOT / "CONTRIBUTING.md") if "soft_matching" in b.text]
    example, line = (b.text for b in code if b.kind == "python")
    scope: dict = {}
    exec(compile(example, "CONTRIBUTING.md", "exec"), scope)
    assignment = line.strip().splitlines()[-1]
    config = small()
    exec(assignment, {"config": config, "part": part})
    config.lock()
    config.model.kwargs.align.temperature = 0.05
    model = parts.make_model(config)
    assert model.align.func is scope["SoftMatching"]
    assert model.align.keywords == {"temperature": 0.05}

    optimiser, _ = parts.make_training(config, steps=9, steps_per_epoch=3)
    state = parts.make_state(config, optimiser, None)
    losses = parts.make_losses(config)
    rng = np.random.default_rng(0)
    batch = {
        name: jnp.asarray(rng.random((2, 8, 8, 1), np.float32))
        for name in ("hr", "ref")
    }
    step = jax.jit(make_train_step(model, optimiser, losses, scale=2))
    for _ in range(3):  # the last convolutions start at zero
        state, metrics = step(state, batch)
    assert int(metrics["skipped"]) == 0
    assert "confidence/mean" in metrics
    start = parts.make_state(config, optimiser, None).gen["sfe"]["conv_in"]
    moved = state.gen["sfe"]["conv_in"]["kernel"] - start["kernel"]
    assert np.abs(moved).max() > 0
