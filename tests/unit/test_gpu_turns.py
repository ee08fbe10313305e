"""The processes of a visit to a GPU: their turns, their ends and what they leave."""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks.gpu import __main__ as plan
from benchmarks.gpu import check, report, stage
from benchmarks.gpu import jobs as turns
from tests import bare


def python(code: str) -> list[str]:
    head = "import sys, time; from benchmarks.gpu import stage; "
    return [sys.executable, "-c", head + code]


def arguments(tmp_path, **changes):
    given = {
        "minutes": 9.0, "tiny": False, "commit": "", "parts": list(turns.PARTS),
        "said": "", "compile": 150.0,
        "out": tmp_path / "out", "cache": tmp_path / "cache", "more": [],
        "prepared": tmp_path / "set.npz",
        "train": turns.trained("fast:4,edsr:4:1:0.5"),
    }  # fmt: skip
    return argparse.Namespace(**given | changes)


def test_parts_take_their_turns_by_worth(tmp_path):
    jobs = turns.jobs_of(arguments(tmp_path))
    assert [j.name for j in jobs] == [
        "check", "match jax", "match torch", "step jax", "step torch",
        "match kernel", "step kernel", "match torch compiled", "step torch compiled",
        "train fast:4:0", "train edsr:4:1",
    ]  # fmt: skip
    assert [j.worth for j in jobs[-2:]] == [1.0, 0.5]
    shares = sum(j.share or 0 for j in jobs)
    assert shares == pytest.approx(120)
    assert turns.compiling(arguments(tmp_path)) == 150
    assert turns.compiling(arguments(tmp_path, minutes=2)) == 60
    parts = {j.part for j in turns.jobs_of(arguments(tmp_path, prepared=None))}
    assert parts == {"check", "match", "step"}


def test_trainings_have_flags_and_times_of_their_own(tmp_path):
    texts = ("fast:4:0:60s,edsr:2", "fast:3 --features 32 --groups 4")
    given = [one for text in texts for one in turns.trained(text)]
    more = ["--features", "48", "--workers", "2"]
    jobs = turns.jobs_of(arguments(tmp_path, parts=["train"], train=given, more=more))
    assert [j.name for j in jobs] == [
        "train fast:4:0", "train edsr:2:0", "train fast:3:0 --features 32 --groups 4",
    ]  # fmt: skip
    assert [j.share for j in jobs] == [60.0, None, None]
    assert turns.share_of(jobs[1], jobs, 202) == pytest.approx((200 - 60) / 2)
    assert "--features 48 --workers 2" in " ".join(jobs[0].command)
    assert jobs[2].command[-4:] == ["--features", "32", "--groups", "4"]  # the last win


def test_a_visit_without_a_set_says_so_at_its_end(tmp_path):
    given = arguments(tmp_path, prepared=None, parts=["train"])
    assert plan.visit(given) == {"train": "left out: no --prepared FILE"}
    assert "- train: left out: no --prepared FILE" in report.make(given.out)[0]


def test_a_training_leaves_the_timed_parts_their_shares(tmp_path):
    jobs = turns.jobs_of(arguments(tmp_path))[1:]
    fast, edsr = jobs[-2:]
    assert turns.share_of(fast, jobs, 452) == pytest.approx((450 - 120) / 1.5)
    assert turns.share_of(fast, [fast, edsr], 452) == pytest.approx(450 / 1.5)
    assert turns.share_of(edsr, [edsr, *jobs[:8]], 102) == 50  # no more than half


def test_a_turn_ends_with_the_visit(tmp_path):
    job = turns.Job("hangs", "step", python("stage.turn(None); time.sleep(600)"), 9.0)
    job.start(tmp_path)
    assert job.ready.wait(60)
    begin = time.monotonic()
    became = job.give(9.0, begin + 0.5)
    assert time.monotonic() - begin < 0.5 + turns.TERMINATING + 2
    assert became.startswith("stopped at its limit")


