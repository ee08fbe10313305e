"""Test-wide settings: CPU, four devices where a test asks, strict shapes, shared work.

Compiling takes most of the time here. So little is optimised. The commands that tests
start share what they compile, and have XLA's older code generator for CPUs, which takes
a third of the time. The workers do neither: hardly a program of theirs occurs twice,
and that generator takes all memory for patches of 5x5.
"""

from __future__ import annotations

import logging
import os
import shutil
import tempfile

import pytest

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")

import jax
import jaxtyping
import numpy as np

import tests.checked  # noqa: F401  named by --jaxtyping-packages

# What JAX takes where the package says Array; the types that are checked at run time
# mean shapes and kinds of numbers.
jaxtyping.Array = jax.Array | np.ndarray  # pyright: ignore

# What takes longest, first, so that no worker is left alone with it.
LONGEST = (
    "tests/unit/test_contract.py",
    "tests/multiprocess/test_two_processes.py",
    "tests/sharding/test_devices.py",
    "tests/e2e/test_runs.py",
    "tests/unit/test_gpu_visit.py",
    "tests/unit/test_ablations.py",
    "tests/unit/test_compared.py",
    "tests/e2e/test_evaluate.py",
    "tests/faults/test_08_references.py",
    "tests/unit/test_models.py",
    "tests/unit/test_matching.py",
    "tests/unit/test_training.py",
    "tests/e2e/test_wheel.py",
    "tests/parity/test_golden.py",
    "tests/docs/test_commands.py",
    "tests/e2e/test_reproduce.py",
    "tests/fuzz/test_fuzz.py",
    "tests/faults/test_14_full_disk.py",
    "tests/faults/test_22_memory.py",
    "tests/faults/test_29_supply_chain.py",
    "tests/unit/test_plans.py",
    "tests/unit/test_adversarial.py",
    "tests/multiprocess/test_launcher.py",
    "tests/faults/test_23_workers.py",
    "tests/faults/test_27_names.py",
)
# What makes compiling quick, for commands that tests start.
QUICKER = {
    "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
    "XLA_FLAGS": "--xla_backend_extra_options=xla_cpu_disable_new_fusion_emitters",
}
DEVICES = "DAASR_TEST_DEVICES"
SHARED = "DAASR_TEST_COMPILED"  # names the folder of compiled programs of the session
# With a size comes a lock. Without, one reads what another has half written.
KEPT_BYTES = 2 * 2**30
KEPT_SECONDS = 0.3  # what took less is compiled anew

# A test of more devices starts itself again with more.
jax.config.update("jax_num_cpu_devices", int(os.environ.get(DEVICES, "4")))
jax.config.update("jax_numpy_rank_promotion", "raise")


def _is_first(config: pytest.Config) -> bool:
    """Whether this process started the others, if there are others."""
    return not hasattr(config, "workerinput")


def pytest_configure(config):
    if _is_first(config):
        os.environ[SHARED] = tempfile.mkdtemp(prefix="daasr-compiled-")


def pytest_unconfigure(config):
    if _is_first(config):
        shutil.rmtree(os.environ.pop(SHARED), ignore_errors=True)


def pytest_collection_modifyitems(items):
    def rank(item: pytest.Item) -> int:
        file = item.nodeid.partition("::")[0]
        return LONGEST.index(file) if file in LONGEST else len(LONGEST)

    items.sort(key=rank)


@pytest.fixture(scope="module", autouse=True)
def compiled_of_one_file():
    """What a file has compiled goes with it, so that a worker never holds more."""
    yield
    jax.clear_caches()


@pytest.fixture(autouse=True)
def logging_of_one_test():
    """A command that a test has called in its process shows logs for itself alone."""
    logger = logging.getLogger("daasr_jax")
    logger.propagate, logger.handlers = True, []
    logger.setLevel(logging.NOTSET)


@pytest.fixture
def unchecked():
    """Types are not checked at run time, where the package's own refusal is tested."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)
