"""Fault 22: a network, a batch or a scan that does not fit into the memory.

Expected: a run that cannot fit ends before anything large is made, in seconds, with
what it needs and what lowers that; exit code 6. One whose step asks for more than
there is ends with what it asked for. An evaluation gives each device one slice at a
time, so it has nothing to halve: it ends with a remedy of its own. An enhancement takes
fewer slices at once, then bands of a slice, which are the whole within 1e-5.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from daasr_jax import released
from daasr_jax.data import draw_pairing
from daasr_jax.enhancement import Engine, bands
from daasr_jax.errors import ResourceError
from daasr_jax.evaluation.predict import Predict, make_predict
from daasr_jax.experiment import evaluate
from daasr_jax.experiment.configuration import load
from daasr_jax.experiment.opening import EvaluationRequest
from daasr_jax.runtime import devices, failures
from tests.conftest import QUICKER
from tests.data_fixtures import one_line, table
from tests.e2e.commands import ROOT, SMALL, complaint, environment
from tests.unit.test_failures import OOM
from tests.unit.test_training import tiny
from tests.weights import write_weights


@pytest.mark.parametrize(
    ("limit", "features", "said"),
    [
        ("ulimit -v 2097152", 64, "the limit of address space leaves 0."),
        ("true", 65536, "the run needs at least"),
    ],
)
def test_22_a_network_that_cannot_fit(tmp_path, limit, features, said):
    """2 GiB, as `ulimit -v` sets them; and 10^12 parameters on any machine."""
    done = subprocess.run(
        [
            *("bash", "-c", f'{limit}; exec "$@"', "-", sys.executable),
            *("train.py", "--config=configs/quickstart_x4.py"),
            *(f"--workdir={tmp_path / 'run'}", f"--config.data.cache_dir={tmp_path}"),
            f"--config.model.kwargs.features={features}",
        ],
        cwd=ROOT,
        env={k: v for k, v in os.environ.items() if k not in QUICKER},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 6, done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("error E612: the run needs at least")
    assert said in last
    assert "--config.train.accumulate" in last
    assert "Traceback" not in done.stderr


@pytest.mark.full
def test_22_a_slice_that_does_not_fit_goes_in_bands(tmp_path, monkeypatch):
    weights = released.load(write_weights(tmp_path / "x2.safetensors"))
    rng = np.random.default_rng(0)
    lr = rng.random((2, 60, 20), np.float32)
    ref = rng.random((2, 1, 120, 40), np.float32)
    whole = Engine(weights)(lr, ref)
    made = []
    real = bands.Bands.__call__

    def seen(self, *given):
        made.append(self.rows)
        if self.rows > 16:
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory")
        return real(self, *given)

    monkeypatch.setattr(bands.Bands, "__call__", seen)
    banded = Engine(weights, memory=100_000)(lr, ref)
    assert made == [16, 16]
    size = np.abs(whole.sr).max()
    np.testing.assert_allclose(banded.sr, whole.sr, atol=1e-5 * max(1, size))
    np.testing.assert_array_equal(banded.index, whole.index)

    made.clear()
    monkeypatch.setattr(bands, "rows_within", lambda *_: 40)
    again = Engine(weights, memory=100_000)(lr, ref)
    assert made == [40, 20, 16, 16]  # halved, and kept so
    np.testing.assert_array_equal(again.sr, banded.sr)

    monkeypatch.setattr(bands, "LEAST", 40)
    with pytest.raises(ResourceError, match="does not fit"):
        Engine(weights, memory=100_000)(lr, ref)


def test_22_a_device_without_room_is_one_line():
    with (
        pytest.raises(
            ResourceError, match=r"E605.*: 9.0 GiB more.*accumulate"
        ) as error,
        failures.explained(),
    ):
        raise jax.errors.JaxRuntimeError(f"{OOM}\nmore lines\n")
    assert error.value.exit_code == 6
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("number", [1, 2])
def test_22_an_evaluation_without_room(monkeypatch, number):
    """Each device has one slice: there is no batch to halve, and none is named."""
    shapes = []

    def without_room(variables, hr, ref):
        shapes.append(hr.shape)
        raise jax.errors.JaxRuntimeError(OOM)

    mesh = devices.local_mesh(number)
    made = make_predict(tiny(), scale=2, border=2, method="tiny", mesh=mesh)
    assert made.at_once == number
    slices = table(size=32)
    monkeypatch.setattr(
        evaluate,
        "open_split",
        lambda *_: SimpleNamespace(
            predict=Predict(without_room, made.at_once),
            variables={},
            table=slices,
            pairing=draw_pairing(slices),
            config=load("quickstart_x4"),
        ),
    )
    with pytest.raises(ResourceError) as error:
        evaluate.evaluate_run("run", EvaluationRequest())
    one_line(error.value, "E618", ": 9.0 GiB more to evaluate one slice", "reference")
    assert "accumulate" not in str(error.value)
    assert error.value.exit_code == 6
    assert shapes == [(number, 32, 32, 1)]


@pytest.mark.full
@pytest.mark.timeout(300)
def test_22_a_step_that_asks_for_too_much(tmp_path):
    """By a real limit: the program takes 3 GiB of its 6, and the step asks for 16.

    With `remat` the estimate of before counts no layer, and lets it begin.
    """
    train = [
        *("train.py", *SMALL, f"--workdir={tmp_path / 'run'}"),
        *("--config.data.layout=template", "--config.reference.exclude=slice"),
        *("--config.data.size=256", "--config.train.crop=0"),
        *("--config.train.batch_size=32", "--config.train.steps=1"),
        *("--config.model.kwargs.features=256", "--config.model.kwargs.remat=true"),
    ]
    done = subprocess.run(
        ["bash", "-c", 'ulimit -v 6291456; exec "$@"', "-", sys.executable, *train],
        cwd=ROOT,
        env=environment(tmp_path / "cache"),
        capture_output=True,
        text=True,
        timeout=250,
    )
    result = {"code": done.returncode, "out": done.stdout, "err": done.stderr}
    asked = re.search(r"error E605: .*: (\d+\.\d) GiB more for the step", done.stderr)
    assert not complaint(result, "E605", 6, "accumulate", "--dry_run tells")
    assert asked
    assert 10 < float(asked[1]) < 30
