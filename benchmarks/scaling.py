"""Weak scaling over the devices that are here, and a model of more of them.

    python -m benchmarks.scaling [--preset fast] [--share 9] [--out docs/results]

Measured: `configs/fastmri_x4.py` with the same share of the batch on 1, 2, 4 and 8
devices; efficiency is images/s over devices times images/s of one. On a CPU it runs on
devices that JAX makes of the same cores, which shows that it works and no more.

Modelled, on paper: a step of T seconds on one GPU grows by its communication, nothing
of it hidden: the ring all-reduce of the float32 gradients, 2 (n - 1) / n times their
bytes over the slowest link, and the small all-reduces (batch statistics forward and
backward, metrics), 2 log2(n) latencies each. Efficiency is T over that sum.

Writes `scaling.md` and `.json`.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
from pathlib import Path

from benchmarks.step_options import paper_plan
from benchmarks.train_step import machine, where

COUNTS = (1, 2, 4, 8)
# Assumed: bytes/s each way of a GPU, and seconds of latency of a hop.
LINKS = {
    8: ("NVLink of one node, 450 GB/s", 450e9, 3e-6),
    64: ("InfiniBand NDR between nodes, 50 GB/s a GPU", 50e9, 5e-6),
}
STEPS = (0.02, 0.05, 0.1, 0.2, 0.5)  # seconds: of a GPU nobody measured here
NORMS = 6  # batch normalisations of the SFE


def child(preset: str, share: int, devices: int) -> None:
    """Seconds of a step on some devices, printed as JSON."""
    import jax

    from daasr_jax.experiment.dry_run import measure

    edits = {"train.devices": devices, "train.batch_size": share * devices}
    plan = paper_plan(preset, edits)
    row = measure(plan.step_fn, plan.state, plan.batches(0), plan.mesh)
    bytes_ = sum(x.nbytes for x in jax.tree.leaves(plan.state.gen))
    print(json.dumps(row | {"devices": devices, "gradient_bytes": bytes_}))


def efficiency(seconds: float, bytes_: int, devices: int) -> float:
    """T / (T + communication) of the model above."""
    _, speed, latency = LINKS[devices]
    ring = 2 * (devices - 1) / devices * bytes_ / speed
    small = (2 * NORMS + 1) * 2 * math.log2(devices) * latency
    return seconds / (seconds + ring + small)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", default="fast")
    parser.add_argument("--share", type=int, default=9, help="images of a device")
    parser.add_argument("--out", type=Path, help="folder of the tables")
    parser.add_argument("--child", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        child(args.preset, args.share, args.child)
        return
    ask = "import jax; print(jax.default_backend(), jax.device_count())"
    said = subprocess.check_output([sys.executable, "-c", ask], text=True).split()
    cpu, here = said[0] == "cpu", int(said[1])  # asked elsewhere: the devices stay free
    here = (os.cpu_count() or 1) if cpu else here
    rows = []
    for count in (c for c in COUNTS if c <= here):
        command = [sys.executable, "-m", "benchmarks.scaling", "--child", str(count)]
        command += ["--preset", args.preset, "--share", str(args.share)]
        extra = {"JAX_NUM_CPU_DEVICES": str(count)} if cpu else {}
        done = subprocess.run(
            command, capture_output=True, text=True, env=os.environ | extra, check=True
        )
        rows.append(json.loads(done.stdout.strip().splitlines()[-1]))
        print(f"{count} devices: {rows[-1]['step_seconds']:.3f} s", flush=True)
    about = machine()
    one, size = rows[0]["step_seconds"], rows[0]["gradient_bytes"]
    text = [
        "# Scaling over devices",
        "",
        f"`python -m benchmarks.scaling --preset {args.preset} --share {args.share}`: "
        f"`configs/fastmri_x4.py:{args.preset}`, {args.share} images on each device. "
        + where(about),
        "",
        "## Measured",
        "",
        "| devices | s a step | images/s | efficiency |",
        "|--:|--:|--:|--:|",
    ]
    text += [
        f"| {r['devices']} | {r['step_seconds']:.3f} | "
        f"{args.share * r['devices'] / r['step_seconds']:.2f} | "
        f"{one / r['step_seconds']:.2f} |"
        for r in rows
    ]
    if cpu:
        text += [
            "",
            f"The devices share {about['cores']} cores: 1 over their number is all "
            "that can be had where one device keeps the cores busy.",
        ]
    text += [
        "",
        "## On paper, not measured",
        "",
        f"Gradients of {size / 2**20:.1f} MiB in float32, {2 * NORMS + 1} small "
        "all-reduces a step, nothing hidden behind computation. Assumed: "
        + "; ".join(f"{n} GPUs: {v[0]}, {1e6 * v[2]:g} us" for n, v in LINKS.items())
        + ".",
        "",
        "| s a step on one GPU | " + " | ".join(f"{n} GPUs" for n in LINKS) + " |",
        "|--:|" + "--:|" * len(LINKS),
    ]
    for seconds in (one, *STEPS) if not cpu else STEPS:
        values = (f"{efficiency(seconds, size, n):.3f}" for n in LINKS)
        kind = "measured" if seconds == one else "assumed"
        text.append(f"| {seconds:.3g} ({kind}) | " + " | ".join(values) + " |")
    text.append("")
    print("\n".join(text))
    if args.out:
        args.out.mkdir(parents=True, exist_ok=True)
        (args.out / "scaling.md").write_text("\n".join(text), encoding="utf-8")
        record = json.dumps({"machine": about, "rows": rows}, indent=1)
        (args.out / "scaling.json").write_text(record, encoding="utf-8")


if __name__ == "__main__":
    main()
