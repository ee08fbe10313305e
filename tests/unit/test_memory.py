"""What does not fit is refused in one line, before anything large is made."""

from __future__ import annotations

import resource
import time
from pathlib import Path
from types import SimpleNamespace

import jax
import pytest

from configs import brain_x4_small, edsr_x4, fastmri_x4
from daasr_jax.errors import ConfigError, ResourceError
from daasr_jax.experiment import plan
from daasr_jax.runtime import devices, memory
from tests.data_fixtures import one_line

ROOT = Path(__file__).parents[2]
GIB = memory.GIB


def refused(code, action):
    with pytest.raises(ResourceError) as caught:
        action()
    assert caught.value.code == code
    assert caught.value.exit_code == 6
    return caught.value


@pytest.fixture
def lends(monkeypatch):
    """Sets what `/proc` and the limits of the process say, in bytes."""

    def set_(machine, group=None, addresses=None, taken=0):
        def table(path):
            return {
                "meminfo": {"MemAvailable": machine // 1024, "SwapFree": 0},
                "status": {"VmSize": taken // 1024},
            }.get(path.name, {})

        def text(path, **_):
            if group is None or path.name not in ("memory.max", "memory.current"):
                raise FileNotFoundError
            return str(group if path.name == "memory.max" else 0)

        limit = resource.RLIM_INFINITY if addresses is None else addresses
        monkeypatch.setattr(memory, "_table", table)
        monkeypatch.setattr(memory.Path, "read_text", text)
        monkeypatch.setattr(resource, "getrlimit", lambda _: (limit, limit))

    return set_


@pytest.mark.parametrize(
    ("limits", "place"),
    [
        ({"machine": 4 * GIB}, "the memory of this machine leaves 4.0 GiB"),
        ({"machine": 64 * GIB, "group": 5 * GIB}, "the control group leaves 5.0 GiB"),
        (
            {"machine": 64 * GIB, "addresses": 7 * GIB, "taken": GIB},
            "the limit of address space leaves 6.0 GiB",
        ),
    ],
)
def test_each_limit_counts(lends, limits, place):
    lends(**limits)
    parts = {"parameters and optimiser": 2 * GIB, "layers of 9 images": 3.5 * GIB}
    error = refused("E612", lambda: memory.require(parts, remedy="give less"))
    one_line(error, "at least 5.5 GiB", "optimiser 2.0, layers of 9 images 3.5", place)
    memory.require({"parameters": 2 * GIB}, remedy="")


def test_memory_of_a_gpu(monkeypatch):
    stats = {"bytes_limit": 12 * GIB, "bytes_in_use": GIB}
    gpu = SimpleNamespace(platform="gpu", memory_stats=lambda: stats)
    monkeypatch.setattr(jax, "local_devices", lambda: [gpu])
    memory.require({"x": 10 * GIB}, remedy="")
    error = refused("E612", lambda: memory.require({"x": 12 * GIB}, remedy="y"))
    one_line(error, "the device leaves 11.0 GiB")


def features(config, n):
    config.model.kwargs.features = n
    return config


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (lambda: features(brain_x4_small.get_config(), 4096), "optimiser 4"),
        (lambda: features(edsr_x4.get_config(), 4096), "optimiser"),
        (lambda: fastmri_x4.get_config(), "layers of 9 images 3."),
    ],
)
def test_a_run_that_is_too_large(lends, config, said):
    lends(machine=3 * GIB)
    begin = time.monotonic()
    mesh = devices.make_mesh(9, 1)
    error = refused("E612", lambda: plan.check_memory(config(), mesh))
    one_line(error, said, "--config.train.accumulate")
    assert time.monotonic() - begin < 60


def test_fewer_images_at_once_need_less(lends):
    lends(machine=2 * GIB)
    config, mesh = brain_x4_small.get_config(), devices.make_mesh(64, 1)
    config.train.batch_size, config.train.crop = 64, 64
    refused("E612", lambda: plan.check_memory(config, mesh))
    config.train.accumulate = 8
    plan.check_memory(config, mesh)


def test_devices_of_a_cpu_share_its_memory(lends):
    lends(machine=64 * GIB)
    config = features(brain_x4_small.get_config(), 1024)
    plan.check_memory(config, devices.make_mesh(8, 1))
    lends(machine=8 * GIB)
    refused("E612", lambda: plan.check_memory(config, devices.make_mesh(8, 4)))


def test_what_cannot_be_built_is_said_as_before():
    config = brain_x4_small.get_config()
    config.model.kwargs.structure.heads = 5
    with pytest.raises(ConfigError, match=r"E210.*heads"):
        plan.check_memory(config, devices.make_mesh(8, 1))


@pytest.mark.parametrize("free", [64 * 1024, 1024**2, None])
def test_shared_memory_of_workers(monkeypatch, free):
    """Of 64 KiB, 1 MiB, and none: a container without `/dev/shm`."""

    def statvfs(path):
        assert str(path) == "/dev/shm"
        if free is None:
            raise FileNotFoundError(2, "No such file or directory")
        return SimpleNamespace(f_bavail=free // 1024, f_frsize=1024)

    monkeypatch.setattr(memory.os, "statvfs", statvfs)
    config, mesh = brain_x4_small.get_config(), devices.make_mesh(8, 1)
    plan.check_memory(config, mesh)
    config.train.workers = 2
    error = refused("E613", lambda: plan.check_memory(config, mesh))
    one_line(error, "/dev/shm", "--config.train.workers=0", "2 workers")
