"""Tests on a GPU, which need no more than jax, flax, optax, numpy, jaxtyping, pytest.

    python -m pytest tests/gpu --confcutdir=tests/gpu -p no:cacheprovider \
        -o addopts= -q

runs them on a bare machine: without the settings of the other tests, which are for
CPUs, and without their plugins. `-m "not full"` leaves out x2 and x3. The tests of
parity come first, for a visit that is cut short. Files are independent, so `-n 3 --dist
loadfile` shortens it where pytest-xdist is installed; then the times of steps are those
of a shared device. Figures come as each test ends, as lines that start with MEASURED.

`DAASR_GPU_TESTS_ON` names the platform:

* unset: a GPU; without one every test is skipped and says why;
* `gpu`: the same, but without one every test fails;
* `cpu`: a CPU, which proves the tests. What only a GPU has is skipped there.
"""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import pytest

ON = os.environ.get("DAASR_GPU_TESTS_ON", "")
if ON == "cpu":
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")  # quicker to compile
# The tests start processes, which want some of the device's memory too.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import jax  # noqa: E402  reads what is set above

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: item.path.name != "test_parity.py")  # they come first
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.gpu)
            # What a driver warns of is no failure of ours.
            shown = "default", "ignore::DeprecationWarning"
            item.add_marker(pytest.mark.filterwarnings(*shown))


@pytest.fixture(scope="session", autouse=True)
def device():
    """The device that is tested; its `platform` is `"gpu"` or `"cpu"`."""
    found = jax.default_backend()
    if found != (ON or "gpu"):
        reason = f"needs a {ON or 'gpu'}, and JAX finds a {found}; see tests/gpu"
        (pytest.fail if ON else pytest.skip)(reason)
    return jax.devices()[0]


@pytest.fixture(scope="session")
def cpu(device):
    """A CPU in the same process, to compare with."""
    try:
        return jax.devices("cpu")[0]
    except RuntimeError as error:
        pytest.skip(f"JAX has no CPU beside the {device.platform}: {error}")


@pytest.fixture
def measured(record_property, request):
    """Reports a line of figures or words when the test ends."""

    def report(line: str) -> None:
        record_property("measured", f"{request.node.name}: {line}")

    return report


def pytest_report_header():
    try:
        kinds = Counter(one.device_kind for one in jax.devices())
        found = ", ".join(f"{count} x {kind}" for kind, count in kinds.items())
    except RuntimeError as error:
        found = "no device: " + " ".join(str(error).split())
    return [f"tests of GPUs on: {ON or 'gpu'}", f"JAX finds: {found}"]


class Figures:
    """Prints the figures of each test as it ends: a later one may be stopped."""

    def __init__(self, config):
        self.config = config

    @pytest.hookimpl(trylast=True)
    def pytest_runtest_logreport(self, report):
        printer = self.config.pluginmanager.get_plugin("terminalreporter")
        if report.when != "call" or printer is None:
            return
        for name, text in report.user_properties:
            if name == "measured":
                printer.ensure_newline()
                printer.write_line(f"MEASURED {text}")
        printer.flush()


def pytest_configure(config):
    if not hasattr(config, "workerinput"):  # a process of pytest-xdist has no printer
        config.pluginmanager.register(Figures(config))
