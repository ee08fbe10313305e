"""Fault 13: SIGTERM, SIGUSR1 or Ctrl-C in a training run.

Expected: the step is finished and saved, and the process exits with code 75; the same
command goes on. A second signal ends the process at once. Before the first step there
is nothing to save, and the first signal ends it.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time

import pytest

from daasr_jax.errors import Preempted
from daasr_jax.runtime.stopping import SIGNALS, StopRequest
from tests.data_fixtures import fastmri_root
from tests.e2e.commands import SMALL, rows, start, until_saved
from tests.unit.test_training import run_loop

HANGS = """
import ctypes
from daasr_jax.runtime.stopping import StopRequest

library, mutex = ctypes.CDLL(None), ctypes.create_string_buffer(64)
with StopRequest() as stop:
    stop.begin()
    library.pthread_mutex_lock(mutex)
    print("ready", flush=True)
    library.pthread_mutex_lock(mutex)  # for ever, whatever comes
"""


@pytest.mark.full
@pytest.mark.timeout(400)
def test_13_a_command_saves_and_exits_with_75(tmp_path):
    root, run = fastmri_root(tmp_path / "data", train=4, val=2), tmp_path / "run"
    process = start(
        [
            *("train.py", *SMALL, f"--config.data.root={root}", f"--workdir={run}"),
            *("--config.train.steps=100000", "--config.train.checkpoint_every=5"),
            "--config.train.validate_every_epochs=100000",
        ],
        tmp_path / "cache",
    )
    until_saved(process, run, 5)
    process.send_signal(signal.SIGUSR1)
    begun = time.monotonic()
    _, said = process.communicate(timeout=100)
    assert process.returncode == 75, said
    assert time.monotonic() - begun < 60  # of the grace that a scheduler gives
    last = said.strip().splitlines()[-1]
    assert last.startswith("error E701: stopped by SIGUSR1 at step ")
    step = int(last.split("at step ")[1].split(",")[0])
    assert max(row["step"] for row in rows(run)) == step
    assert json.loads((run / f"manifests/{step}.json").read_text())
    assert "Traceback" not in said


@pytest.mark.parametrize("number", SIGNALS)
def test_13_what_follows_is_the_run_that_was_never_stopped(tmp_path, number):
    def validate(state, beat):
        if not len(list(tmp_path.glob("stopped"))):
            (tmp_path / "stopped").touch()
            signal.raise_signal(number)
        return {"psnr": float(state.step)}

    says = rf"E701: stopped by {number.name} at step 4, saved; run the same command"
    with pytest.raises(Preempted, match=says) as caught:
        run_loop(tmp_path, range(8), validate=validate)
    assert caught.value.exit_code == 75
    state = run_loop(tmp_path, range(8), validate=validate)
    assert float(state.gen["w"][0]) == sum(range(8))
    steps = [row["step"] for row in rows(tmp_path) if "g/total" in row]
    assert steps == list(range(1, 9))


@pytest.mark.parametrize("number", SIGNALS)
def test_13_before_the_first_step_it_leaves_at_once(number):
    says = rf"E702.*{number.name} before the first step"
    with pytest.raises(Preempted, match=says) as caught, StopRequest():
        signal.raise_signal(number)
    assert caught.value.exit_code == 75


@pytest.mark.timeout(60)
@pytest.mark.parametrize("second", [signal.SIGINT, signal.SIGTERM])
def test_13_a_second_signal_ends_a_call_that_never_returns(second):
    process = subprocess.Popen(
        [sys.executable, "-c", HANGS],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGINT)
    time.sleep(1.5)
    assert process.poll() is None
    process.send_signal(second)
    _, said = process.communicate(timeout=20)
    assert process.returncode == 128 + second
    assert said == f"left at once by a second {second.name}\n"
