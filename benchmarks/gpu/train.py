"""Trains one network on a packed set for its share of the time, and evaluates it.

    python -m benchmarks.gpu.train --row fast --scale 4 --prepared FILE --out DIR
        --seconds 120

The rate of learning falls along a cosine to zero at the end of the time; with `--steps`
at the end of those. Then the test slices are restored with other references, see
`daasr_jax.evaluation.controls`. Writes `train_ROW_xS.json`, `.npz` with the weights,
both on the way too, and, where matplotlib is installed, `.png`. None names a subject.
A size other than the published one is in their names, `train_ROW_xS_32x4`.

The processes of the loader import this file anew: it knows no JAX until it has begun.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import itertools
import json
import time
from pathlib import Path
from typing import Any

from benchmarks.gpu import loader, pack, report, stage

PLACES = ("prepared", "out", "cache")  # options that are not told to others
TOLD = ("dataset", "key", "size")  # of a set
SIZE = {"features": 64, "groups": 6, "blocks": 16}  # published; blocks of EDSR
RATED = 1.0  # seconds for which the loader's rate is measured


def options(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu.train", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--row", required=True, choices=report.NAMES)
    parser.add_argument("--scale", type=int, default=4)
    parser.add_argument("--prepared", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seconds", type=float, help="by itself: of the whole turn")
    parser.add_argument("--steps", type=int, default=0, help="instead of a time")
    parser.add_argument("--features", type=int, default=SIZE["features"])
    parser.add_argument("--groups", type=int, default=SIZE["groups"])
    parser.add_argument("--blocks", type=int, default=SIZE["blocks"], help="of EDSR")
    parser.add_argument("--batch", type=int, default=9)
    parser.add_argument("--crop", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--learning_rate", type=float, default=3e-4)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--precision", default="tensorfloat32")
    parser.add_argument("--workers", type=int, default=6)
    parser.add_argument("--at_once", type=int, default=8)
    parser.add_argument(
        "--slices", type=int, default=0, help="of a set, to test; 0: all"
    )
    parser.add_argument("--cache", type=Path, help="folder of compiled programs")
    return parser.parse_args(argv)


def name_of(args: argparse.Namespace) -> str:
    """The name of the files, without their endings."""
    own, usual = (
        f"_{x['features']}x{report.depth(args.row, x)}" for x in (vars(args), SIZE)
    )
    name = f"train_{args.row}_x{args.scale}" + (own if own != usual else "")
    return name + (f"_{args.seed}" if args.seed else "")


def main() -> None:
    args = options()
    stage.needs("jax", "flax", "optax", "jaxtyping")
    import jax

    from benchmarks.gpu import training

    jax.config.update("jax_default_matmul_precision", args.precision)
    stage.keep_compiled(args.cache)
    tables, about = pack.load(args.prepared)
    how = {
        "batch_size": args.batch,
        "crop": args.crop,
        "scale": args.scale,
        "seed": args.seed,
    }
    tested = pack.sets_of(tables["test"], about)
    programs = training.compiled(args, tables["train"].size)
    kept = sum(training.reserve(programs, x, args) for x in tested.values())
    one_process = loader.rate(args.prepared, RATED, **how)
    batches = loader.batches(args.prepared, workers=args.workers, **how)
    name = name_of(args)
    known = {
        "row": args.row,
        "scale": args.scale,
        "seed": args.seed,
        "parameters": sum(x.size for x in jax.tree.leaves(programs.state.gen)),
        "compile_s": programs.seconds,
        "options": {
            k: str(v) for k, v in vars(args).items() if k not in (*how, *PLACES)
        },
        "loader_images_per_s_of_a_process": one_process,
        "how": how | {"shares": dataclasses.asdict(loader.SHARES)},
        "device": jax.devices()[0].device_kind,
        "sets": [{k: one[k] for k in TOLD} for one in about["sets"]],
    }

    def keep(state: Any, found: dict[str, Any]) -> None:
        stage.write(args.out / f"{name}.json", known | found)
        training.write_weights(args.out / f"{name}.npz", state)

    with contextlib.closing(batches):
        first = next(batches)  # the processes have begun
        turn = stage.turn(args.seconds)
        begin = time.monotonic()
        known |= {"turn_given_s": turn.seconds, "beside": turn.beside}
        state, found = training.train(
            programs,
            itertools.chain([first], batches),
            args,
            keep,
            begin=begin,
            seconds=max(turn.seconds / 3, turn.seconds - kept),
        )
    result = known | found
    result["controls"] = {}
    for number, (dataset, table) in enumerate(tested.items()):
        picture = args.out / f"{name}_{number}.png"
        found = training.evaluate(programs, state, table, args, picture)
        for names in ("per_slice", "per_subject"):  # a result names no subject
            del found[names]
        result["controls"][dataset] = found
        means = {k: v["psnr"]["mean"] for k, v in found["methods"].items()}
        said = {k: None if v is None else round(v, 2) for k, v in means.items()}
        print(f"{name}, {dataset}: {json.dumps(said)}", flush=True)
        stage.write(args.out / f"{name}.json", result)
    result["turn_s"] = time.monotonic() - begin
    stage.write(args.out / f"{name}.json", result)
    print(f"{name}: {result['steps']} steps, {result['turn_s']:.0f} s", flush=True)


if __name__ == "__main__":
    main()
