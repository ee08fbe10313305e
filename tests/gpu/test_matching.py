"""The forms of the search on the device, against float64 NumPy and each other."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
import numpy as np
import pytest

from daasr_jax.matching import Window
from tests.gpu.searches import (
    CONTENTS,
    NEAR,
    SIZES,
    assert_best,
    compiled,
    cosine,
    maps,
)
from tests.unit.test_matching import patches

ROOT = Path(__file__).parents[2]
METHODS = ("chunked", "diagonal", "kernel")
LIMIT = 150  # seconds for the kernel's process


@pytest.fixture(scope="module")
def kernel(device, tmp_path_factory):
    """The kernel's process, what it says, and the folder of its results."""
    folder = tmp_path_factory.mktemp("kernel")
    said = folder / "said.txt"
    sizes = SIZES if device.platform == "gpu" else ["small"]
    with said.open("w") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.gpu.searches", str(folder), *sizes],
            cwd=ROOT,
            stdout=file,
            stderr=subprocess.STDOUT,
        )
        yield process, said, folder
        process.kill()
        process.wait()


@pytest.fixture(scope="module")
def programs(device, kernel):
    """`(method, size)` -> the program to come, compiled side by side."""
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        yield {
            (method, size): threads.submit(compiled, method, size)
            for method in METHODS[:2]
            for size in SIZES
        }
        threads.shutdown(cancel_futures=True)


@pytest.fixture
def found(programs, kernel, device, measured):
    """`(method, size, content) -> P`, int32 `(1, h, w)`."""

    def of_kernel(size: str, content: str) -> np.ndarray:
        if device.platform == "cpu" and size != "small":
            pytest.skip("a CPU interprets the kernel, which takes minutes at this size")
        process, said, folder = kernel
        try:
            code = process.wait(LIMIT)
        except subprocess.TimeoutExpired:
            process.kill()
            code = f"none in {LIMIT} s"
        result, refusal = folder / f"{size}-{content}.npy", folder / f"{size}.txt"
        if result.exists():
            return np.load(result)
        if refusal.exists():
            text = refusal.read_text()
        else:
            text = f"exit code {code}: {' '.join(said.read_text().split())[-1500:]}"
        assert device.platform == "gpu", text  # interpreted it always runs
        measured(f"THE KERNEL DOES NOT RUN: {text}")
        pytest.xfail(f"the kernel does not run here: {text}")

    def run(method: str, size: str, content: str) -> np.ndarray:
        if method == "kernel":
            return of_kernel(size, content)
        program = programs[method, size].result()
        return np.asarray(program(*map(jax.device_put, maps(size, content))))

    return run


@pytest.mark.parametrize("content", CONTENTS)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("method", METHODS)
def test_the_choice_is_the_best(method, size, content, found):
    assert_best(found(method, size, content), size, content)


@pytest.mark.parametrize("content", ["random", "background"])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("method", METHODS[1:])
def test_methods_agree(method, size, content, found, measured):
    """With the chunked form: the same P but for scores that are equal by rounding."""
    a, b = (found(name, size, content) for name in ("chunked", method))
    gap = np.abs(cosine(a, size, content) - cosine(b, size, content))
    measured(f"equal P={np.mean(a == b):.5f}, scores off by {gap.max():.1e}")
    assert gap.max() <= NEAR
    # Of continuous values hardly two scores of a query are that near.
    assert np.mean(a == b) >= 0.995


@pytest.mark.parametrize("size", ["small", "1600_of_3"])
def test_reciprocal_norms(size, device):
    """float32 sums of squares and the device's reciprocal root, within 1e-6."""
    _, keys = maps(size, "random")
    got = np.asarray(jax.jit(Window(3).inverse_norm)(jax.device_put(keys)), np.float64)
    wanted = 1 / np.linalg.norm(patches(keys[0], 3), axis=-1)
    np.testing.assert_allclose(got.ravel(), wanted.ravel(), rtol=1e-6)
