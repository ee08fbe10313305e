"""A small network with a discriminator, its step, and programs that run it.

    python -m tests.gpu.small straight DIR    4 steps; the state after 2 and after 4
    python -m tests.gpu.small resumed DIR     2 steps on the state after 2
    python -m tests.gpu.small size N          one step of N images

The flags of XLA and the limits of memory are read once in a process, so what depends on
them is a program.
"""

from __future__ import annotations

import statistics
import sys
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
from flax import serialization

from daasr_jax.errors import UserError
from daasr_jax.models.daasr import DAASR, PRESETS
from daasr_jax.models.discriminator import PatchDiscriminator
from daasr_jax.registry import LOSSES
from daasr_jax.runtime.failures import explained
from daasr_jax.training.adversarial import Adversarial
from daasr_jax.training.schedules import make_optimiser
from daasr_jax.training.state import TrainState, create_state
from daasr_jax.training.step import make_train_step

SCALE, CROP, IMAGES = 2, 12, 2
WEIGHTS = {"rec": 1.0, "cwt": 0.1, "sat": 0.01}
HALF, WHOLE = 2, 4  # steps
STATE, STRAIGHT, RESUMED = "state.msgpack", "straight.msgpack", "resumed.msgpack"


def make() -> tuple[TrainState, Any]:
    """The first state, and the jitted step: products in float32, Adam, WGAN-GP."""
    jax.config.update("jax_default_matmul_precision", "float32")
    adam = make_optimiser("adam", optax.constant_schedule(1e-3))
    model = DAASR(scale=SCALE, features=8, groups=2, **PRESETS["fast"])
    adversarial = Adversarial(
        discriminator=PatchDiscriminator(features=4, stages=2),
        optimiser=adam,
        objective="wgan-gp",
        weight=1e-3,
    )
    state = create_state(
        model,
        adam,
        scale=SCALE,
        crop=CROP,
        seed=0,
        ema=True,
        adversarial=adversarial,
    )
    losses = {name: (w, LOSSES.get(f"pixel.{name}")) for name, w in WEIGHTS.items()}
    step = make_train_step(
        model,
        adam,
        losses,
        scale=SCALE,
        ema_decay=0.9,
        adversarial=adversarial,
    )
    return state, jax.jit(step)


def batch(number: int, images: int = IMAGES) -> dict[str, np.ndarray]:
    """The batch of a step, by its number."""
    rng = np.random.default_rng(number)
    shape = (images, SCALE * CROP, SCALE * CROP, 1)
    return {name: rng.random(shape, np.float32) for name in ("hr", "ref")}


def steps(run: Any, state: TrainState, last: int) -> tuple[TrainState, list[dict]]:
    """The state after step number `last`, and the metrics of every step until then."""
    rows = []
    for number in range(int(state.step), last):
        state, metrics = run(state, batch(number))
        rows.append(jax.device_get(metrics))
    return state, rows


def step_ms(run: Any, state: TrainState, repeats: int = 20) -> float:
    """Median milliseconds of a step, by itself, once it is compiled."""
    given = jax.device_put(batch(0))
    times = []
    for _ in range(repeats + 3):
        begin = time.perf_counter()
        jax.block_until_ready(run(state, given))
        times.append(1e3 * (time.perf_counter() - begin))
    return statistics.median(times[3:])


def main(command: str, argument: str) -> None:
    state, run = make()
    if command == "size":
        with explained():
            _, metrics = run(state, batch(0, int(argument)))
            print(f"fits, loss {float(metrics['g/total']):.4f}")
        return
    folder = Path(argument)
    if command == "straight":
        state, _ = steps(run, state, HALF)
        (folder / STATE).write_bytes(serialization.to_bytes(state))
        state, _ = steps(run, state, WHOLE)
        (folder / STRAIGHT).write_bytes(serialization.to_bytes(state))
        print(f"{step_ms(run, state):.3f}")
    elif command == "resumed":
        state = serialization.from_bytes(state, (folder / STATE).read_bytes())
        state, _ = steps(run, state, WHOLE)
        (folder / RESUMED).write_bytes(serialization.to_bytes(state))
    else:
        raise SystemExit(f"straight, resumed or size, not {command}")


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except UserError as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_code)
