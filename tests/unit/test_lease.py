"""Leases: one holder, given up by the dead, kept by the living."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time

import pytest

from daasr_jax.files import take_lock
from daasr_jax.runtime import lease
from daasr_jax.runtime.lease import holder, leased

HOLD = """
import sys, time
from pathlib import Path
from daasr_jax.runtime.lease import leased
with leased(Path(sys.argv[1])) as mine:
    print(mine, flush=True)
    time.sleep(60)
"""


def test_one_holder(tmp_path):
    path = tmp_path / "a" / "cell"
    with leased(path) as mine, leased(path) as second:
        assert mine
        assert not second
        assert f"process {os.getpid()}" in holder(path)
    assert {p.name for p in path.parent.iterdir()} <= {".lock"}
    assert holder(path) == ""


def test_a_dead_process_gives_it_up_at_once(tmp_path):
    path = tmp_path / "cell"
    other = subprocess.Popen([sys.executable, "-c", HOLD, str(path)], text=True,
                             stdout=subprocess.PIPE)  # fmt: skip
    assert other.stdout is not None
    assert other.stdout.readline() == "True\n"
    with leased(path) as mine:
        assert not mine
    other.kill()
    other.communicate()
    with leased(path) as mine:
        assert mine


def test_a_process_of_a_machine_of_the_same_name_is_not_dead(tmp_path, monkeypatch):
    """Its number is that of no process here."""
    path, boot = tmp_path / "cell", tmp_path / "boot_id"
    boot.write_text("another\n")
    monkeypatch.setattr(lease, "_BOOT", boot)
    other = json.dumps({"host": lease._here(), "process": 2**30, "key": "k"})
    monkeypatch.undo()
    path.write_text(other)
    with leased(path) as mine:
        assert not mine
    path.write_text(other.replace(" another", f" {lease._BOOT.read_text().strip()}"))
    with leased(path) as mine:
        assert mine


ELSEWHERE = '{"host": "elsewhere", "process": 1, "key": "k"}'


@pytest.mark.parametrize("content", [ELSEWHERE, ""])
def test_a_lease_is_given_up_when_it_is_stale(tmp_path, content):
    """Of another machine that is silent, or that went down while it wrote."""
    path = tmp_path / "cell"
    path.write_text(content)
    with leased(path, stale=30) as mine:
        assert not mine
    past = time.time() - 60
    os.utime(path, (past, past))
    with leased(path, stale=30) as mine:
        assert mine


def test_no_living_lease_is_removed_by_one_that_was_late(tmp_path, monkeypatch):
    """The dead holder's lease was replaced while this process waited its turn."""
    path = tmp_path / "cell"
    path.write_text('{"host": "elsewhere", "process": 1, "key": "dead"}')
    os.utime(path, (1, 1))
    living = '{"host": "elsewhere", "process": 2, "key": "living"}'

    def late(lock, *, wait):
        path.write_text(living)
        return take_lock(lock, wait=wait)

    monkeypatch.setattr(lease, "take_lock", late)
    with leased(path, stale=30) as mine:
        assert not mine
    assert path.read_text() == living


def test_the_living_keep_it(tmp_path):
    path = tmp_path / "cell"
    with leased(path, beat=0.05, stale=1.0):
        before = path.stat().st_mtime_ns
        time.sleep(0.3)
        assert path.stat().st_mtime_ns > before


def test_a_lease_that_was_taken_is_not_removed(tmp_path):
    path = tmp_path / "cell"
    with leased(path, beat=0.05) as mine:
        assert mine
        path.write_text('{"host": "elsewhere", "process": 1, "key": "k"}')
        time.sleep(0.2)
    assert holder(path) == "process 1 on elsewhere"


def test_many_at_once_have_one_winner(tmp_path):
    path = tmp_path / "cell"
    path.write_text('{"host": "elsewhere", "process": 1, "key": "k"}')
    os.utime(path, (1, 1))
    won, begin, end = [], threading.Barrier(8), threading.Barrier(8)

    def take():
        begin.wait()
        with leased(path, stale=5) as mine:
            won.append(mine)
            end.wait()

    threads = [threading.Thread(target=take) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(won) == 1
