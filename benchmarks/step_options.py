"""Precision, rematerialisation, accumulation: what they cost and save; start-up times.

    python -m benchmarks.step_options [--presets fast,paper] [--out docs/results]

Each line is `configs/fastmri_x4.py` (64 features, 6 groups, batch 9, LR crop 40) on the
embedded template, prepared beforehand, in two processes of its own: the first compiles,
the second finds the compiled step in the cache. `first step` is the time from the start
of the process to the end of its first step. `work` is what the compiled step needs on a
device besides its inputs, by XLA's account; `peak` what the process (CPU) or the device
(GPU) really took.

Writes `step_options.md` and `.json`.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.train_step import machine, peak_mib, where

FLOAT32 = {"matmul_precision": "float32"}
CASES: dict[str, dict[str, Any]] = {
    "float32": FLOAT32,
    "TF32": {},
    "bfloat16": {"model.dtype": "bfloat16"},
    "float32, remat": {**FLOAT32, "model.kwargs.remat": True},
    "bfloat16, remat": {"model.dtype": "bfloat16", "model.kwargs.remat": True},
    "float32, 3 parts": {**FLOAT32, "train.accumulate": 3},
    "float32, 9 parts": {**FLOAT32, "train.accumulate": 9},
}


def paper_plan(preset: str, edits: dict[str, Any], root: str = "") -> Any:
    """The plan of `fastmri_x4` with edits, on a data root or the embedded template."""
    from configs import fastmri_x4, quickstart_x4
    from daasr_jax.experiment import checks
    from daasr_jax.experiment.plan import make_plan

    config: Any = fastmri_x4.get_config(preset).unlock()
    if root:
        config.data.root, config.data.n_volumes = root, 0
    else:
        template: Any = quickstart_x4.get_config()
        config.data, config.reference = template.data, template.reference
    config.perceptual.network = "none"
    config.update_from_flattened_dict(edits)
    checks.setup(config)
    return make_plan(config)


def child(preset: str, case: str, started: float) -> None:
    """One process: compiles or loads the step, makes some, prints JSON."""
    import jax

    from daasr_jax.experiment.dry_run import TIMED, measure

    plan = paper_plan(preset, CASES[case])
    row = measure(plan.step_fn, plan.state, plan.batches(0), plan.mesh)
    row["first_step_seconds"] = time.time() - started - TIMED * row["step_seconds"]
    stats = jax.local_devices()[0].memory_stats() or {}
    peak = stats.get("peak_bytes_in_use", 0) / 2**20 or peak_mib()
    row |= {"preset": preset, "case": case, "peak_mib": peak}
    row["images_per_s"] = plan.settings.batch_size / row["step_seconds"]
    print(json.dumps(row))


def run(preset: str, case: str, compiled: str) -> dict[str, Any] | None:
    command = [sys.executable, "-m", "benchmarks.step_options", "--child", case]
    command += ["--presets", preset, "--started", str(time.time())]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        env=os.environ | {"JAX_COMPILATION_CACHE_DIR": compiled},
    )
    if done.returncode:
        print(f"{preset}, {case}: failed\n{done.stderr[-600:]}")
        return None
    return json.loads(done.stdout.strip().splitlines()[-1])


def markdown(rows: list[dict[str, Any]], about: dict[str, Any], presets: str) -> str:
    text = [
        "# Options of the training step",
        "",
        *(x for x in __doc__.splitlines()[4:11] if x),
        "",
        f"`python -m benchmarks.step_options --presets {presets}`: mean of 3 steps "
        f"after the first. {where(about)}",
        "",
        "| preset | options | s a step | images/s | state and batch, MiB | work, MiB | "
        "of float32 | peak, MiB | first step cold, s | warm, s |",
        "|---|---|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for row in rows:
        base = next(r for r in rows if r["preset"] == row["preset"])
        text.append(
            f"| {row['preset']} | {row['case']} | {row['step_seconds']:.3g} | "
            f"{row['images_per_s']:.2f} | {row['state_bytes'] / 2**20:,.0f} | "
            f"{row['work_bytes'] / 2**20:,.0f} | "
            f"{row['work_bytes'] / base['work_bytes']:.2f} | {row['peak_mib']:,.0f} | "
            f"{row['cold']:.0f} | {row['warm']:.0f} |"
        )
    return "\n".join([*text, ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--presets", default="fast,paper")
    parser.add_argument("--out", type=Path, help="folder of the tables")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--started", type=float, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        child(args.presets, args.child, args.started)
        return
    ask = [sys.executable, "-c", "import jax; print(jax.default_backend())"]
    platform = subprocess.check_output(ask, text=True).strip()  # and leave it free
    cases = [c for c in CASES if c != "TF32" or platform == "gpu"]
    jobs = [(p, c) for p in args.presets.split(",") for c in cases]
    rows, begin = [], time.monotonic()
    prepared = False
    for i, (preset, case) in enumerate(jobs):
        with tempfile.TemporaryDirectory() as compiled:
            if not prepared:  # the data alone, into the cache
                run(preset, case, compiled)
                prepared = True
        with tempfile.TemporaryDirectory() as compiled:
            cold, warm = (run(preset, case, compiled) for _ in range(2))
        if cold and warm:
            times = {
                "cold": cold["first_step_seconds"],
                "warm": warm["first_step_seconds"],
            }
            rows.append(warm | times | {"peak_mib": cold["peak_mib"]})
        spent = time.monotonic() - begin
        rest = spent / (i + 1) * (len(jobs) - i - 1)
        print(f"{preset}, {case}: done; about {rest / 60:.0f} min left", flush=True)
    about = machine()
    text = markdown(rows, about, args.presets)
    print(text)
    if args.out:
        args.out.mkdir(parents=True, exist_ok=True)
        (args.out / "step_options.md").write_text(text, encoding="utf-8")
        record = json.dumps({"machine": about, "rows": rows}, indent=1)
        (args.out / "step_options.json").write_text(record, encoding="utf-8")


if __name__ == "__main__":
    main()
