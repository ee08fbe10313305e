"""A short visit to a GPU, used to the second.

    python -m benchmarks.gpu --minutes 9 --out DIR [--parts check,match,step,train]
        [--prepared FILE] [--train fast:4,edsr:4,... | --train "fast:4,... FLAGS"]
    python -m benchmarks.gpu --pack DIR [--set "CONFIG --config.KEY=VALUE ..."]

The second line is for a machine with the data: it writes their prepared slices as one
file, DIR/prepared.npz, which the first line trains on. DIR may be the name of an .npz
file too. The machine with the GPU needs a checkout, jax, flax, optax, numpy and
jaxtyping; pytest for the tests, and torch for the peers. A missing one is a line in the
result.

Every part is a process that compiles at once, beside the others, and has its turn in
this order of worth. A part that has not compiled by then has its turn later:

    check   the tests marked `gpu`, those of parity first; the others compile beside
            them, and leave them the processor
    match   the patch search, and PyTorch's
    step    the paper's training step, and that of PyTorch's twin
    train   networks, evaluated with other references. Each has a share of what is left,
            by WORTH, or the time that stands for it: `fast:4:0:60s`

Search and step are timed alone: what still compiles is halted meanwhile. A training is
not: the others go on compiling beside it, and its row of the page counts them.

Results are files under DIR that are written as they come. At the end, or when Ctrl-C,
SIGTERM or SIGHUP ends the visit, they are put together as `gpu.md` and `gpu.json`;
`--report` does it again.
"""

from __future__ import annotations

import argparse
import shlex
import signal
import sys
import time
from pathlib import Path

from benchmarks.gpu import jobs, report, stage
from daasr_jax.errors import UserError
from daasr_jax.experiment.installation import without_places

CUT = "the visit was interrupted in its turn; what it had written is kept"
NICE = 10  # niceness of what compiles beside the tests
# Options that name a file or folder, and what the page says instead.
PLACES = {
    "--out": "DIR",
    "--cache": "CACHE",
    "--prepared": "FILE",
    "--note": "NOTE",
}


def visit(args: argparse.Namespace) -> dict[str, str]:
    """All parts within the minutes; returns what became of each."""
    begin = time.monotonic()
    end = begin + 60 * args.minutes
    args.out.mkdir(parents=True, exist_ok=True)
    about = stage.machine() | {"command": args.said}
    about |= {"commit": args.commit} if args.commit else {}
    stage.write(args.out / "machine.json", about)
    planned = jobs.jobs_of(args)
    became = {job.name: "left out: the visit was interrupted" for job in planned}
    if "train" in args.parts and args.prepared is None:
        became["train"] = "left out: no --prepared FILE"

    def told(job: jobs.Job, text: str) -> None:
        became[job.name] = text
        print(f"{job.name}: {text}", flush=True)
        stage.write(args.out / "became.json", became)

    stage.write(args.out / "became.json", became)
    checks = [job for job in planned if job.part == "check"]
    waiting = [job for job in planned if job.part != "check"]
    try:
        for job in checks:
            job.start(args.out)
        for job in waiting:
            job.start(args.out, NICE if checks else 0)
        for job in checks:  # is not timed, so the others compile beside it
            became[job.name] = CUT
            told(job, job.finish(max(0.0, end - time.monotonic())))
        for job in waiting:
            patience = begin + jobs.compiling(args) - time.monotonic()
            job.ready.wait(max(0.0, patience))
        while waiting and (left := end - time.monotonic()) > 5:
            job = next((j for j in waiting if j.ready.is_set()), None)
            if job is None:
                time.sleep(0.2)
                continue
            seconds = job.share or jobs.share_of(job, waiting, left)
            waiting.remove(job)
            became[job.name] = CUT
            print(f"{job.name}: its turn, {seconds:.0f} s of {left:.0f}", flush=True)
            late = [j for j in waiting if not j.ready.is_set()]
            halted = late if job.part != "train" else []
            beside = [j.name for j in late if j not in halted]
            with jobs.paused(halted):
                told(job, job.give(min(seconds, left), end, beside))
        for job in waiting:
            state = "no time was left" if job.ready.is_set() else "still compiling"
            told(job, f"left out: {state}")
    finally:
        for job in planned:
            job.stop()
        stage.write(args.out / "became.json", became)
    return became


