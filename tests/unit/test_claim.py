"""A folder of a run belongs to one program at a time."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from filelock import FileLock

from configs import brain_x4_small
from daasr_jax.errors import ConfigError, ResourceError
from daasr_jax.experiment import train
from daasr_jax.files import NO_LOCKS
from daasr_jax.runtime import claim
from tests.data_fixtures import one_line

ROOT = Path(__file__).parents[2]
HOLDS = """
import sys, time
from pathlib import Path
from daasr_jax.runtime.claim import alone

with alone(Path(sys.argv[1])):
    print("ready", flush=True)
    time.sleep(100)
"""


def refused(folder):
    with pytest.raises(ResourceError, match="E614") as caught, claim.alone(folder):
        pass
    return caught.value


def test_a_second_program_is_told(tmp_path, monkeypatch):
    """Also that of a killed one is free again."""
    monkeypatch.setattr(train.checks, "setup", lambda config: config)
    with subprocess.Popen(
        [sys.executable, "-c", HOLDS, str(tmp_path)],
        cwd=ROOT,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
        stdout=subprocess.PIPE,
        text=True,
    ) as first:
        assert first.stdout.readline() == "ready\n"
        error = refused(tmp_path)
        one_line(error, f"process {first.pid} on {os.uname().nodename} since", "wait")
        with pytest.raises(ResourceError, match="E614"):
            train.train_run(brain_x4_small.get_config(), str(tmp_path))
        assert sorted(p.name for p in tmp_path.iterdir()) == [".lock", ".running"]
        first.send_signal(signal.SIGKILL)
    with claim.alone(tmp_path):
        refused(tmp_path)
    with claim.alone(tmp_path):
        pass
    assert [p.name for p in tmp_path.iterdir()] == [".lock"]


@pytest.mark.parametrize("number", NO_LOCKS)
def test_a_file_system_without_locks(tmp_path, monkeypatch, number):
    def fails(*_, **__):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(FileLock, "acquire", fails)
    with claim.alone(tmp_path):
        pass


@pytest.mark.parametrize(
    ("number", "code", "kind"),
    [
        (errno.EACCES, "E209", ConfigError),
        (errno.EROFS, "E209", ConfigError),
        (errno.ENOSPC, "E617", ResourceError),
        (errno.EDQUOT, "E617", ResourceError),
    ],
)
def test_a_folder_that_cannot_be_written(tmp_path, monkeypatch, number, code, kind):
    def fails(*_, **__):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(FileLock, "acquire", fails)
    with pytest.raises(kind, match=code) as caught, claim.alone(tmp_path):
        pass
    one_line(caught.value, os.strerror(number), tmp_path)


@pytest.mark.parametrize("here", [0, 1])
def test_one_process_holds_it_for_all_of_a_run(tmp_path, monkeypatch, here):
    monkeypatch.setattr(claim.jax, "process_count", lambda: 2)
    monkeypatch.setattr(claim.jax, "process_index", lambda: here)
    answers = []

    def broadcast(value):
        answers.append(int(value))
        return value if here == 0 else claim._TAKEN  # what the first one found

    monkeypatch.setattr(claim.multihost_utils, "broadcast_one_to_all", broadcast)
    if here == 0:
        with claim.alone(tmp_path):
            refused(tmp_path)
        assert answers == [claim._FREE, claim._TAKEN]
    else:
        one_line(refused(tmp_path), "another program")
        assert list(tmp_path.iterdir()) == []
