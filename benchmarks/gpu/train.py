"""Trains one network on a packed set for its share of the time, and evaluates it.

    python -m benchmarks.gpu.train --row fast --scale 4 --prepared FILE --out DIR
        --seconds 120

The rate of learning falls along a cosine to zero at the end of the time; with `--steps`
at the end of those. Then the test slices are restored with other references, see
`daasr_jax.evaluation.controls`. Writes `train_ROW_xS.json`, `.npz` with the weights,
both on the way too, and, where matplotlib is installed, `.png`.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import traverse_util

from benchmarks.gpu import loader, pack, stage
from daasr_jax import data
from daasr_jax.evaluation.controls import (
    draw_controls,
    evenly_spaced,
    measured,
    run_controls,
)
from daasr_jax.evaluation.controls_report import make_controls_report
from daasr_jax.evaluation.predict import Prediction, make_predict
from daasr_jax.losses import pixel
from daasr_jax.models.daasr import DAASR, PRESETS
from daasr_jax.models.edsr import EDSR
from daasr_jax.models.sat import Fusion
from daasr_jax.training.state import TrainState, create_state
from daasr_jax.training.step import make_train_step

ROWS = {
    "fast": {},
    "paper": {},
    "no_reference": {"align": None, "detail": None},
    "no_pixels": {"detail": None},
    "shared_query": {"query": "shared", "fuse": Fusion, "detail": None},
    "edsr": {},
}
WARM_UP = 0.05  # of the run
AT_ONCE = 8  # slices of a call of the evaluation
SYNC = 25  # steps between two looks at the clock
TELL = 5.0  # seconds between two lines
KEEP = 30.0  # seconds after which curve and weights are written
PLACES = ("prepared", "out", "cache")  # options that are not told to others
RATED = 1.0  # seconds for which the loader's rate is measured
LOSSES = {
    "rec": (1.0, pixel.reconstruction),
    "cwt": (0.1, pixel.structure),
    "sat": (0.01, pixel.texture),
}


def network(row: str, args: argparse.Namespace) -> Any:
    dtype = jnp.dtype(args.dtype)
    if row == "edsr":
        return EDSR(
            scale=args.scale, features=args.features, blocks=args.blocks, dtype=dtype
        )
    kwargs = PRESETS["paper" if row == "paper" else "fast"] | ROWS[row]
    return DAASR(
        scale=args.scale,
        features=args.features,
        groups=args.groups,
        dtype=dtype,
        **kwargs,
    )


@dataclasses.dataclass
class Programs:
    """What is compiled before the turn."""

    step: Any
    state: TrainState
    predict: Any
    predict_s: float  # of one call
    seconds: float


def compiled(args: argparse.Namespace, size: int) -> Programs:
    begin = time.monotonic()
    model = network(args.row, args)
    optimiser = optax.inject_hyperparams(optax.adam)(learning_rate=0.0)
    state = create_state(
        model, optimiser, scale=args.scale, crop=args.crop, seed=args.seed, ema=False
    )
    step = make_train_step(model, optimiser, LOSSES, scale=args.scale)
    side = args.crop * args.scale
    image = jax.ShapeDtypeStruct((args.batch, side, side, 1), jnp.float32)
    shapes = {"hr": image, "ref": image}
    program = jax.jit(step, donate_argnums=0).lower(state, shapes).compile()
    predict = make_predict(model, scale=args.scale, border=args.scale, method=args.row)
    predict = dataclasses.replace(predict, at_once=args.at_once)
    whole = size // args.scale * args.scale
    blank = np.zeros((args.at_once, whole, whole, 1), np.float32)
    jax.block_until_ready(predict(variables(state), blank, blank))
    spent = time.monotonic() - begin
    again = time.monotonic()
    jax.device_get(predict(variables(state), blank, blank))
    return Programs(program, state, predict, time.monotonic() - again, spent)


def variables(state: TrainState) -> dict[str, Any]:
    return {"params": state.gen, "batch_stats": state.batch_stats}


def learning_rate(done: float, most: float) -> float:
    """Of the part of the run that is done: a line up, then a cosine to zero."""
    if done < WARM_UP:
        return most * done / WARM_UP
    along = min(1.0, (done - WARM_UP) / (1 - WARM_UP))
    return most * 0.5 * (1 + math.cos(math.pi * along))


def train(
    programs: Programs,
    batches: Iterator[dict[str, Any]],
    args: argparse.Namespace,
    seconds: float,
    keep: Callable[[TrainState, dict[str, Any]], None],
) -> tuple[TrainState, dict[str, Any]]:
    """Trains for the time, or for `args.steps`; the first steps set the pace.

    Args:
        programs: Compiled.
        batches: Of the training.
        args: Options.
        seconds: Of the time.
        keep: Writes what there is, every `KEEP` seconds and at the end.

    Returns:
        The last state, and what is known of the training.
    """
    state, step = programs.state, programs.step
    first = next(batches)  # the workers have begun
    begin = time.monotonic()
    steps, total, curve, waited = 0, args.steps, [], 0.0
    metrics: dict[str, Any] = {}
    batch, pace_from, pace_at, tell = first, 0, begin, begin
    kept = begin

    def result() -> dict[str, Any]:
        taken = time.monotonic() - begin
        return {
            "steps": steps,
            "train_seconds": taken,
            "images_per_s": steps * args.batch / taken,
            "waited_for_batches_s": waited,
            "curve": curve,
            "skipped": int(state.skipped),
            "loss": {k: float(v) for k, v in metrics.items()},
        }

    while True:
        planned = total or max(
            steps + 1, steps + _left(steps, pace_from, pace_at, begin + seconds)
        )
        rate = learning_rate((steps + 0.5) / max(planned, 1), args.learning_rate)
        if steps < SYNC and not total:  # the pace is not known yet
            rate = args.learning_rate * min(1.0, steps / 200)
        state = state.replace(  # pyright: ignore
            gen_opt=state.gen_opt._replace(
                hyperparams=state.gen_opt.hyperparams
                | {"learning_rate": jnp.asarray(rate, jnp.float32)}
            )
        )
        state, metrics = step(state, batch)
        steps += 1
        if steps % SYNC == 0 or steps == total:
            loss = float(metrics["g/total"])  # waits for the step
            now = time.monotonic()
            if steps == SYNC:
                pace_from, pace_at = steps, now
            curve.append([steps, now - begin, loss, rate])
            if now >= tell or steps == total:
                tell = now + TELL
                left = begin + seconds - now if not total else 0.0
                print(
                    f"{args.row} x{args.scale}: step {steps} of {planned}, loss "
                    f"{loss:.5f}, {(now - begin) / steps * 1e3:.1f} ms a step, "
                    f"{left:.0f} s left",
                    flush=True,
                )
            if (total and steps >= total) or (not total and now >= begin + seconds):
                break
            if now >= kept + KEEP:
                keep(state, result())
                kept = time.monotonic()
        asked = time.monotonic()
        batch = next(batches)
        waited += time.monotonic() - asked
    found = result()
    keep(state, found)
    return state, found


def _left(steps: int, pace_from: int, pace_at: float, end: float) -> int:
    """Steps until the end at the pace so far."""
    now = time.monotonic()
    if steps <= pace_from or now <= pace_at:
        return 10**6
    return int((end - now) * (steps - pace_from) / (now - pace_at))


def evaluate(
    programs: Programs,
    state: TrainState,
    table: data.SliceTable,
    args: argparse.Namespace,
    picture: Path | None,
) -> dict[str, Any]:
    """The controls of one set, as `eval.py --controls` reports them."""
    pairing = data.draw_pairing(table, track="aligned", aligned="neighbour")
    used = args.row not in ("edsr", "no_reference")
    controls, left_out = draw_controls(table, pairing, scale=args.scale, used=used)

    def restored(**kwargs: Any) -> Iterator[dict[str, Prediction]]:
        return run_controls(
            programs.predict,
            variables(state),
            table,
            pairing,
            controls,
            scale=args.scale,
            **kwargs,
        )

    tested = evenly_spaced(len(table), args.slices or len(table))
    rows = [measured(found, args.row) for found in restored(positions=tested)]
    report = make_controls_report(
        rows,
        table,
        pairing,
        controls,
        left_out,
        used=used,
        method=args.row,
        scale=args.scale,
        border=args.scale,
        resamples=2000,
        seed=0,
        provenance={},
    )
    if picture is not None and used:
        try:
            from daasr_jax.evaluation.controls_panel import draw_controls_panel
            from daasr_jax.evaluation.panel import typical
        except ImportError as error:
            print(f"no picture: {error}", flush=True)
        else:
            chosen = typical(rows, "pair")
            draw_controls_panel(
                next(restored(positions=[chosen.position])),
                report,
                titles=(table.keys[chosen.position], table.keys[chosen.reference]),
                path=picture,
            )
    return report


def write_weights(path: Path, state: TrainState) -> None:
    """Writes the weights whole or not at all."""
    flat = traverse_util.flatten_dict(jax.device_get(variables(state)), sep="/")
    new = path.with_suffix(".new.npz")
    np.savez(new, **flat)
    new.replace(path)


def reserve(programs: Programs, table: data.SliceTable, slices: int) -> float:
    """Seconds that the evaluation takes, about: six controls, scores and a picture."""
    count = min(slices, len(table)) if slices else len(table)
    calls = 6 * (count / programs.predict.at_once + 1)
    return 1.3 * calls * programs.predict_s + 0.02 * count + 4.0


def sets_of(table: data.SliceTable, about: dict[str, Any]) -> dict[str, Any]:
    """The slices of each set that was packed, by a name for people."""
    out = {}
    for number, one in enumerate(about["sets"]):
        head = f"{number}:" if number else ""
        own = [
            i
            for i, volume in enumerate(table.volumes)
            if (volume.startswith(head) if head else ":" not in volume)
        ]
        if own:
            name = one["dataset"]
            out[f"{name} ({number})" if name in out else name] = table.only(own)
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--row", required=True, choices=ROWS)
    parser.add_argument("--scale", type=int, default=4)
    parser.add_argument("--prepared", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seconds", type=float, help="by itself: of the whole turn")
    parser.add_argument("--steps", type=int, default=0, help="instead of a time")
    parser.add_argument("--features", type=int, default=64)
    parser.add_argument("--groups", type=int, default=6)
    parser.add_argument("--blocks", type=int, default=16, help="of EDSR")
    parser.add_argument("--batch", type=int, default=9)
    parser.add_argument("--crop", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--learning_rate", type=float, default=3e-4)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--precision", default="tensorfloat32")
    parser.add_argument("--workers", type=int, default=6)
    parser.add_argument("--at_once", type=int, default=AT_ONCE)
    parser.add_argument(
        "--slices", type=int, default=0, help="of a set, to test; 0: all"
    )
    parser.add_argument("--cache", type=Path, help="folder of compiled programs")
    args = parser.parse_args()
    jax.config.update("jax_default_matmul_precision", args.precision)
    stage.keep_compiled(args.cache)
    tables, about = pack.load(args.prepared)
    how = {
        "batch_size": args.batch,
        "crop": args.crop,
        "scale": args.scale,
        "seed": args.seed,
    }
    programs = compiled(args, tables["train"].size)
    one_process = loader.rate(args.prepared, RATED, **how)
    seconds = stage.turn(args.seconds)
    begin = time.monotonic()
    name = f"train_{args.row}_x{args.scale}" + (f"_{args.seed}" if args.seed else "")
    known = {
        "row": args.row,
        "scale": args.scale,
        "seed": args.seed,
        "parameters": sum(x.size for x in jax.tree.leaves(programs.state.gen)),
        "compile_s": programs.seconds,
        "options": {
            k: str(v) for k, v in vars(args).items() if k not in (*how, *PLACES)
        },
        "turn_given_s": seconds,
        "loader_images_per_s_of_a_process": one_process,
        "how": how | {"shares": dataclasses.asdict(loader.SHARES)},
        "device": jax.devices()[0].device_kind,
        "sets": about["sets"],
    }

    def keep(state: TrainState, found: dict[str, Any]) -> None:
        stage.write(args.out / f"{name}.json", known | found)
        write_weights(args.out / f"{name}.npz", state)

    tested = sets_of(tables["test"], about)
    batches = loader.batches(args.prepared, workers=args.workers, **how)
    with contextlib.closing(batches):
        kept = sum(reserve(programs, table, args.slices) for table in tested.values())
        given = max(seconds / 3, seconds - kept)
        state, found = train(programs, batches, args, given, keep)
    result = known | found
    result["controls"] = {}
    for number, (dataset, table) in enumerate(tested.items()):
        picture = args.out / f"{name}_{number}.png"
        report = evaluate(programs, state, table, args, picture)
        del report["per_slice"]
        result["controls"][dataset] = report
        means = {k: v["psnr"]["mean"] for k, v in report["methods"].items()}
        said = {k: None if v is None else round(v, 2) for k, v in means.items()}
        print(f"{name}, {dataset}: {json.dumps(said)}", flush=True)
        stage.write(args.out / f"{name}.json", result)
    result["turn_s"] = time.monotonic() - begin
    stage.write(args.out / f"{name}.json", result)
    print(f"{name}: {result['steps']} steps, {result['turn_s']:.0f} s", flush=True)


if __name__ == "__main__":
    main()