def end_by_signals() -> None:
    """SIGTERM and SIGHUP end the visit, its parts and its page included."""

    def leave(number: int, _: object) -> None:
        for name in (signal.SIGTERM, signal.SIGHUP):  # once is enough
            signal.signal(name, signal.SIG_IGN)
        sys.exit(128 + number)

    for name in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(name) != signal.SIG_IGN:  # as under nohup
            signal.signal(name, leave)


def packed(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Writes the file of `--pack`, and says what it holds."""
    from benchmarks.gpu import pack

    path = args.pack if args.pack.suffix == ".npz" else args.pack / "prepared.npz"
    sets = args.sets or ["configs/brain_ds002748_x4_small.py"]
    try:
        about = pack.pack([shlex.split(one) for one in sets], path)
    except (UserError, ValueError, OSError) as error:
        parser.error(str(error))
    print(
        f"{path}: {about['slices']}, {about['bytes'] / 2**20:.1f} MiB; "
        "rounded to 256 levels, a ceiling of 59 dB"
    )
    print(
        f"{path} holds the slices themselves and the names of their subjects' folders: "
        "carry it only where those may be"
    )
    if about["bytes"] > pack.MOST:
        print(
            f"warning: {path} is larger than {pack.MOST / 1e6:g} MB, and may "
            "not be carried to the machine: pack fewer subjects, "
            "--set='CONFIG --config.data.subjects.train=A,B'",
            file=sys.stderr,
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=9.0)
    parser.add_argument("--out", type=Path, default=Path("gpu_results"))
    parser.add_argument("--parts", default=",".join(jobs.PARTS))
    parser.add_argument("--prepared", type=Path, help="a file of --pack")
    parser.add_argument(
        "--train",
        action="append",
        help='"ROW:SCALE[:SEED[:WORTH]],... [FLAGS]", again for other flags; WORTH is '
        "a share, or a time such as 60s; fast:4",
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
        packed(parser, args)
        return
    args.parts = [p for p in args.parts.split(",") if p]
    if unknown := set(args.parts) - set(jobs.PARTS):
        parser.error(f"no part is called {', '.join(sorted(unknown))}")
    try:
        given = args.train or ["fast:4"]
        args.train = [one for text in given for one in jobs.trained(text)]
    except ValueError as error:
        parser.error(str(error))
    if args.prepared is not None and not args.prepared.is_file():
        parser.error(f"--prepared={args.prepared} is not there: --pack writes it")
    try:
        jobs.check_trainings(jobs.jobs_of(args))
    except ValueError as error:
        parser.error(str(error))
    if not args.report and (before := sorted(args.out.glob("*.json"))):
        parser.error(
            f"--out={args.out} holds results of another visit, such as "
            f"{before[0].name}: give another folder, or --report for its page"
        )
    if args.report and not args.out.is_dir():
        parser.error(f"--out={args.out} holds no results")
    if args.report and not report.is_readable(args.out):
        parser.error(
            f"--out={args.out} holds results of another version, or not all: the page "
            "is made by the version that wrote them"
        )
    args.cache = args.cache or args.out / "compiled"
    said = without_places(sys.argv[1:], PLACES)
    args.said = shlex.join(["python", "-m", "benchmarks.gpu", *said])
    end_by_signals()
    try:
        if not args.report:
            visit(args)
    except KeyboardInterrupt:
        sys.exit(130)
    finally:  # of an interrupted visit too
        text, left = report.make(args.out, args.note)
        print(text)
        said = "; ".join(f"{k} ({v})" for k, v in left.items())
        print(f"left out or not done: {said or 'nothing'}", flush=True)


if __name__ == "__main__":
    main()
