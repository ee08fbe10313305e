"""How fast training batches are made, against how fast a step uses them.

    python -m benchmarks.input --data DIR [--out docs/results] [--seconds 10]

At the paper's size (batch 9, LR crop 40, x4: target and reference crops of 160x160),
images/s of `training_batches` alone: with the slices in memory, as a set under 2 GiB is
after its first epoch, and read from the prepared set each time, as a larger one is; by
threads and by worker processes. Beside it images/s of the step of `fastmri_x4:fast` and
`:paper` on this machine, measured in the same run, and their ratio.

Writes `input.md` and `.json`.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import absl.flags

from benchmarks.step_options import paper_plan
from benchmarks.train_step import machine, where

WAYS = ((0, 0), (1, 0), (2, 0), (4, 0), (1, 1), (1, 2))  # (threads, workers)


def loader(table: Any, threads: int, workers: int, seconds: float) -> float:
    """Images/s, from the second batch of every thread and worker on."""
    from daasr_jax.data import training_batches

    batch = 9
    batches = iter(
        training_batches(
            table,
            batch_size=batch,
            crop=40,
            scale=4,
            steps=10**7,
            seed=0,
            num_threads=threads,
            workers=workers,
        )
    )
    for _ in range(8 * max(1, workers)):
        next(batches)
    count, begin = 0, time.monotonic()
    while time.monotonic() - begin < seconds:
        next(batches)
        count += batch
    speed = count / (time.monotonic() - begin)
    batches.close()
    return speed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, help="data root")
    parser.add_argument("--out", type=Path, help="folder of the tables")
    parser.add_argument("--seconds", type=float, default=10)
    args = parser.parse_args()
    absl.flags.FLAGS(sys.argv[:1])  # Grain's worker processes read them

    from daasr_jax.experiment.dry_run import measure

    plans = {preset: paper_plan(preset, {}, args.data) for preset in ("fast", "paper")}
    table = plans["fast"].prepared.splits["train"]
    for i in range(len(table)):
        table.image(i)
    memory, rows = table._memory, []
    for place in ("memory", "disk"):
        table._memory = memory if place == "memory" else None
        for threads, workers in WAYS:
            speed = loader(table, threads, workers, args.seconds)
            rows.append(
                {
                    "slices": place,
                    "threads": threads,
                    "workers": workers,
                    "images_per_s": speed,
                }
            )
            print(rows[-1], flush=True)
    steps = {}
    for preset, plan in plans.items():
        measured = measure(plan.step_fn, plan.state, plan.batches(0), plan.mesh)
        steps[preset] = plan.settings.batch_size / measured["step_seconds"]
        print(f"step, {preset}: {steps[preset]:.2f} images/s", flush=True)
    about = machine()
    text = [
        "# Input of the training step",
        "",
        f"`python -m benchmarks.input --data DIR --seconds {args.seconds:g}`: "
        f"{plans['fast'].prepared.dataset}, {len(table)} slices of 256x256; batch 9, "
        "two crops of 160x160 an image. `threads` are those of the process, or of each "
        "worker. " + where(about),
        "",
        "| slices | threads | workers | images/s | times a `fast` step | times a "
        "`paper` step |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    text += [
        f"| {r['slices']} | {r['threads']} | {r['workers']} | "
        f"{r['images_per_s']:,.0f} | "
        + " | ".join(f"{r['images_per_s'] / steps[p]:,.0f}" for p in ("fast", "paper"))
        + " |"
        for r in rows
    ]
    said = ", ".join(f"`{p}` {v:.2f}" for p, v in steps.items())
    text += ["", f"Steps on the same machine, images/s: {said}.", ""]
    print("\n".join(text))
    if args.out:
        args.out.mkdir(parents=True, exist_ok=True)
        (args.out / "input.md").write_text("\n".join(text), encoding="utf-8")
        record = {"machine": about, "rows": rows, "steps_images_per_s": steps}
        (args.out / "input.json").write_text(json.dumps(record, indent=1))


if __name__ == "__main__":
    main()
