"""The step on the device: against a CPU, against itself, and in too little memory."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from flax import serialization

from daasr_jax.errors import ResourceError
from daasr_jax.runtime import memory
from tests.gpu import small

ROOT = Path(__file__).parents[2]


def program(*arguments: str, **changes: str) -> subprocess.CompletedProcess[str]:
    """`python -m tests.gpu.small`, with changes of the environment."""
    return subprocess.run(
        [sys.executable, "-m", "tests.gpu.small", *arguments],
        cwd=ROOT,
        env=os.environ | changes,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


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
def made(device):
    """First state, jitted step."""
    before = jax.config.values["jax_default_matmul_precision"]
    yield small.make()
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


def test_adversarial_step_equals_that_of_a_cpu(made, ran, cpu, device, measured):
    """Losses within 1e-5, gradients within 1e-4: float32 sums in another order.

    The gradient penalty differentiates twice; a gradient of it is off by some 1e-6 on
    the CPU itself.
    """
    if device == cpu:
        # The same sums once more would prove nothing: those of the compiled step
        # against those of one operation after the other.
        with jax.disable_jit():
            state, metrics = made[1].__wrapped__(made[0], small.batch(0))
    else:
        state, metrics = made[1](
            jax.device_put(made[0], cpu), jax.device_put(small.batch(0), cpu)
        )
        assert metrics["g/total"].devices() == {cpu}
    got, rows = ran[0][0], ran[1]
    assert set(rows[0]) == set(metrics)
    for name, value in rows[0].items():
        assert value == pytest.approx(float(metrics[name]), rel=1e-4, abs=1e-6), name
    assert int(got.step) == 1
    assert int(got.skipped) == 0
    wanted = moments(state)
    errors = {name: error(tree, wanted[name]) for name, tree in moments(got).items()}
    measured(" ".join(f"{name}={value:.1e}" for name, value in errors.items()))
    assert max(errors.values()) <= 1e-4


def test_two_runs_agree(made, ran, measured):
    """Four steps again: on a GPU sums by scatter-add have no order, so within 1e-4.

    Rounding, 1e-7 of a gradient, is the difference of the first step. Adam divides each
    entry by its own size, so entries that are nothing but rounding move as far as
    others do.
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
        + f" metrics={max(losses):.1e}"
    )
    assert max(errors.values()) <= 1e-4
    assert max(losses) <= 1e-4
    moved = error(ran[0][-1].gen, made[0].gen)
    assert moved > 1e-3, "the steps hardly moved, so that they agree says nothing"


def test_resume_is_exact(tmp_path, made, measured):
    """4 steps, and 2 and 2 in two processes, with deterministic operations: equal bits.

    Beside it what they cost; the default is that of this process.
    """
    deterministic = flags("--xla_gpu_deterministic_ops=true")
    straight = program("straight", str(tmp_path), **deterministic)
    assert straight.returncode == 0, straight.stderr
    resumed = program("resumed", str(tmp_path), **deterministic)
    assert resumed.returncode == 0, resumed.stderr
    default = small.step_ms(made[1], made[0])
    measured(
        f"deterministic_step_ms={float(straight.stdout):.3f} "
        f"default_step_ms={default:.3f}"
    )
    half, one, two = (
        serialization.msgpack_restore((tmp_path / name).read_bytes())
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


def test_program_of_a_size_that_fits():
    done = program("size", "1")
    assert (done.returncode, done.stderr) == (0, "") or done.stdout.startswith("fits")


def test_too_large_a_step_ends_with_the_remedy(device, measured):
    """In a hundredth of the device's memory, by a step that wants GIB of it."""
    if device.platform == "cpu":
        pytest.skip("a CPU has no limit of its own that a step could meet")
    done = program(
        "size",
        "16384",
        XLA_PYTHON_CLIENT_PREALLOCATE="true",
        XLA_PYTHON_CLIENT_MEM_FRACTION="0.01",
        # What is tried out while compiling would meet the limit first.
        **flags("--xla_gpu_autotune_level=0"),
    )
    said = [line for line in done.stderr.splitlines() if line.startswith("error ")]
    measured(f"exit code {done.returncode}: {said or done.stderr[-500:]}")
    assert done.returncode == ResourceError.exit_code, done.stderr
    assert len(said) == 1
    assert said[0].startswith("error E605: a device has too little memory for the step")
    assert "--config.train.accumulate" in said[0]
    assert "Traceback" not in done.stderr


def test_what_cannot_fit_is_refused_before(device):
    place = "the device" if device.platform == "gpu" else "the memory of this machine"
    with pytest.raises(ResourceError, match=f"E612|{place} leaves") as caught:
        memory.require({"parameters": 2.0**50}, remedy="give less")
    assert "give less" in str(caught.value)
