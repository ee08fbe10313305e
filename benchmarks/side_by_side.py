"""Trains and evaluates every compared system, or every ablation, for equal time.

    python -m benchmarks.side_by_side --plan systems --data DIR --work DIR \
        [--minutes 5] [--jobs 1] [--only LABEL,...] [--out docs/results]

Each run is `train.py` and `eval.py` with a small configuration. First the rate of every
run is measured, one at a time, in two rounds of which the faster counts; its steps are
those that `--minutes` give at that rate, so that other load, or `--jobs` runs at once,
change how long it takes and not what is trained. Runs that are finished are not
repeated; one that was stopped resumes.

A system that ignores the reference is trained once; its figures stand for both tracks.
With `--out` writes `<plan>_small.md` and `.json`.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import dataclasses
import json
import math
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

from benchmarks.compare import about_intervals, interval, method_of, row
from benchmarks.train_step import machine

MEASURED = 40  # steps of a run whose rate is measured
WARM = 10  # of them before the clock starts
ROUNDS = 2  # of measuring, some time apart


@dataclasses.dataclass(frozen=True)
class Run:
    """What is trained: a configuration with flags on one track."""

    label: str
    config: str
    track: str = "random"
    flags: tuple[str, ...] = ()
    reference: bool = True

    @property
    def name(self) -> str:
        return f"{self.label}_{self.track}".replace(" ", "_")


def systems() -> list[Run]:
    single = ("srcnn", "edsr", "swinir", "hat")
    guided = ("mcsr", "minet", "mcmrsr", "ttsr")
    runs = [Run(s, f"{s}_x4.py:small", reference=False) for s in single]
    for track in ("random", "aligned"):
        runs += [Run(s, f"{s}_x4.py:small", track) for s in guided]
        runs += [
            Run(f"daasr {preset}", f"brain_x4_small.py:{preset}", track)
            for preset in ("fast", "paper")
        ]
    return runs


def ablations() -> list[Run]:
    from configs.ablation_x4 import ROWS

    again = ("without_p_c", "lambda_0.1_0.01")  # another name of a network above
    return [
        Run(name, f"ablation_x4_small.py:{name}", "aligned")
        for name in ROWS
        if name not in again
    ]


PLANS = {"systems": systems, "ablations": ablations}


def command(script: str, run: Run, data: str, folder: Path, *more: str) -> list[str]:
    return [
        sys.executable,
        script,
        f"--config=configs/{run.config}",
        f"--config.data.root={data}",
        f"--config.reference.track={run.track}",
        f"--workdir={folder}",
        *run.flags,
        *more,
    ]


def call(arguments: list[str], log: Path) -> None:
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a") as file:
        done = subprocess.run(arguments, stdout=file, stderr=subprocess.STDOUT)
    if done.returncode:
        last = log.read_text().strip().splitlines()[-1]
        raise SystemExit(f"{log}: exit code {done.returncode}: {last}")


def rate(run: Run, data: str, work: Path, turn: int) -> float:
    """Steps per second after compilation, of a short training run."""
    folder = work / "rates" / f"{run.name}_{turn}"
    flags = (f"--config.train.steps={MEASURED}", f"--config.train.log_every={WARM}")
    if not (folder / "rate.json").exists():
        call(command("train.py", run, data, folder, *flags), folder / "log.txt")
        lines = (folder / "metrics.jsonl").read_text().splitlines()
        rows = [json.loads(line) for line in lines]
        batch = json.loads((folder / "config.json").read_text())
        batch = batch["config"]["train"]["batch_size"]
        speeds = [
            r["images_per_second"]
            for r in rows
            if r.get("images_per_second") and r["step"] > WARM
        ]
        value = len(speeds) / sum(1 / s for s in speeds) / batch
        (folder / "rate.json").write_text(json.dumps(value))
    return json.loads((folder / "rate.json").read_text())


def train_and_evaluate(run: Run, data: str, work: Path, steps: int) -> dict[str, Any]:
    folder = work / run.name
    result = folder / f"eval_test_{run.track}.json"
    if not result.exists():
        steps_flag = f"--config.train.steps={steps}"
        log = folder / "log.txt"
        call(command("train.py", run, data, folder, steps_flag), log)
        call([sys.executable, "eval.py", f"--workdir={folder}"], log)
    return json.loads(result.read_text())


def table(
    plan: str,
    reports: dict[Run, dict[str, Any]],
    rates: dict[Run, float],
    about: dict[str, Any],
    minutes: float,
    jobs: int,
) -> str:
    first = next(iter(reports.values()))
    scores = first["methods"]["bicubic"]
    lines = [
        f"# {plan.capitalize()} side by side: small, x4, {minutes:g} minutes each",
        "",
        f"`python -m benchmarks.side_by_side --plan {plan} --minutes {minutes:g} "
        f"--jobs {jobs}`: {first['dataset']}, split `{first['split']}`, "
        f"{first['n_slices']} slices of {first['n_subjects']} subjects. Mean over "
        f"slices; {about_intervals([first])}; one training seed. "
        f"{first['protocol']['degradation']}, border of s pixels, "
        f"{first['protocol']['intensity']}.",
        "",
        f"{about['processor']}, {about['cores']} cores ({about['device']}); Python "
        f"{about['python']}, jax {about['versions']['jax']}. Steps are those that "
        f"{minutes:g} minutes give at images/s: the faster of {ROUNDS} measurements, "
        "one run at a time.",
        "",
        row(
            [
                *("run", "reference", "PSNR, dB", "SSIM", "over bicubic, dB"),
                *("parameters", "images/s", "steps", "commit"),
            ]
        ),
        "|---|---|--:|--:|--:|--:|--:|--:|---|",
        row(
            ["bicubic", "-", interval(scores["psnr"], 2), interval(scores["ssim"], 4)]
            + ["-"] * 5
        ),
    ]
    for run, report in reports.items():
        method = method_of(report)
        scores = report["methods"][method]
        lines.append(
            row(
                [
                    run.label,
                    run.track if run.reference else "not used",
                    interval(scores["psnr"], 2),
                    interval(scores["ssim"], 4),
                    interval(report[f"{method}_minus_bicubic"]["psnr"], 2, "+"),
                    f"{report['parameters']:,}",
                    f"{rates[run]:.1f}",
                    f"{report['checkpoint_step']:,}",
                    report["commit"][:12]
                    + ("-dirty" if report["commit"].endswith("dirty") else ""),
                ]
            )
        )
    return "\n".join([*lines, ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--plan", required=True, choices=sorted(PLANS))
    parser.add_argument("--data", required=True, help="data root")
    parser.add_argument("--work", required=True, type=Path, help="folder of the runs")
    parser.add_argument("--minutes", type=float, default=5)
    parser.add_argument("--jobs", type=int, default=1, help="runs at once")
    parser.add_argument("--only", default="", help="labels, separated by commas")
    parser.add_argument("--out", type=Path, help="folder of the table")
    parser.add_argument("--note", type=Path, help="Markdown file that ends the table")
    args = parser.parse_args()
    only = {label for label in args.only.split(",") if label}
    runs = [run for run in PLANS[args.plan]() if not only or run.label in only]
    if not runs:
        parser.error(f"no run of the plan is called {args.only!r}")
    begin = time.monotonic()

    def tell(text: str) -> None:
        print(f"{time.monotonic() - begin:6.0f} s  {text}", flush=True)

    speed = dict.fromkeys(runs, 0.0)
    for turn in range(ROUNDS):
        for i, run in enumerate(runs):
            now = rate(run, args.data, args.work, turn)
            speed[run] = max(speed[run], now)
            tell(
                f"{run.name}: {now:.2f} steps/s, {i + 1} of {len(runs)}, "
                f"round {turn + 1} of {ROUNDS}"
            )
    steps = {run: math.ceil(60 * args.minutes * speed[run]) for run in runs}
    left, lock = len(runs), threading.Lock()

    def one(run: Run) -> dict[str, Any]:
        nonlocal left
        report = train_and_evaluate(run, args.data, args.work, steps[run])
        with lock:
            left -= 1
            spent = time.monotonic() - begin
            rest = spent / (len(runs) - left) * left
            psnr = interval(report["methods"][method_of(report)]["psnr"], 2)
            tell(f"{run.name}: {psnr} dB; {left} left, about {rest / 60:.0f} min")
        return report

    with concurrent.futures.ThreadPoolExecutor(args.jobs) as pool:
        reports = dict(zip(runs, pool.map(one, runs), strict=True))
    batch = {
        run: json.loads((args.work / run.name / "config.json").read_text())["config"][
            "train"
        ]["batch_size"]
        for run in runs
    }
    images = {run: speed[run] * batch[run] for run in runs}
    about = machine()
    text = table(args.plan, reports, images, about, args.minutes, args.jobs)
    if args.note:
        text += "\n" + args.note.read_text(encoding="utf-8")
    print(text)
    if args.out:
        args.out.mkdir(parents=True, exist_ok=True)
        stem = args.out / f"{args.plan}_small"
        stem.with_suffix(".md").write_text(text, encoding="utf-8")
        rows = [
            {
                "run": run.label,
                "track": run.track if run.reference else None,
                "images_per_s": images[run],
                "steps": report["checkpoint_step"],
                "parameters": report["parameters"],
                "config_sha256": report["config_sha256"],
                "pairing_sha256": report["pairing_sha256"],
                "commit": report["commit"],
                "scores": report["methods"][method_of(report)],
            }
            for run, report in reports.items()
        ]
        record = {"machine": about, "minutes": args.minutes, "rows": rows}
        stem.with_suffix(".json").write_text(
            json.dumps(record, indent=1), encoding="utf-8"
        )


if __name__ == "__main__":
    main()
