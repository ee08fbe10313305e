"""The two commands as a user starts them, on a data set of a few small slices."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp

from daasr_jax.training.checkpoints import Checkpoints
from tests.conftest import KEPT_BYTES, KEPT_SECONDS, QUICKER, SHARED

ROOT = Path(__file__).parents[2]
SMALL = (
    "--config=configs/brain_x4_small.py",
    "--config.model.kwargs.features=8",
    "--config.model.kwargs.groups=1",
    "--config.train.crop=8",
    "--config.train.batch_size=2",
    "--config.train.log_every=1",
    "--config.data.size=64",
    "--config.evaluate.resamples=200",
)


def environment(cache: Path) -> dict[str, str]:
    """One CPU device, a cache of its own, quick compilation.

    Compiled programs are those of the session. A process that is killed may leave a
    part of one, so it takes a folder of its test's own: `JAX_COMPILATION_CACHE_DIR`.
    """
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("XLA_", "JAX_"))}
    return (
        kept
        | QUICKER
        | {
            "JAX_PLATFORMS": "cpu",
            "JAX_COMPILATION_CACHE_DIR": os.environ.get(SHARED, ""),
            "JAX_COMPILATION_CACHE_MAX_SIZE": str(KEPT_BYTES),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": str(KEPT_SECONDS),
            "XDG_CACHE_HOME": str(cache),
            "PYTHONPATH": str(ROOT),
        }
    )


def start(argv: list[str], cache: Path, **more: str) -> subprocess.Popen[str]:
    """One command in its own process, with more environment variables."""
    return subprocess.Popen(
        [sys.executable, *argv],
        cwd=ROOT,
        env=environment(cache) | more,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def until_saved(process: subprocess.Popen[str], folder: Path, step: int) -> None:
    """Waits until the run has sealed its checkpoint of a step, or a later one."""
    end = time.monotonic() + 200
    while process.poll() is None and time.monotonic() < end:
        saved = [int(p.stem) for p in (folder / "manifests").glob("*.json")]
        if max(saved, default=0) >= step:
            return
        time.sleep(0.01)
    raise AssertionError(f"no checkpoint {step}: {process.communicate()}")


def assert_same_state(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> None:
    """The same arrays by name: numbers within 1e-5, all else equal."""
    assert set(a) == set(b)
    for name, x in a.items():
        if np.issubdtype(x.dtype, np.floating):
            np.testing.assert_allclose(b[name], x, rtol=0, atol=1e-5, err_msg=name)
        else:
            np.testing.assert_array_equal(b[name], x, err_msg=name)


def last_state(folder: Path, step: int) -> dict[str, np.ndarray]:
    """Every array of the last checkpoint, which is that of a step, by name."""
    store = Checkpoints(folder, read_only=True)
    assert store.latest() == step
    saved = store._manager.restore(
        step, args=ocp.args.Composite(state=ocp.args.StandardRestore())
    )["state"]
    store.close()
    return {
        jax.tree_util.keystr(path): np.asarray(x)
        for path, x in jax.tree_util.tree_leaves_with_path(saved)
    }


def rows(folder: Path) -> list[dict]:
    """The log of a run."""
    text = (folder / "metrics.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def run_all(cases: list[list[str]], cache: Path) -> list[dict]:
    """Exit code and streams of each command, all from one interpreter."""
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        json.dump(cases, file)
        file.flush()
        done = subprocess.run(
            [sys.executable, "-m", "tests.e2e.launcher", file.name],
            cwd=ROOT,
            env=environment(cache),
            capture_output=True,
            text=True,
            timeout=500,
            check=True,
        )
    return json.loads(done.stdout)


def check_refusals(results: dict[str, dict], expected: dict[str, tuple]) -> None:
    """Asserts that each expected command was refused, see `complaint`.

    Args:
        results: Name -> what the command did.
        expected: Name -> code, exit code and parts of the line.
    """
    wrong = {k: c for k, e in expected.items() if (c := complaint(results[k], *e))}
    assert not wrong, "\n".join(f"{k}: {v}" for k, v in wrong.items())


def complaint(result: dict, code: str, exit_code: int, *parts: str) -> list[str]:
    """What is wrong with the refusal: one line `error E...`, and no traceback."""
    lines = [x for x in result["err"].splitlines() if x.startswith("error")]
    wrong = []
    if result["code"] != exit_code:
        wrong.append(f"exit code {result['code']}, not {exit_code}")
    if len(lines) != 1 or not lines[0].startswith(f"error {code}: "):
        wrong.append(f"lines that begin with error: {lines}, not one {code}")
    if "Traceback" in result["err"] + result["out"]:
        wrong.append("a traceback")
    wrong += [f"{p!r} is not named" for p in parts if not lines or p not in lines[0]]
    return [*wrong, result["err"]] if wrong else []
