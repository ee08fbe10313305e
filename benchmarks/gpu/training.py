"""Networks of a visit: compiled, trained, evaluated with other references."""

from __future__ import annotations

import argparse
import dataclasses
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

from daasr_jax import data
from daasr_jax.evaluation.controls import (
    Control,
    draw_controls,
    evenly_spaced,
    run_controls,
)
from daasr_jax.evaluation.controls_report import make_controls_report
from daasr_jax.evaluation.controls_scores import measured
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
SYNC = 25  # steps between two looks at the clock
TELL = 5.0  # seconds between two lines
KEEP = 30.0  # seconds after which curve and weights are written
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
    keep: Callable[[TrainState, dict[str, Any]], None],
    *,
    begin: float,
    seconds: float,
) -> tuple[TrainState, dict[str, Any]]:
    """Trains for the time, or for `args.steps`; the first steps set the pace.

    Args:
        programs: Compiled.
        batches: Of the training.
        args: Options.
        keep: Writes what there is, every `KEEP` seconds and at the end.
        begin: Of `time.monotonic`, from which the time counts.
        seconds: Of the time.

    Returns:
        The last state, and what is known of the training.
    """
    state, step = programs.state, programs.step
    steps, total, curve, waited = 0, args.steps, [], 0.0
    metrics: dict[str, Any] = {}
    batch, pace_from, pace_at, tell = next(batches), 0, begin, begin
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


def _used(row: str) -> bool:
    return row not in ("edsr", "no_reference")


def drawn(
    table: data.SliceTable, args: argparse.Namespace
) -> tuple[data.Pairing, dict[str, Control], dict[str, str]]:
    """The references of a set, its controls, and why others are left out."""
    pairing = data.draw_pairing(table, track="aligned", aligned="neighbour")
    used = _used(args.row)
    controls, left_out = draw_controls(table, pairing, scale=args.scale, used=used)
    return pairing, controls, left_out


def evaluate(
    programs: Programs,
    state: TrainState,
    table: data.SliceTable,
    args: argparse.Namespace,
    picture: Path | None,
) -> dict[str, Any]:
    """The controls of one set, as `eval.py --controls` reports them."""
    used = _used(args.row)
    pairing, controls, left_out = drawn(table, args)

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
                titles=(f"slice {chosen.position} of the test set", "a neighbour"),
                path=picture,
            )
    return report


def write_weights(path: Path, state: TrainState) -> None:
    """Writes the weights whole or not at all."""
    flat = traverse_util.flatten_dict(jax.device_get(variables(state)), sep="/")
    new = path.with_suffix(".new.npz")
    np.savez(new, **flat)
    new.replace(path)


def reserve(
    programs: Programs, table: data.SliceTable, args: argparse.Namespace
) -> float:
    """Seconds that the evaluation takes, about: its controls, scores and a picture."""
    _, controls, _ = drawn(table, args)
    run = sum(not one.same_as for one in controls.values())
    count = min(args.slices, len(table)) if args.slices else len(table)
    calls = run * (count / programs.predict.at_once + 1)
    return 1.3 * calls * programs.predict_s + 0.02 * count + 4.0
