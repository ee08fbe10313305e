"""The processes of a visit: what each runs, and how it is given its turn."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from benchmarks.gpu import report, stage, train

PARTS = ("check", "match", "step", "train")
# Minutes of nine, without compiling, in the order of the turns; trainings have what is
# left, or times of their own. A kernel, whose compiler may abort, and PyTorch's slow
# compiler are alone.
SHARES = {
    "match jax": 0.3,
    "match torch": 0.3,
    "step jax": 0.5,
    "step torch": 0.3,
    "match kernel": 0.1,
    "step kernel": 0.1,
    "match torch compiled": 0.2,
    "step torch compiled": 0.2,
}
TERMINATING = 3.0  # seconds in which a part may end what it started
TINY_TRAIN = (
    *("--features", "8", "--groups", "1", "--blocks", "2", "--batch", "2"),
    *("--crop", "8", "--workers", "0", "--slices", "2", "--at_once", "2"),
    *("--steps", "60"),
)


@dataclasses.dataclass
class Job:
    """One process of the visit.

    Attributes:
        name: For people and its log.
        part: One of `PARTS`.
        command: What is run.
        share: Seconds of its turn; None for a share of what is left.
        worth: How large that is beside the others'.
        process, log, over, listener, ready: Once it is started.
    """

    name: str
    part: str
    command: list[str]
    share: float | None = None
    worth: float = 1.0
    process: subprocess.Popen[str] | None = None
    log: Path = Path()
    over: bool = False  # it and all that it started
    listener: threading.Thread | None = None
    ready: threading.Event = dataclasses.field(default_factory=threading.Event)

    def start(self, out: Path, niceness: int = 0) -> None:
        """Starts the process.

        Args:
            out: Folder of its log.
            niceness: 0 to 19; what is nicer leaves the processor to the others.
        """
        self.log = out / f"log_{re.sub('[^0-9A-Za-z]+', '_', self.name)}.txt"
        extra = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false", "PYTHONUNBUFFERED": "1"}
        with self.log.open("w", encoding="utf-8") as log:
            self.process = subprocess.Popen(
                self.command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env=os.environ | extra,
                start_new_session=True,
            )
        if niceness:
            with contextlib.suppress(OSError):  # it has ended
                os.setpriority(os.PRIO_PGRP, self.process.pid, niceness)
        self.listener = threading.Thread(target=self._listen, daemon=True)
        self.listener.start()

    def _listen(self) -> None:
        assert self.process is not None
        assert self.process.stdout is not None
        with self.process.stdout as lines:
            for line in lines:
                if line.strip() == stage.READY:
                    self.ready.set()
                else:
                    print(f"  {self.name}: {line.rstrip()}", flush=True)
        self.process.wait()
        self.ready.set()

    def ended(self) -> bool:
        return self.process is not None and self.process.poll() is not None

    def give(self, seconds: float, end: float, beside: list[str] | None = None) -> str:
        """Gives it its turn, and says what became of it.

        Args:
            seconds: Of the turn.
            end: Of `time.monotonic`, which ends it too.
            beside: Names of the jobs that still compile meanwhile.
        """
        assert self.process is not None
        assert self.process.stdin is not None
        if self.ended():
            return self._outcome()
        limit = min(1.25 * seconds + 15, max(0.0, end - time.monotonic()))
        with contextlib.suppress(OSError):  # it has just ended
            turn = {"seconds": seconds, "beside": beside or []}
            self.process.stdin.write(json.dumps(turn) + "\n")
            self.process.stdin.flush()
        return self.finish(limit)

    def finish(self, limit: float) -> str:
        assert self.process is not None
        try:
            self.process.wait(limit)
        except subprocess.TimeoutExpired:
            self.stop()
            return "stopped at its limit; what it had written is kept"
        return self._outcome()

    def _outcome(self) -> str:
        assert self.process is not None
        self._end()
        code = self.process.returncode
        if code == stage.SAID:
            said = self.log.read_text(encoding="utf-8", errors="replace").splitlines()
            return next((x for x in reversed(said) if x.strip()), "it said not why")
        return "done" if not code else f"ended with exit code {code}: see its log"

    def _end(self, patience: float = 0.0) -> None:
        if self.process is not None and not self.over:
            stage.end(self.process, patience=patience)
            self.over = True

    def stop(self) -> None:
        if self.process is None or self.listener is None:
            return
        self._end(patience=TERMINATING)
        if self.process.stdin is not None:
            with contextlib.suppress(OSError):
                self.process.stdin.close()
        self.listener.join(5)


def compiling(args: argparse.Namespace) -> float:
    """Seconds that the parts may compile before the first turn."""
    return min(args.compile, 60 * args.minutes / 2)


@contextlib.contextmanager
def paused(jobs: list[Job]) -> Iterator[None]:
    """Those that still compile wait, so that nothing is timed beside them."""
    running = [j.process for j in jobs if j.process is not None and not j.ended()]
    for process in running:
        stage.send(process, signal.SIGSTOP)
    try:
        yield
    finally:
        for process in running:
            stage.send(process, signal.SIGCONT)


class Training(NamedTuple):
    """A network to train: its turn by worth, or of `seconds`, and flags of its own."""

    row: str
    scale: int
    seed: int = 0
    worth: float = 1.0
    seconds: float | None = None
    flags: tuple[str, ...] = ()

    def name(self) -> str:
        return " ".join((f"train {self.row}:{self.scale}:{self.seed}", *self.flags))


def trained(text: str) -> list[Training]:
    """`ROW:SCALE[:SEED[:WORTH]],... [FLAGS]`; `60s` for WORTH is a fixed time.

    Raises:
        ValueError: If it is none.
    """
    form = r"(\w+):([234])(?::(\d+)(?::(\d*\.?\d+)(s?))?)?"
    listed, *flags = shlex.split(text) or [""]
    trainings = []
    for one in filter(None, listed.split(",")):
        found = re.fullmatch(form, one)
        if found is None or found[1] not in report.NAMES:
            raise ValueError(
                f"--train={one} is no ROW:SCALE[:SEED[:WORTH]]; rows are "
                f"{', '.join(report.NAMES)}, scales 2, 3 and 4"
            )
        turn = {"seconds" if found[5] else "worth": float(found[4] or 1)}
        if not all(turn.values()):
            raise ValueError(
                f"--train={one} has no time: leave it out, or give it more"
            )
        trainings.append(
            Training(
                found[1], int(found[2]), int(found[3] or 0), **turn, flags=tuple(flags)
            )
        )
    return trainings


def jobs_of(args: argparse.Namespace) -> list[Job]:
    """The processes, in the order of their turns."""
    unit = 60 * args.minutes / 9
    tiny = ["--tiny"] if args.tiny else []

    def command(part: str, *more: str) -> list[str]:
        module = [sys.executable, "-m", f"benchmarks.gpu.{part}"]
        return [*module, "--out", str(args.out), *more]

    found = []
    if "check" in args.parts:
        limit = ["--seconds", str(compiling(args))]
        found.append(Job("check", "check", command("check", *tiny, *limit)))
    for name, minutes in SHARES.items():
        part, _, peer = name.partition(" ")
        if part not in args.parts:
            continue
        more = ["--peer", peer.replace(" ", "_"), *tiny]
        more += ["--compiling", str(compiling(args))]
        if part == "step":
            more += ["--cache", str(args.cache)]
            if args.tiny:
                more += ["--variants", "1", "--repeats", "3"]
        found.append(Job(name, part, command(part, *more), minutes * unit))
    if "train" in args.parts and args.prepared is not None:
        for one in args.train:
            more = ["--row", one.row, "--scale", str(one.scale)]
            more += ["--seed", str(one.seed), "--prepared", str(args.prepared)]
            more += ["--cache", str(args.cache), *args.more, *one.flags]
            more += TINY_TRAIN if args.tiny else []
            call = command("train", *more)
            found.append(Job(one.name(), "train", call, one.seconds, one.worth))
    return found


def check_trainings(jobs: list[Job]) -> None:
    """Reads the flags of all trainings, as they will.

    Raises:
        SystemExit: If one is no flag of theirs; argparse says which.
        ValueError: If two would write the same files.
    """
    names: dict[str, str] = {}
    for job in (j for j in jobs if j.part == "train"):
        name = train.name_of(train.options(job.command[3:]))
        if name in names:
            raise ValueError(
                f"--train: {names[name]!r} and {job.name!r} both write {name}.json: "
                "give them other seeds or sizes, or each its own visit"
            )
        names[name] = job.name


def share_of(job: Job, waiting: list[Job], left: float) -> float:
    """Seconds of a training by worth, of those left to it and all that wait.

    What waits for a time of its own leaves it at least a half: it may never be ready.
    """
    timed = sum(j.share or 0.0 for j in waiting)
    free = max(left - 2 - timed, (left - 2) / 2)
    return free * job.worth / sum(j.worth for j in waiting if j.share is None)
