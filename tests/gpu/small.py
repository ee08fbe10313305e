"""A small network with a discriminator, its step, and programs that run it.

    python -m tests.gpu.small straight DIR   4 steps; the state after 2 and after 4,
                                             then, once told to, the time of a step
    python -m tests.gpu.small resumed DIR    2 steps on the state after 2
    python -m tests.gpu.small size N         a step of N images, without discriminator

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
from tests.parity.weights import random_variables

SCALE, CROP, IMAGES = 2, 12, 2
WEIGHTS = {"rec": 1.0, "cwt": 0.1, "sat": 0.01}
HALF, WHOLE = 2, 4  # steps
STATE, STRAIGHT, RESUMED = "state.msgpack", "straight.msgpack", "resumed.msgpack"


def make(*, adversarial: bool = True) -> tuple[TrainState, Any]:
    """The first state, and the jitted step: products in float32, Adam, WGAN-GP.

    No parameter is zero, as heads are at first: then nothing reaches what is below.
    """
    jax.config.update("jax_default_matmul_precision", "float32")
    adam = make_optimiser("adam", optax.constant_schedule(1e-3))
    model = DAASR(scale=SCALE, features=8, groups=2, **PRESETS["fast"])
    game = Adversarial(
        discriminator=PatchDiscriminator(features=4, stages=2),
        optimiser=adam,
        objective="wgan-gp",
        weight=1e-3,
    )
    played = game if adversarial else None
    state = create_state(
        model,
        adam,
        scale=SCALE,
        crop=CROP,
        seed=0,
        ema=True,
        adversarial=played,
    )
    gen = random_variables(state.gen, seed=1)
    state = state.replace(gen=gen, ema=gen)
    losses = {name: (w, LOSSES.get(f"pixel.{name}")) for name, w in WEIGHTS.items()}
    step = make_train_step(
        model,
        adam,
        losses,
        scale=SCALE,
        ema_decay=0.9,
        adversarial=played,
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
    if command == "size":
        state, run = make(adversarial=False)
        with explained():
            _, metrics = run(state, batch(0, int(argument)))
            print(f"fits, loss {float(metrics['g/total']):.4f}")
        return
    folder = Path(argument)
    state, run = make()
    if command == "straight":
        state, _ = steps(run, state, HALF)
        save(state, folder / STATE)
        state, _ = steps(run, state, WHOLE)
        save(state, folder / STRAIGHT)
        sys.stdin.readline()
        print(f"{step_ms(run, state):.3f}")
    elif command == "resumed":
        run = run.lower(state, batch(0)).compile()  # while the state is on its way
        state = restore(state, folder / STATE)
        state, _ = steps(run, state, WHOLE)
        save(state, folder / RESUMED)


def save(state: TrainState, path: Path) -> None:
    part = path.with_suffix(".part")
    part.write_bytes(serialization.to_bytes(state))
    part.rename(path)


def restore(like: TrainState, path: Path) -> TrainState:
    """Waits for the file, whose writer may be at work yet."""
    while not path.exists():
        time.sleep(0.1)
    return serialization.from_bytes(like, path.read_bytes())


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except UserError as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_code)
