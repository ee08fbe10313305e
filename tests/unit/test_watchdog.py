"""A run that hangs says where and ends."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest

from daasr_jax.runtime.watchdog import Watchdog

HANGS = """
import threading, time
from daasr_jax.runtime.watchdog import Watchdog

def a_call_that_never_returns():
    threading.Event().wait()

with Watchdog(1, notice=0.3, hint="a hint.") as watchdog:
    for step in range(4):
        watchdog.beat(f"step {step}", short=True)
        time.sleep(0.4 if step == 1 else 0.01)
    a_call_that_never_returns()
"""


@pytest.mark.timeout(60)
def test_hanging_run_ends_with_stacks_and_one_line():
    done = subprocess.run(
        [sys.executable, "-c", HANGS], capture_output=True, text=True, timeout=50
    )
    assert done.returncode == 6
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("error E607: nothing happened for 1 s in step 3; ")
    assert "a_call_that_never_returns" in done.stderr
    hints = [x for x in done.stderr.splitlines() if x.endswith(": a hint.")]
    assert [x.split(" s in ")[1].split(":")[0] for x in hints] == ["step 1", "step 3"]


@pytest.mark.parametrize("seconds", [0, 0.2])
def test_beaten_in_time_or_off_it_does_nothing(seconds, capfd):
    with Watchdog(seconds) as watchdog:
        for step in range(10):
            watchdog.beat(f"step {step}")
            time.sleep(0.05)
    time.sleep(0.3)  # and nothing after the end
    assert capfd.readouterr() == ("", "")
