"""Time and memory of one slice through every model, at its published size.

    python -m benchmarks.inference [--models NAME,...] [--scale 4] [--out DIR]

Random weights and images, one slice of 256x256 and one of 320x320 (HR), float32. Every
line in a process of its own; median of the repeats [lowest, highest] after one call
that is not counted. Peak memory is the resident peak of the process, framework and
compilation included, on a GPU that of its allocator. `small` are the fields of the
configurations `:small`. Writes `inference.md` and `inference.json`. Whole volumes with
the weights of the package: `benchmarks.volumes`.
"""

from __future__ import annotations

import argparse
import importlib
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.reference import row
from benchmarks.train_step import machine, machine_line, peak_mib, save, timed

SIZES = (256, 320)
LIMIT_SECONDS = 600


def fields_of(name: str, size: str) -> dict[str, Any]:
    """Fields of the model: none for the published size."""
    if size == "published":
        return {}
    from daasr_jax.registry import MODELS, resolved

    system = MODELS.get(name).__module__.rpartition(".")[2]
    file, preset = f"{system}_x4", "small"
    if system == "daasr":
        file, preset = "brain_x4_small", "fast"
    config = importlib.import_module(f"configs.{file}").get_config(preset)
    return resolved(config.model.kwargs)


def child(name: str, size: str, scale: int, side: int, repeats: int) -> None:
    import jax
    import jax.numpy as jnp

    from daasr_jax.models.network import variable_shapes
    from daasr_jax.registry import MODELS

    key = jax.random.key(0)
    lr = jax.random.uniform(key, (1, side // scale, side // scale, 1))
    ref = jax.random.uniform(key, (1, side // scale * scale, side // scale * scale, 1))
    model = MODELS.get(name)(scale=scale, **fields_of(name, size))
    # Variances must be positive.
    variables = jax.tree.map(
        lambda x: jnp.abs(0.02 * jax.random.normal(key, x.shape, x.dtype)),
        variable_shapes(model, scale),
    )
    apply = jax.jit(lambda v, a, b: model.apply(v, a, b, train=False).sr)
    compiled = apply.lower(variables, lr, ref).compile()
    times, _ = timed(
        lambda: jax.block_until_ready(compiled(variables, lr, ref)), repeats
    )
    stats = jax.devices()[0].memory_stats()
    print(
        json.dumps(
            {
                "model": name,
                "size": size,
                "scale": scale,
                "side": side,
                "parameters": sum(x.size for x in jax.tree.leaves(variables["params"])),
                "median_ms": statistics.median(times),
                "min_ms": min(times),
                "max_ms": max(times),
                "peak_mib": stats["peak_bytes_in_use"] / 2**20 if stats else peak_mib(),
            }
        )
    )


def measure(name: str, size: str, scale: int, side: int, repeats: int) -> Any:
    command = [sys.executable, "-m", "benchmarks.inference", "--child", name]
    command += ["--size", size, "--scale", str(scale), "--side", str(side)]
    command += ["--repeats", str(repeats)]
    head = {"model": name, "size": size, "scale": scale, "side": side}
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=LIMIT_SECONDS
        )
    except subprocess.TimeoutExpired:
        return head | {"not_run": f"over {LIMIT_SECONDS} s"}
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["killed"])[-1][:120]
        return head | {"not_run": reason}
    return json.loads(done.stdout.strip().splitlines()[-1])


def markdown(rows: list[dict[str, Any]], about: dict[str, Any], command: str) -> str:
    scales = ", ".join(sorted({f"x{r['scale']}" for r in rows}))
    text = [
        "# One slice through every model",
        "",
        f"`{command}`: random weights and images, {scales}, float32, every "
        "line in a process of its own; median [lowest, highest] after one call that is "
        "not counted. Peak memory is that of the process, framework and compilation "
        "included.",
        "",
        machine_line(about),
        "",
        row(["model", "size", "parameters", "slice", "ms", "peak MiB"]),
        "|---|---|--:|--:|--:|--:|",
    ]
    for r in rows:
        cells = [r["model"], r["size"]]
        if "not_run" in r:
            text.append(
                row([*cells, "-", str(r["side"]), f"not run: {r['not_run']}", "-"])
            )
            continue
        text.append(
            row(
                [
                    *cells,
                    f"{r['parameters']:,}",
                    f"{r['side']}x{r['side']}",
                    f"{r['median_ms']:,.0f} [{r['min_ms']:,.0f}, {r['max_ms']:,.0f}]",
                    f"{r['peak_mib']:,.0f}",
                ]
            )
        )
    return "\n".join([*text, ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", default="", help="names, separated by commas")
    parser.add_argument("--sizes", default="published,small")
    parser.add_argument("--scale", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", default="docs/results", help="folder of the table")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--size", help=argparse.SUPPRESS)
    parser.add_argument("--side", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        child(args.child, args.size, args.scale, args.side, args.repeats)
        return
    from daasr_jax.registry import MODELS

    names = [n for n in args.models.split(",") if n] or MODELS.names()
    jobs = [
        (name, size, args.scale, side)
        for size in args.sizes.split(",")
        for name in names
        # The small fields are those of a system, not of each of its variants.
        if size == "published" or name == MODELS.get(name).__module__.rpartition(".")[2]
        for side in SIZES
    ]
    begin, rows = time.monotonic(), []
    for i, job in enumerate(jobs):
        rows.append(measure(*job, args.repeats))
        spent = time.monotonic() - begin
        rest = spent / (i + 1) * (len(jobs) - i - 1)
        print(f"{job}: {spent:.0f} s spent, about {rest:.0f} s left", flush=True)
    about = machine()
    command = f"python -m benchmarks.inference --sizes {args.sizes} "
    command += f"--scale {args.scale} --repeats {args.repeats}"
    command += f" --models {args.models}" if args.models else ""
    text = markdown(rows, about, command)
    save(Path(args.out), "inference", text, about, rows)


if __name__ == "__main__":
    main()
