"""The tests of GPUs start on a bare machine, and their quick ones pass on a CPU."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from benchmarks.gpu import check

ROOT = Path(__file__).parents[2]
# Dependencies of the package that such a machine lacks.
ABSENT = (
    *("array_record", "beartype", "clu", "filelock", "grain", "matplotlib"),
    *("ml_collections", "nibabel", "nilearn", "orbax", "tensorboardX", "tensorflow"),
    "tensorflow_datasets",
)
BARE = f"""
import sys

sys.modules |= dict.fromkeys({ABSENT})

import pytest

sys.exit(pytest.main(sys.argv[1:]))
"""


def bare(*options: str, on: str) -> subprocess.CompletedProcess[str]:
    where = "tests/gpu", "--confcutdir=tests/gpu"
    how = "-p", "no:cacheprovider", "-o", "addopts=", "-q"
    return subprocess.run(
        [sys.executable, "-c", BARE, *where, *how, *options],
        cwd=ROOT,
        env=os.environ | {"DAASR_GPU_TESTS_ON": on, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        check=False,
    )


def test_quick_ones_pass_on_a_cpu():
    done = bare("-k", "refused or (small and diagonal)", on="cpu")
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout
    assert "failed" not in done.stdout
    assert "MEASURED test_methods_agree[diagonal-small-random]: equal P=" in done.stdout


def test_without_a_gpu_they_are_skipped_or_fail():
    quick = ("-k", "refused", "-rs")
    skipped, failed = bare(*quick, on=""), bare(*quick, on="gpu")
    assert skipped.returncode == 0, skipped.stdout + skipped.stderr
    assert "needs a gpu, and JAX finds a cpu" in skipped.stdout
    assert failed.returncode == 1, failed.stdout + failed.stderr
    assert "needs a gpu, and JAX finds a cpu" in failed.stdout


def test_a_visit_needs_no_more():
    """Every part of `benchmarks.gpu` is imported, and a set is opened."""
    code = f"import sys; sys.modules |= dict.fromkeys({ABSENT})\n"
    code += "from benchmarks.gpu import __main__, check, loader, match, pack, report\n"
    code += "from benchmarks.gpu import stage, step, train\n"
    code += "from daasr_jax.data import TrainingTriples, draw_pairing"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


STOPPED = """
import os


def test_first(measured):
    measured("1 ms")


def test_second():
    os._exit(9)  # as a process that is killed
"""


def test_figures_of_a_test_are_there_when_the_next_is_killed(tmp_path):
    shutil.copy(ROOT / "tests/gpu/conftest.py", tmp_path)
    (tmp_path / "test_stopped.py").write_text(STOPPED)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", str(tmp_path), "--rootdir", str(tmp_path),
         "-p", "no:cacheprovider", "-v", "-o", "addopts="],
        cwd=tmp_path,
        env=os.environ | {"DAASR_GPU_TESTS_ON": "cpu", "JAX_PLATFORMS": "cpu",
                          "PYTHONUNBUFFERED": "1"},
        capture_output=True,
        text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 9
    lines = done.stdout.splitlines()
    assert "MEASURED test_first: 1 ms" in lines
    found = check.outcomes(done.stdout)
    assert found == {"test_stopped.py::test_first": "PASSED"}