def state_of(process: int) -> str:
    """Letter of /proc: S sleeps, T is stopped; empty where it is gone."""
    try:
        found = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return ""
    return "" if found in "ZX" else found


def until(condition, seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


CHILD = (
    "import os, subprocess; "
    "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)']); "
    "open({path!r} + '.new', 'w').write(str(child.pid)); "
    "os.rename({path!r} + '.new', {path!r}); "
)


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="no /proc")
@pytest.mark.parametrize("last", ["time.sleep(600)", "sys.exit(3)"])
def test_what_a_part_started_is_paused_and_ends_with_it(tmp_path, last):
    path = tmp_path / "child"
    job = turns.Job("parent", "step", python(CHILD.format(path=str(path)) + last), 1.0)
    job.start(tmp_path)
    until(path.exists)
    child = int(path.read_text())
    if "sleep" in last:
        with turns.paused([job]):
            until(lambda: state_of(child) == "T")
        until(lambda: state_of(child) == "S")
    else:  # what it left behind is gone when its turn is over, before the visit is
        until(job.ended)
        assert job.give(1.0, time.monotonic() + 30).startswith("ended with exit code 3")
        until(lambda: not state_of(child))
    job.stop()
    until(lambda: not state_of(child))


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="no /proc")
@pytest.mark.parametrize("limit", [3.0, 600.0])
def test_what_the_check_started_ends_with_it(tmp_path, limit):
    """At its own limit, and when the visit stops it."""
    path = tmp_path / "child"
    command = python(CHILD.format(path=str(path)) + "time.sleep(600)")
    if limit < 600:
        assert check.run(command, tmp_path / "log", limit) is None
    else:
        code = "import signal; from pathlib import Path; from benchmarks.gpu import "
        code += "check; signal.signal(signal.SIGTERM, lambda *_: sys.exit(143)); "
        code += f"check.run({command!r}, Path({str(tmp_path / 'log')!r}), 600)"
        job = turns.Job("check", "check", python(code))
        job.start(tmp_path)
        until(path.exists)
        job.stop()
    until(lambda: not state_of(int(path.read_text())))


@pytest.mark.full
def test_a_part_that_fails_or_hangs_is_a_line(tmp_path, monkeypatch):
    jobs = [
        turns.Job("fails", "step", python("sys.exit('no such card')"), 1.0),
        turns.Job("late", "step", python("time.sleep(600)"), 1.0),
        turns.Job("works", "step", python("stage.turn(None)"), 1.0),
    ]
    monkeypatch.setattr(turns, "jobs_of", lambda args: jobs)
    became = plan.visit(arguments(tmp_path, minutes=0.4, compile=4.0))
    assert became == {
        "fails": "ended with exit code 1: see its log",
        "late": "left out: still compiling",
        "works": "done",
    }
    assert "no such card" in (tmp_path / "out" / "log_fails.txt").read_text()
    assert all(j.process.poll() is not None for j in jobs)
    text, _ = report.make(tmp_path / "out")
    assert "- fails: ended with exit code 1" in text
    for part in (
        "tests marked `gpu`, patch search,",
        "training step, networks trained.",
    ):
        assert part in text


