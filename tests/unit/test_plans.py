"""What `train.py` builds from a configuration: data, losses, optimiser and step."""

from __future__ import annotations

import importlib

import jax
import numpy as np
import pytest

from daasr_jax.experiment import checks, plan
from daasr_jax.runtime import devices
from tests.data_fixtures import fastmri_root

# Systems with parts of their own in data, losses or optimiser, and ablations by kind.
PLANS = (
    "srcnn_x4:small",
    *(
        pytest.param(f"{system}_x4:small", marks=pytest.mark.full)
        for system in ("mcsr", "minet", "ttsr", "mcmrsr")
    ),
    pytest.param("ablation_x4_small:without_sat", marks=pytest.mark.full),
    pytest.param("ablation_x4_small:lambda_0.3_0.09", marks=pytest.mark.full),
    pytest.param("ablation_x4:crop_10", marks=pytest.mark.full),
)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    folder = tmp_path_factory.mktemp("plans")
    return fastmri_root(folder / "data", train=4, val=2), folder / "cache"


@pytest.mark.parametrize("name", PLANS)
def test_a_step_of_the_run(name, folders):
    """The total is the weighted sum of the terms, and every part moves that should."""
    file, _, argument = name.partition(":")
    config = importlib.import_module(f"configs.{file}").get_config(argument)
    root, cache = folders
    assert config.train.crop == (10 if argument == "crop_10" else 16)
    config.data.root, config.data.cache_dir, config.data.size = (
        str(root),
        str(cache),
        64,
    )
    config.train.batch_size, config.train.devices = 2, 1
    config.train.crop = 10
    config.optimiser.warmup_steps = 0
    config.perceptual.network = "none"
    if file == "ablation_x4":
        config.model.kwargs.features, config.model.kwargs.groups = 8, 1
    checks.check_ranges(config)
    made = plan.make_plan(config)
    before = jax.device_get(made.state)
    batch = devices.shard_batch(next(iter(made.batches(0))), made.mesh)
    step = devices.compile_step(made.step_fn, made.mesh)
    state, metrics = step(devices.replicate(made.state, made.mesh), batch)
    metrics = {k: float(v) for k, v in metrics.items()}
    terms = sum(t.weight * metrics[f"g/{name}"] for name, t in config.losses.items())
    np.testing.assert_allclose(metrics["g/total"], terms, rtol=1e-5)
    assert metrics["skipped"] == 0
    moved = jax.tree.map(lambda a, b: float(np.abs(a - b).max()), before.gen, state.gen)
    assert max(jax.tree.leaves(moved)) > 0
    if config.optimiser.slow:
        slow, rest = moved.pop("texture"), moved
        ratio = max(jax.tree.leaves(slow)) / max(jax.tree.leaves(rest))
        assert 0.05 < ratio < 0.2
