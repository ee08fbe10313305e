"""A short visit to a GPU, used to the second.

    python -m benchmarks.gpu --minutes 9 --out DIR [--parts check,match,step,train]
        [--prepared FILE] [--train fast:4,edsr:4,...]
    python -m benchmarks.gpu --pack DIR [--set "CONFIG --config.KEY=VALUE ..."]

The second line is for a machine with the data: it writes their prepared slices as one
file, DIR/prepared.npz, which the first line trains on. DIR may be the name of an .npz
file too. The machine with the GPU needs a checkout, jax, flax, optax, numpy and
jaxtyping; torch for the peers. A missing one is a line in the result.

Every part is a process that compiles at once, beside the others, and is timed alone
when its turn comes, in this order of worth. A part that has not compiled by then has
its turn later:

    check   the tests marked `gpu`
    match   the patch search, and PyTorch's
    step    the paper's training step, and that of PyTorch's twin
    train   networks for equal times, evaluated with other references

Results are files under DIR that are written as they come; at the end, or after an
interruption by `--report`, they are put together as `gpu.md` and `gpu.json`.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
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

from benchmarks.gpu import pack, report, stage
from daasr_jax.errors import UserError
from daasr_jax.experiment.installation import without_places

PARTS = ("check", "match", "step", "train")
# Minutes of nine, without compiling; training has what is left.
SHARES = {"match": 0.8, "step": 1.2}
TERMINATING = 3.0  # seconds in which a part may end what it started
# Options that name a file or folder, and what the page says instead.
PLACES = {
    "--out": "DIR",
    "--cache": "CACHE",
    "--prepared": "FILE",
    "--note": "NOTE",
}
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
    """

    name: str
    part: str
    command: list[str]
    share: float | None = None
    worth: float = 1.0
    process: subprocess.Popen[str] | None = None
    over: bool = False  # it and all that it started
    listener: threading.Thread | None = None
    ready: threading.Event = dataclasses.field(default_factory=threading.Event)

    def start(self, out: Path) -> None:
        path = out / f"log_{self.name.replace(' ', '_').replace(':', '_')}.txt"
        extra = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false", "PYTHONUNBUFFERED": "1"}
        with path.open("w", encoding="utf-8") as log:
            self.process = subprocess.Popen(
                self.command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env=os.environ | extra,
                start_new_session=True,
            )
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

    def give(self, seconds: float, end: float) -> str:
        """The turn, which `end` of `time.monotonic` ends too; what became of it."""
        assert self.process is not None
        assert self.process.stdin is not None
        if self.ended():
            return self._outcome()
        limit = min(1.25 * seconds + 15, max(0.0, end - time.monotonic()))
        with contextlib.suppress(OSError):  # it has just ended
            self.process.stdin.write(f"{seconds}\n")
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


def trained(text: str) -> tuple[str, int, int, float]:
    """`ROW:SCALE[:SEED[:WORTH]]`.

    Raises:
        ValueError: If it is none.
    """
    form = r"(\w+):([234])(?::(\d+)(?::(\d*\.?\d+))?)?"
    found = re.fullmatch(form, text)
    if found is None or found[1] not in report.NAMES:
        raise ValueError(
            f"--train={text} is no ROW:SCALE[:SEED[:WORTH]]; rows are "
            f"{', '.join(report.NAMES)}, scales 2, 3 and 4"
        )
    return found[1], int(found[2]), int(found[3] or 0), float(found[4] or 1)


def jobs_of(args: argparse.Namespace) -> list[Job]:
    """The processes, in the order of their turns."""
    unit = 60 * args.minutes / 9
    tiny = ["--tiny"] if args.tiny else []
    module = [sys.executable, "-m"]
    found = []
    for part in args.parts:
        name = [*module, f"benchmarks.gpu.{part}", "--out", str(args.out)]
        if part == "check":
            limit = ["--seconds", str(compiling(args))]
            found.append(Job("check", part, [*name, *tiny, *limit]))
        elif part in SHARES:
            for peer in ("jax", "torch"):
                more = ["--peer", peer, *tiny]
                if part == "step":
                    more += ["--compiling", str(compiling(args))]
                    if peer == "jax":
                        more += ["--cache", str(args.cache)]
                    if args.tiny:
                        more += ["--variants", "1", "--repeats", "3"]
                share = SHARES[part] * unit / 2
                found.append(Job(f"{part} {peer}", part, [*name, *more], share))
        elif args.prepared is not None:
            for one in args.train:
                row, scale, seed, worth = one
                more = ["--row", row, "--scale", str(scale), "--seed", str(seed)]
                more += ["--cache", str(args.cache), "--prepared", str(args.prepared)]
                more += TINY_TRAIN if args.tiny else args.more
                job = Job(f"train {row}:{scale}:{seed}", part, [*name, *more])
                job.worth = worth
                found.append(job)
    return found


def share_of(job: Job, waiting: list[Job], left: float) -> float:
    """Seconds of a training, of those that are left to it and all that wait.

    Timed parts that wait keep theirs, though not more than half: they may never be
    ready.
    """
    timed = sum(j.share or 0.0 for j in waiting)
    free = max(left - 2 - timed, (left - 2) / 2)
    return free * job.worth / sum(j.worth for j in waiting if j.share is None)


