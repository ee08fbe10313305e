"""A run whose batch follows the devices, resumed on fewer of them."""

from __future__ import annotations

import json
import logging

import numpy as np
import pytest

from configs import srcnn_x4
from daasr_jax.errors import ConfigError
from daasr_jax.experiment import dry_run, train
from tests.data_fixtures import fastmri_root
from tests.e2e.commands import assert_same_state, last_state, rows

pytestmark = pytest.mark.timeout(300)  # devices of one CPU may wait for ever
IMAGES, OF_RATES, RATE = 2, 3, 1e-3
STEPS, STOPPED = 14, 4  # the warm-up of five epochs, of two steps each, ends between


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("batch per device")
    fastmri_root(folder / "data", train=6, val=2)
    return folder


@pytest.fixture
def said(caplog):
    """The lines of the log."""
    caplog.set_level(logging.INFO, logger="daasr_jax")
    return caplog


def run(place, **changes):
    config = srcnn_x4.get_config("small").unlock()
    config.data.root, config.data.cache_dir = str(place / "data"), str(place / "cache")
    config.data.size, config.train.crop = 64, 8
    config.train.batch_per_device, config.train.batch_size = IMAGES, OF_RATES
    config.train.steps, config.train.log_every = STEPS, 1
    config.train.watchdog = 0
    config.optimiser.learning_rate, config.optimiser.warmup_steps = RATE, 0
    config.optimiser.schedule = "constant"
    config.update_from_flattened_dict(changes)
    return config.lock()


@pytest.fixture(scope="module")
def whole(place):
    """The run that was never interrupted, on four devices."""
    train.train_run(run(place), str(place / "whole"))
    return place / "whole"


def learned(folder):
    return [r for r in rows(folder) if "g/total" in r]


def test_resumed_on_fewer_devices_it_is_the_same_run(place, whole, said):
    parts = place / "parts"
    train.train_run(run(place, **{"train.steps": STOPPED}), str(parts))
    words = "learning rates times 2.667, 8 / train.batch_size=3; warm-up: 5 epochs"
    assert said.messages[0].startswith("a batch of 8 images, 2 on each of 4 devices; ")
    assert words in said.messages[0]
    assert any("warm-up" in m and "the run has 4" in m for m in said.messages)
    record = json.loads((parts / "config.json").read_text())
    assert record["batch"] == {
        "images": 8,
        "devices": 4,
        "rates_of": 3,
        "rates_times": 8 / 3,
        "warmup": "5 epochs",
    }

    said.clear()
    with pytest.raises(ConfigError, match=r"E247.*batch of 8.*over 3.*devices=2"):
        train.train_run(run(place, **{"train.devices": 3}), str(parts))
    train.train_run(run(place, **{"train.devices": 2}), str(parts))
    assert said.messages[0].startswith(
        "a batch of 8 images, 4 on each of 2 devices (it began on 4); "
    )
    assert f"resuming at step {STOPPED} of {STEPS}" in said.messages
    assert json.loads((parts / "config.json").read_text())["batch"] == record["batch"]

    assert_same_state(last_state(whole, STEPS), last_state(parts, STEPS))
    want, got = learned(whole), learned(parts)
    assert [r["step"] for r in want] == list(range(1, STEPS + 1))
    assert [r["step"] for r in got] == list(range(1, STEPS + 1))
    for key in ("g/total", "g/learning_rate"):
        np.testing.assert_allclose(
            [r[key] for r in got], [r[key] for r in want], rtol=1e-5, err_msg=key
        )


def test_the_rate_rises_to_the_scaled_one(whole):
    factor, n = 8 / OF_RATES, 5 * 2
    want = [RATE * (1 + (factor - 1) * min(1, i / n)) for i in range(1, STEPS + 1)]
    got = [r["g/learning_rate"] for r in learned(whole)]
    np.testing.assert_allclose(got, want, rtol=1e-5)


def test_dry_run_shows_it(place, whole, capsys):
    dry_run.dry_run(run(place, **{"train.devices": 2}), str(place / "new"))
    out = " ".join(capsys.readouterr().out.split())
    assert "4 images, 2 on each of 2 devices; learning rates times 1.333" in out
    dry_run.dry_run(run(place, **{"train.devices": 2}), str(whole))
    out = " ".join(capsys.readouterr().out.split())
    assert "8 images, 4 on each of 2 devices (it began on 4)" in out
