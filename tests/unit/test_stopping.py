"""What a signal does before the first step."""

from __future__ import annotations

import signal

import pytest

from daasr_jax.errors import Preempted
from daasr_jax.runtime.stopping import SIGNALS, StopRequest


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
