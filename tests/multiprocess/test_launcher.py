"""`scripts/launch.sh`: what it starts, how it stops, what it returns."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

from tests.data_fixtures import fastmri_root
from tests.e2e.commands import ROOT, environment
from tests.multiprocess.test_two_processes import free_port

pytestmark = pytest.mark.timeout(300)
# What is launched does not matter, so it is the smallest network.
QUICK = (
    "--config=configs/srcnn_x4.py:small",
    "--config.train.crop=8",
    "--config.train.batch_size=2",
    "--config.data.size=64",
)
# A machine that has what is passed on, and nothing of these two besides.
REMOTE = """#!/bin/sh
echo "to $1"
shift
exec env -u NCCL_DEBUG -u OTHER bash -c "$*"
"""
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
    argv = [sys.executable, "train.py", *QUICK, f"--config.data.root={root}"]
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


@pytest.mark.parametrize(("code", "requeued"), [(0, ""), (75, "requeue 7\n"), (6, "")])
def test_slurm_queues_again_what_was_saved(code, requeued, tmp_path):
    log = tmp_path / "log"
    for name, body in (
        ("srun", f'printf "%s|" "$@" > "{log}"; exit {code}'),
        ("scontrol", f'echo "$@" > "{log}.requeued"'),
    ):
        (tmp_path / name).write_text(f"#!/bin/bash\n{body}\n")
        (tmp_path / name).chmod(0o755)
    done = subprocess.run(
        [
            "bash",
            ROOT / "scripts/slurm.sbatch",
            "--config",
            "x",
            "--config.data.root=a  b",
        ],
        env=os.environ
        | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_JOB_ID": "7"},
        check=False,
        timeout=60,
    )
    assert done.returncode == code
    assert log.read_text().endswith("train.py|--config|x|--config.data.root=a  b|")
    again = tmp_path / "log.requeued"
    assert (again.read_text() if again.exists() else "") == requeued


def test_settings_of_the_runtime_reach_the_others(tmp_path):
    show = ["bash", "-c", 'echo "$NCCL_DEBUG $OTHER"', "x"]
    process = launch(
        ["one", "two", "--", *show], tmp_path, NCCL_DEBUG="INFO  x", OTHER="here"
    )
    out, said = process.communicate(timeout=60)
    assert (process.returncode, said) == (0, "")
    assert sorted(out.splitlines()) == ["INFO  x ", "INFO  x here", "to two"]
