"""What a signal does before the first step, and in a call that never returns."""

from __future__ import annotations

import signal
import subprocess
import sys
import time

import pytest

from daasr_jax.errors import Preempted
from daasr_jax.runtime.stopping import SIGNALS, StopRequest

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


@pytest.mark.parametrize("number", SIGNALS)
def test_before_the_first_step_it_leaves_at_once(number):
    before = [signal.getsignal(x) for x in SIGNALS]
    says = rf"E702.*{number.name} before the first step"
    with pytest.raises(Preempted, match=says), StopRequest():
        signal.raise_signal(number)
    assert [signal.getsignal(x) for x in SIGNALS] == before
    assert signal.set_wakeup_fd(-1) == -1


def test_an_interrupt_of_another_origin_is_none():
    with pytest.raises(KeyboardInterrupt), StopRequest():
        raise KeyboardInterrupt


def test_after_it_the_run_is_told():
    with StopRequest() as stop:
        stop.begin()
        assert stop.requested == ""
        signal.raise_signal(signal.SIGUSR1)
        signal.raise_signal(signal.SIGTERM)
        assert stop.requested == "SIGUSR1"


@pytest.mark.timeout(60)
@pytest.mark.parametrize("second", [signal.SIGINT, signal.SIGTERM])
def test_a_second_signal_ends_a_call_that_never_returns(second):
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
