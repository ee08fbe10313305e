"""A training run of a small network that is killed again and again.

`python -m tests.faults.killed FOLDER STEPS TIMES KIND`: trains FOLDER/whole to its end
in one child, then FOLDER/parts, whose children are killed (SIGKILL) at TIMES random
moments. KIND is `network`, or `counting`: a step that costs nothing.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
import traceback
from pathlib import Path

import jax

from daasr_jax.data import training_batches
from daasr_jax.runtime import devices
from daasr_jax.runtime.stopping import StopRequest
from daasr_jax.training import loop
from daasr_jax.training.checkpoints import Checkpoints
from daasr_jax.training.state import TrainState
from daasr_jax.training.step import Step
from daasr_jax.training.writers import RunWriter
from tests.data_fixtures import table
from tests.unit.test_training import (
    CROP,
    SCALE,
    counting_step,
    game,
    make,
    small_state,
    tiny,
)

SAVE_EVERY = 4


def network() -> tuple[TrainState, Step]:
    """The whole of it: generator, discriminator, both optimisers, EMA, key."""
    return make(
        tiny(),
        ema_decay=0.9,
        axis=devices.AXIS,
        adversarial=game("wgan-gp", start_step=3),
    )


def train(folder: Path, steps: int, kind: str) -> None:
    """Trains on the batches of the data layer."""
    jax.config.update("jax_num_cpu_devices", 1)
    counting = small_state(), counting_step
    state, step = network() if kind == "network" else counting
    slices = table(size=32)
    run = {"batch_size": 2, "crop": CROP, "scale": SCALE, "steps": steps, "seed": 1}
    checkpoints = Checkpoints(folder)
    with StopRequest() as stop:
        loop.train(
            step,
            state,
            lambda start: training_batches(slices, **run, start=start),
            mesh=devices.make_mesh(2, 1),
            settings=loop.LoopSettings(
                steps=steps,
                steps_per_epoch=12,
                batch_size=2,
                log_every=1,
                validate_every=12,
                checkpoint_every=SAVE_EVERY,
            ),
            checkpoints=checkpoints,
            writer=lambda start: RunWriter(folder, start_step=start),
            validate=None,
            stop=stop,
        )
    checkpoints.close()


def child(folder: Path, steps: int, kind: str) -> int:
    """Process id of a child that trains; nothing of JAX was started before."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            train(folder, steps, kind)
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    return pid


def lines(folder: Path) -> int:
    log = folder / "metrics.jsonl"
    return log.read_text().count("\n") if log.exists() else 0


def main() -> None:
    """The command."""
    root, steps, times = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    kind, rng = sys.argv[4], random.Random(times)
    whole, parts = root / "whole", root / "parts"
    for folder in (whole, parts):
        folder.mkdir()
    _, status = os.waitpid(child(whole, steps, kind), 0)
    assert status == 0
    for n in range(times):
        pid = child(parts, steps, kind)
        # about as far as its share of the kills, so that the last one has begun late
        wanted = min(1 + n * steps // times + rng.randrange(4), steps - 2)
        while lines(parts) < wanted:
            done, status = os.waitpid(pid, os.WNOHANG)
            assert not done, f"ended by itself: {status}"
            time.sleep(0.002)
        time.sleep(rng.random() * 0.1)
        os.kill(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
        print(f"kill {n + 1} after {lines(parts)} reports: {status}", flush=True)
    _, status = os.waitpid(child(parts, steps, kind), 0)
    assert status == 0


if __name__ == "__main__":
    main()
