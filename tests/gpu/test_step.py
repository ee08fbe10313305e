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


LIMIT = 200  # seconds for a program
TOO_MANY = 16384  # images of a step that on a CPU takes 12 GiB


def start(*arguments: str, **changes: str) -> subprocess.Popen[str]:
    """`python -m tests.gpu.small`, with changes of the environment."""
    return subprocess.Popen(
        [sys.executable, "-m", "tests.gpu.small", *arguments],
        cwd=ROOT,
        env=os.environ | changes,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
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
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("resume")


@pytest.fixture(scope="module")
def programs(device, folder):
    """What runs in processes of its own, started all at once: they mostly compile."""
    deterministic = flags("--xla_gpu_deterministic_ops=true")
    started = {
        name: start(name, str(folder), **deterministic)
        for name in ("straight", "resumed")
    }
    if device.platform == "cpu":
        started["size"] = start("size", "1")
    else:
        started["size"] = start(
            "size",
            str(TOO_MANY),
            XLA_PYTHON_CLIENT_PREALLOCATE="true",
            XLA_PYTHON_CLIENT_MEM_FRACTION="0.01",
            # What is tried out while compiling would meet the limit first.
            **flags("--xla_gpu_autotune_level=0"),
        )
    yield started
    for process in started.values():
        process.kill()
        process.communicate()


@pytest.fixture(scope="module")
def made(programs):
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


def test_adversarial_step_equals_that_of_a_cpu(made, ran, cpu, measured):
    """Losses within 1e-5, gradients within 1e-4: float32 sums in another order.

    The gradient penalty differentiates twice; a gradient of it is off by some 1e-6 on
    the CPU itself. On a CPU this compares a step with itself.
    """
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


def test_resume_is_exact(folder, programs, made, measured):
    """4 steps, and 2 and 2 in two processes, with deterministic operations: equal bits.

    Beside it what they cost; the default is that of this process.
    """
    _, said = programs["resumed"].communicate(timeout=LIMIT)
    assert programs["resumed"].returncode == 0, said
    if programs["size"].poll() is None:  # so that nothing else runs
        programs["size"].wait(LIMIT)
    milliseconds, said = programs["straight"].communicate("go\n", timeout=LIMIT)
    assert programs["straight"].returncode == 0, said
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
    out, said = programs["size"].communicate(timeout=LIMIT)
    code = programs["size"].returncode
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
