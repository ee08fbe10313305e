"""The tests of GPUs start on a bare machine, and their quick ones pass on a CPU."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
# Dependencies of the package that such a machine lacks.
ABSENT = (
    *("array_record", "beartype", "clu", "grain", "matplotlib", "ml_collections"),
    *("nibabel", "nilearn", "tensorboardX", "tensorflow", "tensorflow_datasets"),
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
