"""The crash drill: one run of training, interrupted at random, against one in peace.

Both train a small network on the template. One is killed (-9), terminated (TERM) and
interrupted (INT) at random moments, twenty in all. Once its disk fills, and once a bit
of its newest checkpoint is flipped. Each time the same command goes on. The drill fails
unless both come to their last step, every array of the two last checkpoints is equal to
the last bit, the logs have every step once, the flipped checkpoint is found and set
aside, no exit code is another than the manual gives, and no traceback is printed.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import platform
import random
import re
import resource
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).parents[1]
COMMAND = "make drill DRILL=--seed={seed}"
SMALL = (
    "--config=configs/quickstart_x4.py",
    "--config.model.kwargs.features=8",
    "--config.model.kwargs.groups=1",
    "--config.data.size=64",
    "--config.train.crop=8",
    "--config.train.batch_size=2",
    "--config.train.log_every=1",
    "--config.train.checkpoint_every=5",
    "--config.train.validate_every_epochs=20",
)
SIGNALS = [signal.SIGKILL] * 7 + [signal.SIGTERM] * 7 + [signal.SIGINT] * 6
# What a command ends with: 75 where the state was saved; before the first step of
# training nothing is to be saved, and the signal itself ends it (130 is Ctrl-C).
ENDS = {
    signal.SIGKILL: (-signal.SIGKILL,),
    signal.SIGTERM: (75, -signal.SIGTERM),
    signal.SIGINT: (75, 130, -signal.SIGINT),
}
FULL, FLIP = "disk full", "bit flipped"
_DISK_BYTES = 48 * 2**20
_PATIENCE_SECONDS = 240
_NUMBER = "number of the checkpoint"


class DrillError(Exception):
    """The drill found a fault."""


@dataclasses.dataclass
class Event:
    """One interruption.

    Attributes:
        kind: A signal, `FULL` or `FLIP`.
        at: Step of the log after which it comes; 0 while the program starts.
        delay: Seconds after that.
        seen: Last step of the log when it came.
        code: What the program ended with.
        words: The line of its error, or what was done.
        began: Step after which that start of the program went on.
        said: All that it said.
        flipped: Step of the checkpoint that was flipped.
    """

    kind: str | signal.Signals
    at: int
    delay: float
    seen: int = 0
    code: int = 0
    words: str = ""
    began: int = 0
    said: str = ""
    flipped: int = 0

    @property
    def name(self) -> str:
        """For the table."""
        return self.kind.name if isinstance(self.kind, signal.Signals) else self.kind


def main() -> int:
    """Returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=None, help="of the moments")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--out", type=Path, default=None, help="page to write (.md)")
    given = parser.parse_args()
    seed = secrets.randbits(32) if given.seed is None else given.seed
    begin = time.monotonic()
    print(COMMAND.format(seed=seed), flush=True)
    with tempfile.TemporaryDirectory() as name, _disk(Path(name)) as (disk, mounted):
        folder = Path(name)
        try:
            events, arrays = drill(folder, disk, mounted, seed, given.steps)
        except DrillError as error:
            print(f"failed: {error}")
            return 1
    minutes = (time.monotonic() - begin) / 60
    page = report(events, arrays, seed, given.steps, minutes, mounted)
    if given.out:
        given.out.write_text(page, encoding="utf-8")
    print(page)
    return 0


def drill(
    folder: Path, disk: Path, mounted: bool, seed: int, steps: int
) -> tuple[list[Event], int]:
    """Both runs; the events as they came, and how many arrays are equal.

    Raises:
        DrillError: If anything is not as it should be.
    """
    rng = random.Random(seed)
    whole, parts = folder / "whole", disk / "run"
    run = Run(whole, folder, steps)
    code, said = run.finish()
    if code:
        raise DrillError(f"the run in peace ended with {code}: {said}")
    run = Run(parts, folder, steps)
    events = planned(rng, steps)
    for number, event in enumerate(events, 1):
        happen(event, run, rng, mounted)
        print(f"{number:>2} {_row(event)}", flush=True)
    code, said = run.finish()
    if code:
        raise DrillError(f"the last start ended with {code}: {said}")
    check_flips(events, said, parts)
    return events, compare(whole, parts, steps)


def check_flips(events: list[Event], last: str, workdir: Path) -> None:
    """Checks that every flipped checkpoint was told and set aside by a later start.

    Args:
        events: As they came.
        last: What the last start said.
        workdir: Of the run.

    Raises:
        DrillError: If one was not.
    """
    for number, event in enumerate(events, 1):
        if event.kind != FLIP:
            continue
        later = "".join([e.said for e in events[number:]] + [last])
        told = f"checkpoints/{event.flipped}isdamaged" in "".join(later.split())
        aside = workdir.glob(f"checkpoints_set_aside/{event.flipped}_damaged_*")
        if not told or not any(aside):
            raise DrillError(
                f"the flipped checkpoint {event.flipped} was "
                + ("told and not set aside" if told else "not told")
                + f": {later[-2000:]}"
            )


