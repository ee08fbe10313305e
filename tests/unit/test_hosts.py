"""Which process of how many this is, and which GPUs it takes."""

from __future__ import annotations

from types import SimpleNamespace

import jax
import pytest

from daasr_jax.errors import ConfigError, ResourceError
from daasr_jax.runtime import devices
from daasr_jax.runtime.hosts import check_equal, settings_of
from tests.data_fixtures import one_line

SLURM = {
    "SLURM_JOB_ID": "7",
    "SLURM_STEP_NODELIST": "node[01-02]",
    "SLURM_STEP_NUM_NODES": "2",
    "SLURM_PROCID": "9",
    "SLURM_LOCALID": "1",
}
EIGHT = {"CUDA_VISIBLE_DEVICES": "0,1,2,3,4,5,6,7"}
OMPI = {
    "OMPI_COMM_WORLD_RANK": "3",
    "OMPI_COMM_WORLD_SIZE": "4",
    "OMPI_COMM_WORLD_LOCAL_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
}
MEETING = {"OMPI_MCA_orte_hnp_uri": "1.0;tcp://10.0.0.1:1"}


@pytest.fixture(autouse=True)
def _no_gpu(monkeypatch):
    monkeypatch.setattr("daasr_jax.runtime.hosts.glob.glob", lambda pattern: [])


@pytest.mark.parametrize(
    "environment",
    [
        {},
        # A batch script beside its steps, and a shell inside an allocation.
        {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "16", "SLURM_PROCID": "0"},
        SLURM | {"SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"},
    ],
)
def test_alone(environment):
    assert settings_of(environment, None, None, None) == {}


@pytest.mark.parametrize(
    ("environment", "gpus"),
    [
        ({}, None),  # no GPU: nothing to choose
        (EIGHT, [1]),  # each of several takes one
        ({"CUDA_VISIBLE_DEVICES": "5"}, [0]),  # bound by the launcher
        ({"CUDA_VISIBLE_DEVICES": "2,3"}, [0, 1]),  # too few to be those of all
        (EIGHT | {"SLURM_GPUS_PER_TASK": "8"}, list(range(8))),
    ],
)
def test_slurm_with_a_process_for_each_gpu(environment, gpus):
    given = SLURM | {"SLURM_STEP_NUM_TASKS": "16"} | environment
    want = {"num_processes": 16, "process_id": 9}
    want |= {"local_device_ids": gpus} if gpus else {}
    assert settings_of(given, None, None, None) == want


def test_one_process_of_a_node_takes_all_gpus():
    changes = {"SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "1", "SLURM_LOCALID": "0"}
    got = settings_of(SLURM | changes | EIGHT, None, None, None)
    assert got["local_device_ids"] == list(range(8))


def test_two_processes_of_a_node_take_half_each():
    environment = OMPI | MEETING | EIGHT
    got = settings_of(environment, None, None, None)
    assert got["local_device_ids"] == [4, 5, 6, 7]


def test_more_processes_than_gpus(monkeypatch):
    monkeypatch.setattr(
        "daasr_jax.runtime.hosts.glob.glob", lambda pattern: ["/dev/nvidia0"] * 2
    )
    environment = OMPI | MEETING | {"OMPI_COMM_WORLD_LOCAL_SIZE": "4"}
    with pytest.raises(ConfigError, match=r"E240: 4 processes .* 2 GPUs"):
        settings_of(environment, None, None, None)


def test_gpus_are_counted_where_none_are_listed(monkeypatch):
    found = ["/dev/nvidia0", "/dev/nvidia1"]
    monkeypatch.setattr("daasr_jax.runtime.hosts.glob.glob", lambda pattern: found)
    got = settings_of(OMPI | MEETING, None, None, None)
    assert got == {"num_processes": 4, "process_id": 3, "local_device_ids": [1]}


def test_explicit_flags():
    got = settings_of({}, "node1:1234", 2, 0)
    assert got == {
        "coordinator_address": "node1:1234",
        "num_processes": 2,
        "process_id": 0,
    }
    assert settings_of({}, "node1:1234", 1, 0) == {}
    got = settings_of(OMPI, "node1:1234", None, None)
    assert got["coordinator_address"] == "node1:1234"
    assert (got["num_processes"], got["process_id"]) == (4, 3)


@pytest.mark.parametrize(
    ("environment", "given", "said"),
    [
        ({}, ("node1:1234", None, None), "go together"),
        ({}, (None, 2, 0), "go together"),
        ({}, ("node1:1234", 2, None), "go together"),
        ({}, ("node1:1234", 2, 2), "from 0 to 1"),
        ({}, ("node1", 2, 1), "HOST:PORT"),
        (OMPI, (None, None, None), "add --coordinator"),
    ],
)
def test_refusals(environment, given, said):
    with pytest.raises(ConfigError, match=said) as error:
        settings_of(environment, *given)
    assert error.value.code == "E240"
    assert "\n" not in str(error.value)


def test_processes_have_as_many_devices():
    devices = [SimpleNamespace(process_index=i) for i in (0, 0, 1, 1)]
    check_equal(devices)
    with pytest.raises(ConfigError, match=r"E242: the processes have \[2, 1\]"):
        check_equal(devices[:3])


def set_jax(monkeypatch, found=jax.devices, **values):
    config = SimpleNamespace(values={**jax.config.values, **values})
    changed = SimpleNamespace(config=config, devices=found)
    monkeypatch.setattr("daasr_jax.runtime.devices.jax", changed)


@pytest.mark.parametrize(
    ("platforms", "raised", "said"),
    [
        ("cuda", AssertionError(), "no plugin for it is installed"),
        ("tpu", RuntimeError("libtpu.so:\ncannot open"), "libtpu.so: cannot open"),
        ("cpuu", RuntimeError("'cpuu' is not in the list"), "not in the list"),
    ],
)
def test_a_device_that_is_not_there(monkeypatch, platforms, raised, said):
    def none():
        raise raised

    set_jax(monkeypatch, found=none, jax_platforms=platforms)
    with pytest.raises(ResourceError, match="E610") as error:
        devices.find()
    one_line(error.value, said, f"JAX_PLATFORMS={platforms}", "unset it", "make cuda")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("JAX_ENABLE_X64", True),
        ("JAX_DISABLE_JIT", True),
        ("JAX_NUMPY_DTYPE_PROMOTION", "strict"),
        ("JAX_TRANSFER_GUARD", "disallow"),
    ],
)
def test_variables_with_which_nothing_works(monkeypatch, name, value):
    set_jax(monkeypatch, **{name.lower(): value})
    with pytest.raises(ConfigError, match="E243") as error:
        devices.find()
    one_line(error.value, f"{name}={value} is set", f"unset {name}")