INTERRUPTED = """
import sys

from benchmarks.gpu import __main__ as plan, jobs

def job(name, code):
    head = "import sys, time; from benchmarks.gpu import stage; "
    return jobs.Job(name, "step", [sys.executable, "-c", head + code], 1.0)

jobs.jobs_of = lambda args: [
    job("works", "stage.turn(None)"),
    job("hangs", "stage.turn(None); time.sleep(600)"),
    job("waits", "stage.turn(None)"),
]
plan.main()
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_interrupted_visit_has_its_page(tmp_path, number):
    out = tmp_path / "out"
    visit = subprocess.Popen(
        [sys.executable, "-c", INTERRUPTED, "--out", str(out), "--parts", "step"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert visit.stdout is not None
    line = next(x for x in visit.stdout if x.startswith("hangs: its turn"))
    assert line
    visit.send_signal(number)
    said, errors = visit.communicate(timeout=60)
    assert visit.returncode == 128 + number
    assert "Traceback" not in errors
    last = (
        "left out or not done: hangs (the visit was interrupted in its turn; what it "
        "had written is kept); waits (left out: the visit was interrupted)"
    )
    assert said.splitlines()[-1] == last
    assert "- waits: left out" in (out / "gpu.md").read_text()
    again = subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu", "--report", "--out", str(out)],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert again.stdout.splitlines()[-1] == last


def test_a_visit_under_nohup_outlives_the_terminal():
    names = signal.SIGTERM, signal.SIGHUP
    before = {name: signal.getsignal(name) for name in names}
    try:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        plan.end_by_signals()
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
        with pytest.raises(SystemExit) as caught:
            signal.raise_signal(signal.SIGTERM)
        assert caught.value.code == 143
    finally:
        for name, handler in before.items():
            signal.signal(name, handler)


def test_a_turn_names_who_compiles_beside_it(tmp_path):
    path = tmp_path / "turn"
    code = f"open({str(path)!r}, 'w').write(repr(tuple(stage.turn(None))))"
    job = turns.Job("trains", "train", python(code))
    job.start(tmp_path)
    assert job.give(7.5, time.monotonic() + 60, ["step torch"]) == "done"
    job.stop()
    assert path.read_text() == "(7.5, ['step torch'])"


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="no /proc")
def test_what_compiles_beside_the_tests_is_nicer(tmp_path):
    job = turns.Job("compiles", "step", python("time.sleep(600)"))
    job.start(tmp_path, plan.NICE)
    try:
        assert os.getpriority(os.PRIO_PROCESS, job.process.pid) == plan.NICE
    finally:
        job.stop()


def test_a_missing_package_is_a_line(tmp_path):
    job = turns.Job("lacks", "step", python("stage.needs('json', 'no_such_thing')"))
    job.start(tmp_path)
    assert job.finish(60) == "no_such_thing is not installed"
    job.stop()


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("check --tiny", "pytest is not installed"),
        ("match --tiny --peer torch", "torch is not installed"),
        ("step --tiny --peer torch_compiled", "torch is not installed"),
        ("match --tiny --peer kernel", "the kernel is for GPUs, and JAX finds a cpu"),
    ],
)
def test_a_part_that_cannot_run_says_why(tmp_path, command, words):
    part, *options = command.split()
    done = subprocess.run(
        [sys.executable, "-m", f"benchmarks.gpu.{part}", *options, "--out",
         str(tmp_path)],
        env=bare.environment(tmp_path, "pytest", "torch"),
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == stage.SAID, done.stderr
    assert done.stderr.splitlines()[-1] == words


def test_results_are_replaced_whole(tmp_path):
    path = tmp_path / "deep" / "a.json"
    stage.write(path, {"a": 1})
    stage.write(path, {"a": 2})
    assert json.loads(path.read_text()) == {"a": 2}
    assert os.listdir(path.parent) == ["a.json"]


def test_times_are_of_a_call():
    found = stage.median(lambda: time.sleep(0.01), repeats=5, seconds=1.0)
    assert found["repeats"] == 5
    assert 10 <= found["min_ms"] <= found["ms"] <= found["max_ms"]


def test_what_is_not_timed_is_a_row():
    def fails():
        raise RuntimeError("no\n memory")

    rows: list[dict] = []
    made = [({"peer": "a"}, lambda: None), ({"peer": "b"}, fails)]
    how = {"seconds": 0.1, "repeats": 2}
    ran = list(stage.measured(made, rows, end=time.monotonic() + 9, **how))
    assert [r["peer"] for r in ran] == ["a"]
    assert rows[1] == {"peer": "b", "not_run": "no memory"}
    assert not list(stage.measured(made, rows, end=time.monotonic() - 1, **how))
    assert rows[2]["not_run"] == "no time was left"