def planned(rng: random.Random, steps: int) -> list[Event]:
    """The interruptions in the order of their steps; about a quarter as it starts."""
    kinds: list[str | signal.Signals] = [*SIGNALS]
    rng.shuffle(kinds)
    for kind in (FULL, FLIP):
        kinds.insert(rng.randrange(6, len(kinds)), kind)
    places = sorted(rng.randrange(1, steps - 10) for _ in kinds)
    events = []
    for kind, at in zip(kinds, places, strict=True):
        early = isinstance(kind, signal.Signals) and rng.random() < 0.25
        delay = rng.uniform(0.2, 6.0) if early else rng.uniform(0.0, 0.4)
        events.append(Event(kind, 0 if early else at, delay))
    return events


class Run:
    """The command of a run, started again and again."""

    def __init__(self, workdir: Path, folder: Path, steps: int) -> None:
        self.workdir = workdir
        self._argv = [sys.executable, "train.py", *SMALL, f"--workdir={workdir}"]
        self._argv.append(f"--config.train.steps={steps}")
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("XLA", "JAX"))}
        self._environment = kept | {
            "JAX_PLATFORMS": "cpu",
            "XDG_CACHE_HOME": str(folder / "cache"),
        }

    def start(self, limit: Callable[[], None] | None = None) -> subprocess.Popen[str]:
        """The program; `limit` is called in it before it begins."""
        return subprocess.Popen(
            self._argv,
            cwd=ROOT,
            env=self._environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=limit,
        )

    def finish(self) -> tuple[int, str]:
        """Exit code and words of a start that nothing interrupts."""
        return ended(self.start())

    def step(self) -> int:
        """The last step of the log, 0 without one."""
        try:
            lines = (self.workdir / "metrics.jsonl").read_bytes().splitlines()
        except OSError:
            return 0
        for line in reversed(lines):
            with contextlib.suppress(ValueError):
                return int(json.loads(line)["step"])
        return 0

    def sealed(self) -> list[int]:
        """Steps with a manifest, ascending."""
        return sorted(int(p.stem) for p in self.workdir.glob("manifests/*.json"))


