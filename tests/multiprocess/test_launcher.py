"""`scripts/launch.sh`: what it starts, how it stops, what it returns."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

from tests.data_fixtures import fastmri_root
from tests.e2e.commands import ROOT, SMALL, environment
from tests.multiprocess.test_two_processes import free_port

pytestmark = pytest.mark.timeout(300)
REMOTE = '#!/bin/sh\necho "to $1"\nshift\nexec bash -c "$*"\n'
CHILD = """#!/bin/bash
for last; do :; done
trap 'echo "$last is told"; touch stop; exit 75' TERM
touch "began $last"
while [ ! -e stop ]; do sleep 0.05; done
exit 75
"""


def launch(arguments, folder, cache=None, **more):
    remote = folder / "remote"
    remote.write_text(REMOTE)
    remote.chmod(0o755)
    return subprocess.Popen(
        [str(ROOT / "scripts/launch.sh"), *arguments],
        cwd=folder if cache is None else ROOT,
        env=(os.environ if cache is None else environment(cache))
        | {"REMOTE_SHELL": str(remote)}
        | more,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_two_processes_of_one_run(tmp_path):
    root = fastmri_root(tmp_path / "data", train=4, val=2)
    argv = [sys.executable, "train.py", *SMALL, f"--config.data.root={root}"]
    process = launch(
        [
            "127.0.0.1",
            "127.0.0.1",
            "--",
            *argv,
            "--dry_run",
            f"--workdir={tmp_path / 'run'}",
        ],
        tmp_path,
        tmp_path / "cache",
        PORT=str(free_port()),
    )
    out, said = process.communicate(timeout=250)
    assert process.returncode == 0, said
    assert "to 127.0.0.1" in out
    assert out.count("of 2 process(es)") == 1
    assert not (tmp_path / "run").exists()


def test_first_process_is_told_to_stop_and_all_are_waited_for(tmp_path):
    child = tmp_path / "a child"
    child.write_text(CHILD)
    child.chmod(0o755)
    process = launch(["one", "two", "three", "--", str(child), "a  b"], tmp_path)
    while len(list(tmp_path.glob("began --process=*"))) < 3:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    out, said = process.communicate(timeout=60)
    assert process.returncode == 75
    assert (out.count("is told"), said) == (1, "")
    assert {"to two", "to three", "--process=0 is told"} <= set(out.splitlines())


def test_failure_of_one_is_named(tmp_path):
    command = [
        "bash",
        "-c",
        'for x; do :; done; [ "$x" != --process=1 ] || exit 9',
        "x",
    ]
    process = launch(["one", "two", "--", *command], tmp_path)
    _, said = process.communicate(timeout=60)
    assert (process.returncode, said) == (9, "process 1 on two ended with 9\n")


@pytest.mark.parametrize(
    "arguments", [[], ["--"], ["one"], ["--", "true"], ["one", "--"]]
)
def test_usage(arguments, tmp_path):
    process = launch(arguments, tmp_path)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 2
    assert said.splitlines()[-1].startswith("error E241: usage")
