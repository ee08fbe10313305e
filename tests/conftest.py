"""Test-wide settings: CPU, four devices where a test asks, strict shapes, quick start.

Most of the time here goes into compiling. So little is optimised, the workers of a
session and the processes that tests start share what they compile, and what takes
longest comes first.
"""

from __future__ import annotations

import gc
import importlib.metadata
import os
import shutil
import tempfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
KEPT = ROOT / ".cache/compiled_by_tests"
KEPT_BYTES = 2 * 2**30
SHARED = "DAASR_TEST_COMPILED"  # names the folder of the session

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# The older code generator compiles a step in two thirds of the time; jaxlib 0.11 has
# it no more.
if importlib.metadata.version("jaxlib").startswith("0.10."):
    os.environ["XLA_FLAGS"] = (
        f"{os.environ.get('XLA_FLAGS', '')} --xla_cpu_use_fusion_emitters=false"
    )

import jax  # noqa: E402  reads the environment
import jaxtyping  # noqa: E402
import numpy as np  # noqa: E402

import tests.checked  # noqa: E402, F401  named by --jaxtyping-packages

# What JAX takes where the package says Array; the types that are checked at run time
# mean shapes and kinds of numbers.
jaxtyping.Array = jax.Array | np.ndarray  # pyright: ignore

jax.config.update("jax_num_cpu_devices", 4)
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_disable_most_optimizations", True)
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)
# Brings a lock, without which one reads what another has half written.
jax.config.update("jax_compilation_cache_max_size", KEPT_BYTES)

# What takes longest, first, so that no worker is left alone with it. These files are
# shared out test by test; of another file, one worker takes all.
LONGEST = (
    "tests/multiprocess/test_two_processes.py",
    "tests/e2e/test_runs.py",
    "tests/e2e/test_workers.py",
    "tests/sharding/test_devices.py",
    "tests/unit/test_contract.py",
    "tests/unit/test_plans.py",
    "tests/unit/test_training.py",
    "tests/unit/test_compared.py",
    "tests/unit/test_models.py",
    "tests/unit/test_ablations.py",
    "tests/multiprocess/test_launcher.py",
)


def _is_first(config) -> bool:
    """Whether this process started the others, if there are others."""
    return not hasattr(config, "workerinput")


def pytest_configure(config):
    """A folder of the session, with what an earlier one compiled and kept."""
    if _is_first(config):
        os.environ[SHARED] = tempfile.mkdtemp(prefix="daasr-compiled-")
        kept = list(KEPT.glob("*-cache")) + list(KEPT.glob("*-atime"))
        if sum(path.stat().st_size for path in kept) < KEPT_BYTES:
            for path in kept:
                shutil.copy(path, os.environ[SHARED])
        else:
            shutil.rmtree(KEPT)
    jax.config.update("jax_compilation_cache_dir", os.environ[SHARED])


def pytest_sessionfinish(session, exitstatus):
    """Keeps what was compiled, unless a process may have ended while it wrote."""
    if not _is_first(session.config) or SHARED not in os.environ:
        return
    if exitstatus == pytest.ExitCode.OK:
        KEPT.mkdir(parents=True, exist_ok=True)
        for path in Path(os.environ[SHARED]).glob("*-*"):
            if not (KEPT / path.name).exists():
                part = KEPT / f"{path.name}.{os.getpid()}"
                shutil.copy(path, part)
                part.replace(KEPT / path.name)
    shutil.rmtree(os.environ[SHARED], ignore_errors=True)


def pytest_collection_finish(session):
    """What is there by now stays: nobody need look through it for garbage."""
    gc.collect()
    gc.freeze()


def _rank(nodeid: str) -> int:
    file = nodeid.partition("::")[0]
    return LONGEST.index(file) if file in LONGEST else len(LONGEST)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: _rank(item.nodeid))


def scope_of(nodeid: str) -> str:
    """Tests of one scope run in one worker, one after the other."""
    file, _, name = nodeid.partition("::")
    if file not in LONGEST:
        return file
    # The same parameters mean the same compiled program.
    _, bracket, parameters = name.partition("[")
    return f"{file}[{parameters}" if bracket else nodeid


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    from xdist.scheduler import LoadScopeScheduling

    scheduler = LoadScopeScheduling(config, log)
    scheduler._split_scope = scope_of
    config.option.loadscopereorder = False  # as collected
    return scheduler
