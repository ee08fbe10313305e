"""The step on the device: against a CPU, against itself, and in too little memory."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from flax import serialization

from daasr_jax.errors import ResourceError
from daasr_jax.runtime import devices, memory
from tests.gpu import small

ROOT = Path(__file__).parents[2]


LIMIT = 180  # seconds for a program
TOO_MANY = 16384  # images of a step that on a CPU takes 12 GiB


class Program:
    """`python -m tests.gpu.small`, started with changes of the environment."""

    def __init__(self, folder: Path, *arguments: str, **changes: str) -> None:
        # Into files: a device out of memory says more than a pipe holds.
        self._out = folder / f"{arguments[0]}.out"
        self._said = folder / f"{arguments[0]}.err"
        with self._out.open("w") as out, self._said.open("w") as said:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tests.gpu.small", *arguments],
                cwd=ROOT,
                env=os.environ | changes,
                stdin=subprocess.PIPE,
                stdout=out,
                stderr=said,
                text=True,
            )

    def end(self, needs: Program | None = None) -> tuple[int, str, str]:
        """Exit code and both streams; one that it `needs` must not fail meanwhile."""
        begin = time.monotonic()
        while self.process.poll() is None:
            if time.monotonic() > begin + LIMIT:
                raise AssertionError(f"no end in {LIMIT} s: {self._said.read_text()}")
            if needs is not None and needs.process.poll():
                raise AssertionError(needs.end())
            time.sleep(0.05)
        return self.process.returncode, self._out.read_text(), self._said.read_text()

    def tell(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write("go\n")
        self.process.stdin.flush()


def flags(*more: str) -> dict[str, str]:
    return {"XLA_FLAGS": " ".join([os.environ.get("XLA_FLAGS", ""), *more]).strip()}


def vector(tree: Any) -> np.ndarray:
    """All floats of a tree, float64."""
    leaves = [np.asarray(x) for x in jax.tree.leaves(tree)]
    return np.concatenate(
        [x.ravel().astype(np.float64) for x in leaves if x.dtype.kind == "f"]
    )


def error(got: Any, wanted: Any) -> float:
    a, b = vector(got), vector(wanted)
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


def moments(state: Any) -> dict[str, Any]:
    """Adam's mean gradients of both networks; after one step 0.1 of the gradients."""
    return {
        "generator": state.gen_opt.inner_state[0].mu,
        "discriminator": state.disc_opt.inner_state[0].mu,
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("resume")


@pytest.fixture(scope="module")
def programs(device, folder):
    """What runs in processes of its own, started all at once: they mostly compile."""
    deterministic = flags(devices.DETERMINISTIC)
    started = {
        name: Program(folder, name, str(folder), **deterministic)
        for name in ("straight", "resumed")
    }
    if device.platform == "cpu":
        started["size"] = Program(folder, "size", "1")
    else:
        started["size"] = Program(
            folder,
            "size",
            str(TOO_MANY),
            XLA_PYTHON_CLIENT_PREALLOCATE="true",
            XLA_PYTHON_CLIENT_MEM_FRACTION="0.01",
            # What is tried out while compiling would meet the limit first.
            **flags("--xla_gpu_autotune_level=0"),
        )
    yield started
    for program in started.values():
        program.process.kill()
        program.process.communicate()  # closes what it reads


@pytest.fixture(scope="module")
def made(programs, device):
    """First state, jitted step."""
    before = jax.config.values["jax_default_matmul_precision"]
    state, run = small.make()
    yield jax.device_put(state, device), run
    jax.config.update("jax_default_matmul_precision", before)


@pytest.fixture(scope="module")
def ran(made):
    """The state after each of four steps, and their metrics."""
    state, run = made
    states, rows = [], []
    for last in range(1, small.WHOLE + 1):
        state, row = small.steps(run, state, last)
        states.append(state)
        rows += row
    return states, rows


def test_adversarial_step_equals_that_of_a_cpu(made, ran, cpu, measured):
    """Metrics and gradients within 1e-4: float32 sums in another order.

    The gradient penalty differentiates twice; a gradient of it is off by some 1e-6 on
    the CPU itself. On a CPU this compares a step with itself.
    """
    state, [wanted] = small.steps(made[1], jax.device_put(made[0], cpu), 1)
    assert state.step.devices() == {cpu}
    got, metrics = ran[0][0], ran[1][0]
    assert set(metrics) == set(wanted)
    for name, value in metrics.items():
        assert value == pytest.approx(wanted[name], rel=1e-4, abs=1e-6), name
    assert int(got.step) == 1
    assert int(got.skipped) == 0
    of_cpu = moments(state)
    errors = {name: error(tree, of_cpu[name]) for name, tree in moments(got).items()}
    measured(" ".join(f"{name}={value:.1e}" for name, value in errors.items()))
    assert max(errors.values()) <= 1e-4


def test_two_runs_agree(made, ran, measured):
    """Four steps again: on a GPU sums by scatter-add have no order.

    In the first step that is rounding: metrics agree within 2e-5. Changing all
    parameters by 1e-7 changes those of the generator by as much after four steps. It
    also switches a unit of the discriminator, whose parameters then differ by 4e-5, the
    norm of its gradient by 2e-4. Allowed are 2e-4 and 1e-3.
    """
    again, rows = small.steps(made[1], made[0], small.WHOLE)
    errors = {
        name: error(getattr(again, name), getattr(ran[0][-1], name))
        for name in ("gen", "disc", "batch_stats", "ema")
    }
    losses = [
        max(abs(row[k] - other[k]) / max(abs(other[k]), 1e-3) for k in row)
        for row, other in zip(rows, ran[1], strict=True)
    ]
    measured(
        " ".join(f"{name}={value:.1e}" for name, value in errors.items())
        + f" metrics={losses[0]:.1e}, {max(losses):.1e}"
    )
    assert losses[0] <= 2e-5
    assert max(losses) <= 1e-3
    assert max(errors.values()) <= 2e-4
    moved = error(ran[0][-1].gen, made[0].gen)
    assert moved > 1e-3, "the steps hardly moved, so that they agree says nothing"


def test_resume_is_exact(folder, programs, made, measured):
    """4 steps, and 2 and 2 in two processes, with deterministic operations: equal bits.

    Beside it what they cost; the default is that of this process.
    """
    straight, resumed = programs["straight"], programs["resumed"]
    code, _, said = resumed.end(needs=straight)
    assert code == 0, said
    programs["size"].end()  # so that nothing else runs
    straight.tell()
    code, milliseconds, said = straight.end()
    assert code == 0, said
    default = small.step_ms(made[1], made[0])
    measured(
        f"deterministic_step_ms={float(milliseconds):.3f} default_step_ms={default:.3f}"
    )
    half, one, two = (
        serialization.msgpack_restore((folder / name).read_bytes())
        for name in (small.STATE, small.STRAIGHT, small.RESUMED)
    )
    assert (int(half["step"]), int(one["step"])) == (small.HALF, small.WHOLE)
    assert error(half["gen"], one["gen"]) > 1e-4
    leaves, others = (jax.tree.leaves_with_path(tree) for tree in (one, two))
    assert [path for path, _ in leaves] == [path for path, _ in others]
    unequal = [
        jax.tree_util.keystr(path)
        for (path, a), (_, b) in zip(leaves, others, strict=True)
        if a.tobytes() != b.tobytes()
    ]
    assert not unequal


def test_too_large_a_step_ends_with_the_remedy(device, programs, measured):
    """In a hundredth of the device's memory, by a step that wants ten times as much.

    On a CPU, which has no limit of its own, the same program runs a step that fits.
    """
    code, out, said = programs["size"].end()
    if device.platform == "cpu":
        assert (code, out[:4]) == (0, "fits"), said
        pytest.skip("a CPU has no limit of its own; a step that fits has run")
    lines = [line for line in said.splitlines() if line.startswith("error ")]
    measured(f"exit code {code}: {lines or said[-500:]}")
    assert code == ResourceError.exit_code, said
    assert len(lines) == 1
    assert lines[0].startswith("error E605: a device has too little memory for the")
    assert "--config.train.accumulate" in lines[0]
    assert "Traceback" not in said


def test_what_cannot_fit_is_refused_before(device):
    place = "the device" if device.platform == "gpu" else "the memory of this machine"
    with pytest.raises(ResourceError, match=f"{place} leaves") as caught:
        memory.require({"parameters": 2.0**50}, remedy="give less")
    assert caught.value.code == "E612"