def ended(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Waits for the end; its exit code and what it said.

    Raises:
        DrillError: If it hangs or prints a traceback.
    """
    try:
        _, said = process.communicate(timeout=_PATIENCE_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        raise DrillError(f"no end after {_PATIENCE_SECONDS} s") from None
    if "Traceback" in said:
        raise DrillError(f"a traceback: {said[-3000:]}")
    return process.returncode, said


def error_line(said: str) -> str:
    """The line of the error, empty without one."""
    return next((x for x in said.splitlines() if x.startswith("error E")), "")


def happen(event: Event, run: Run, rng: random.Random, mounted: bool) -> None:
    """Starts the program and interrupts it.

    Raises:
        DrillError: If it ends before, or otherwise than it should.
    """
    small = event.kind == FULL and not mounted
    process = run.start(_small_files if small else None)
    first = run.step()

    def waits() -> bool:
        behind = run.step() < max(event.at, first + 1)
        alone = event.kind == FLIP and len(run.sealed()) < 2
        return process.poll() is None and bool(event.at) and (behind or alone)

    while waits():
        time.sleep(0.005)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(0 if small else event.delay)
    event.seen = run.step()
    if process.poll() is not None and not small:
        code, said = ended(process)
        raise DrillError(f"{event.name} came too late: ended with {code}: {said}")
    if event.kind == FULL:
        with _filled(run.workdir.parent) if mounted else contextlib.nullcontext():
            event.code, said = ended(process)
        allowed: tuple[int, ...] = (6,)
    else:
        kill = event.kind == FLIP
        sent = signal.SIGKILL if kill else signal.Signals(event.kind)
        process.send_signal(sent)
        event.code, said = ended(process)
        allowed = ENDS[sent]
    event.said, event.words = said, error_line(said)
    if event.kind == FLIP:
        event.flipped, event.words = flip(run, rng)
    if resumed := re.search(r"resuming at step (\d+)", said):
        event.began = int(resumed[1])
    if event.code not in allowed:
        raise DrillError(f"{event.name} ended with {event.code}: {said[-500:]}")


def flip(run: Run, rng: random.Random) -> tuple[int, str]:
    """Flips a bit of the newest sealed checkpoint; its step, and which bit."""
    step = run.sealed()[-1]
    folder = run.workdir / f"checkpoints/{step}"
    path = max(
        (p for p in folder.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size
    )
    content, at = bytearray(path.read_bytes()), rng.randrange(path.stat().st_size)
    bit = rng.randrange(8)
    content[at] ^= 1 << bit
    path.write_bytes(content)
    words = f"bit {bit} of byte {at} of checkpoint {step} ({len(content)} bytes)"
    return step, words


def compare(whole: Path, parts: Path, steps: int) -> int:
    """The number of arrays of the last checkpoints, those of `steps`, all equal.

    Raises:
        DrillError: If one is not, or a log has not every step once.
    """
    import numpy as np

    a, b = (arrays(folder) for folder in (whole, parts))
    if a.keys() != b.keys():
        raise DrillError(f"other arrays: {sorted(a.keys() ^ b.keys())}")
    for name, x in a.items():
        y = b[name]
        if x.dtype != y.dtype or x.tobytes() != y.tobytes():
            worst = np.abs(x.astype(float) - y.astype(float)).max()
            raise DrillError(f"{name} differs by up to {worst}")
    logs = [
        [
            r["step"]
            for r in map(json.loads, (f / "metrics.jsonl").read_text().splitlines())
            if "g/total" in r
        ]
        for f in (whole, parts)
    ]
    for log in logs:
        if log != [*range(1, steps + 1)]:
            raise DrillError(f"a log has not the steps 1 to {steps}, but {log}")
    last = int(a[_NUMBER])
    if last != steps:
        raise DrillError(f"the last checkpoint is {last}, not {steps}")
    return len(a)


def arrays(folder: Path) -> dict:
    """Every array of the last checkpoint by name."""
    import jax
    import numpy as np
    import orbax.checkpoint as ocp

    step = max(int(path.name) for path in (folder / "checkpoints").glob("[0-9]*"))
    with ocp.StandardCheckpointer() as reader:
        tree = reader.restore(folder / f"checkpoints/{step}/state")
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    found = {jax.tree_util.keystr(path): np.asarray(x) for path, x in leaves}
    return found | {_NUMBER: np.array(step)}


@contextlib.contextmanager
def _disk(folder: Path) -> Iterator[tuple[Path, bool]]:
    """A small disk of its own where mounting is allowed, and whether it is one."""
    place = folder / "disk"
    place.mkdir()
    argv = ["mount", "-t", "tmpfs", "-o", f"size={_DISK_BYTES}", "tmpfs", str(place)]
    mounted = subprocess.run(argv, capture_output=True).returncode == 0
    try:
        yield place, mounted
    finally:
        if mounted:
            subprocess.run(["umount", "-l", str(place)], check=False)


@contextlib.contextmanager
def _filled(disk: Path) -> Iterator[None]:
    """A disk without a free byte."""
    filler = disk / "filler"
    with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(2**16))
    try:
        yield
    finally:
        filler.unlink()


def _small_files() -> None:
    """No file may grow beyond 8 KiB: what stands for a full disk without a mount."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**13, 2**13))


def _row(event: Event) -> str:
    when = f"step {event.seen}" if event.at else f"{event.delay:.1f} s after the start"
    words = re.sub(r"/\S*/disk/run", "RUN", event.words)
    return f"| {event.name} | {event.began} | {when} | {event.code} | {words[:120]} |"


def report(
    events: list[Event],
    arrays: int,
    seed: int,
    steps: int,
    minutes: float,
    mounted: bool,
) -> str:
    """The page."""
    commit = subprocess.run(
        ["git", "rev-parse", "--short=12", "HEAD"], cwd=ROOT, capture_output=True,
        text=True,
    ).stdout.strip()  # fmt: skip
    packages = ", ".join(
        f"{name} {version(name)}"
        for name in ("jax", "flax", "orbax-checkpoint", "numpy")
    )
    disk = "a tmpfs of 48 MiB" if mounted else "a limit of the size of files"
    rows = "\n".join(f"| {i} {_row(event)}" for i, event in enumerate(events, 1))
    return f"""# Crash drill

`{COMMAND.format(seed=seed)}`: {steps} steps of a small network on the template,
interrupted {len(events)} times, ended with {arrays} arrays that are equal to the last
bit to those of a run that nothing interrupted: parameters, optimiser, statistics,
counters and keys. Both logs have the steps 1 to {steps}, each once. The flipped
checkpoint was told and set aside. There was no traceback, and no exit code but those of
[errors](../errors.md) and of the signals. It took {minutes:.1f} minutes on
{os.cpu_count()} cores that others used too. Python {platform.python_version()},
{packages}; commit {commit}. The disk was {disk}.

A checkpoint is written every 5 steps. `SIGKILL` saves nothing, so the next start
repeats the steps since the newest one. `SIGTERM` and `SIGINT` save first (75), unless
they come before the first step.

| | event | it went on after step | when | exit code | line of the error |
|--:|---|--:|---|--:|---|
{rows}
"""


if __name__ == "__main__":
    sys.exit(main())