def visit(args: argparse.Namespace) -> dict[str, str]:
    """All parts within the minutes; returns what became of each."""
    begin = time.monotonic()
    end = begin + 60 * args.minutes
    args.out.mkdir(parents=True, exist_ok=True)
    about = stage.machine() | {"command": args.said}
    about |= {"commit": args.commit} if args.commit else {}
    stage.write(args.out / "machine.json", about)
    jobs, became = jobs_of(args), {}
    if "train" in args.parts and args.prepared is None:
        became["train"] = "left out: no --prepared FILE"
    try:
        for job in jobs:
            job.start(args.out)
        for job in jobs:
            if job.part == "check":  # is not timed, so the others compile beside it
                became[job.name] = job.finish(max(0.0, end - time.monotonic()))
        waiting = [job for job in jobs if job.part != "check"]
        for job in waiting:
            patience = begin + compiling(args) - time.monotonic()
            job.ready.wait(max(0.0, patience))
        while waiting and (left := end - time.monotonic()) > 5:
            job = next((j for j in waiting if j.ready.is_set()), None)
            if job is None:
                time.sleep(0.2)
                continue
            seconds = job.share or share_of(job, waiting, left)
            waiting.remove(job)
            print(f"{job.name}: its turn, {seconds:.0f} s of {left:.0f}", flush=True)
            # A training may have others compile beside it; what is timed may not.
            beside = waiting if job.share else []
            with paused([j for j in beside if not j.ready.is_set()]):
                became[job.name] = job.give(min(seconds, left), end)
            print(f"{job.name}: {became[job.name]}", flush=True)
            stage.write(args.out / "became.json", became)
        for job in waiting:
            state = "no time was left" if job.ready.is_set() else "still compiling"
            became[job.name] = f"left out: {state}"
    finally:
        for job in jobs:
            job.stop()
            became.setdefault(job.name, "left out: the visit was interrupted")
        stage.write(args.out / "became.json", became)
    return became


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=9.0)
    parser.add_argument("--out", type=Path, default=Path("gpu_results"))
    parser.add_argument("--parts", default=",".join(PARTS))
    parser.add_argument("--prepared", type=Path, help="a file of --pack")
    parser.add_argument(
        "--train", default="fast:4", help="ROW:SCALE[:SEED[:WORTH]], ..."
    )
    parser.add_argument("--compile", type=float, default=150.0, help="seconds for it")
    parser.add_argument("--cache", type=Path, help="folder of compiled programs")
    parser.add_argument("--commit", default="", help="of a copy without git")
    parser.add_argument("--tiny", action="store_true", help="all in miniature")
    parser.add_argument("--pack", type=Path, metavar="DIR", help="write prepared data")
    parser.add_argument(
        "--set",
        action="append",
        dest="sets",
        help='what is packed, "CONFIG --config.KEY=VALUE ..."; once for each set',
    )
    parser.add_argument(
        "--report", action="store_true", help="of what lies under --out"
    )
    parser.add_argument("--note", type=Path, help="Markdown that ends the page")
    parser.add_argument("more", nargs="*", help="after --: flags of every training")
    args = parser.parse_args()
    if args.pack:
        if args.pack.suffix != ".npz":
            args.pack /= "prepared.npz"
        sets = args.sets or ["configs/brain_ds002748_x4_small.py"]
        try:
            about = pack.pack([shlex.split(one) for one in sets], args.pack)
        except (UserError, ValueError, OSError) as error:
            parser.error(str(error))
        print(
            f"{args.pack}: {about['slices']}, {about['bytes'] / 2**20:.1f} MiB; "
            "rounded to 256 levels, a ceiling of 59 dB"
        )
        if about["bytes"] > pack.MOST:
            print(
                f"warning: {args.pack} is larger than {pack.MOST / 1e6:g} MB, and may "
                "not be carried to the machine: pack fewer subjects, "
                "--set='CONFIG --config.data.subjects.train=A,B'",
                file=sys.stderr,
            )
        return
    args.parts = [p for p in args.parts.split(",") if p]
    if unknown := set(args.parts) - set(PARTS):
        parser.error(f"no part is called {', '.join(sorted(unknown))}")
    try:
        args.train = [trained(t) for t in args.train.split(",") if t]
    except ValueError as error:
        parser.error(str(error))
    if args.prepared is not None and not args.prepared.is_file():
        parser.error(f"--prepared={args.prepared} is not there: --pack writes it")
    if not args.report and (before := sorted(args.out.glob("*.json"))):
        parser.error(
            f"--out={args.out} holds results of another visit, such as "
            f"{before[0].name}: give another folder, or --report for its page"
        )
    if args.report and not args.out.is_dir():
        parser.error(f"--out={args.out} holds no results")
    args.cache = args.cache or args.out / "compiled"
    said = without_places(sys.argv[1:], PLACES)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # and its parts end
    args.said = shlex.join(["python", "-m", "benchmarks.gpu", *said])
    became = {} if args.report else visit(args)
    print(report.make(args.out, args.note))
    left = [f"{k} ({v})" for k, v in became.items() if v != "done"]
    print("left out or not done: " + ("; ".join(left) or "nothing"), flush=True)


if __name__ == "__main__":
    main()
