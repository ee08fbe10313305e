"""The tests of GPUs start on a bare machine, and their quick ones pass on a CPU."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np

from benchmarks.gpu import check, pack
from tests import bare

ROOT = Path(__file__).parents[2]


def bare_tests(
    folder: Path, *options: str, on: str
) -> subprocess.CompletedProcess[str]:
    where = "tests/gpu", "--confcutdir=tests/gpu"
    how = "-p", "no:cacheprovider", "-o", "addopts=", "-q"
    return subprocess.run(
        [sys.executable, "-m", "pytest", *where, *how, *options],
        cwd=ROOT,
        env=bare.environment(
            folder, DAASR_GPU_TESTS_ON=on, PYTEST_DISABLE_PLUGIN_AUTOLOAD="1"
        ),
        capture_output=True,
        text=True,
        check=False,
    )


def test_quick_ones_pass_on_a_cpu(tmp_path):
    done = bare_tests(tmp_path, "-k", "refused or (small and diagonal)", on="cpu")
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout
    assert "failed" not in done.stdout
    assert "MEASURED test_methods_agree[diagonal-small-random]: equal P=" in done.stdout


def test_without_a_gpu_they_are_skipped_or_fail(tmp_path):
    quick = ("-k", "refused", "-rs")
    skipped, failed = (bare_tests(tmp_path, *quick, on=on) for on in ("", "gpu"))
    assert skipped.returncode == 0, skipped.stdout + skipped.stderr
    assert "needs a gpu, and JAX finds a cpu" in skipped.stdout
    assert failed.returncode == 1, failed.stdout + failed.stderr
    assert "needs a gpu, and JAX finds a cpu" in failed.stdout


def test_a_bare_machine_lacks_what_is_not_named():
    lacking = bare.refused()
    assert {"PIL", "grain", "orbax", "nibabel", "ml_collections"} <= lacking
    assert not {"jax", "flax", "numpy", "jaxtyping", "pytest", "scipy"} & lacking
    assert "pytest" in bare.refused("pytest")


PARTS = """
from pathlib import Path

from benchmarks.gpu import __main__, check, loader, match, pack, report, stage, step
from benchmarks.gpu import train
from daasr_jax.data import draw_pairing

path = Path({path!r})
tables, about = pack.load(path)
assert draw_pairing(tables["train"], track="aligned").references.size
how = dict(batch_size=2, crop=2, scale=2, seed=0)
assert loader.batch(str(path), 0, tuple(how.items()))["hr"].shape == (2, 4, 4, 1)
try:
    import PIL
except ImportError:
    print("bare")
"""


def test_a_visit_needs_no_more(tmp_path):
    """Every part of `benchmarks.gpu` is imported, and a set is opened."""
    path = tmp_path / "set.npz"
    made_set(path)
    done = subprocess.run(
        [sys.executable, "-c", PARTS.format(path=str(path))],
        cwd=ROOT,
        env=bare.environment(tmp_path),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "bare"


def made_set(path: Path) -> None:
    """A packed set of two people with two slices of noise each."""
    rng = np.random.default_rng(0)
    records = [
        {"volume": f"p{p}/a", "subject": f"p{p}", "contrast": "T1W", "study": "a",
         "index": k, "n_slices": 2, "sha256": f"{p}{k}", "spacing": 1.0}
        for p in range(2) for k in range(2)
    ]  # fmt: skip
    about = {
        "sets": [],
        "splits": dict.fromkeys(pack.SPLITS, records),
        "companions": {s: [] for s in pack.SPLITS},
    }
    np.savez_compressed(
        path,
        images=rng.integers(0, 255, (4, 8, 8), np.uint8),
        about=np.frombuffer(json.dumps(about).encode(), np.uint8),
        **{f"{s}_at": np.arange(4) for s in pack.SPLITS},
    )


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
