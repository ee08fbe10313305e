"""Processes of one run, on one machine or several: who they are and how they agree.

`jax.distributed` connects them. Under SLURM and Open MPI it finds them by itself; what
is decided here is which GPUs each process takes, where its defaults take one too few.
"""

from __future__ import annotations

import collections
import glob
import os
import threading
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from daasr_jax.errors import ConfigError, ResourceError
from daasr_jax.runtime import devices

# A process that is gone is noticed after this; the others then stop.
HEARTBEAT_SECONDS = 30
CONNECT_SECONDS = 300

Environment = Mapping[str, str]


def connect(
    coordinator: str | None = None,
    processes: int | None = None,
    process: int | None = None,
) -> None:
    """Joins the processes of the run, before any device is used; alone it does nothing.

    Args:
        coordinator: `HOST:PORT` of process 0, a port that is free there.
        processes: How many there are.
        process: Which one this is, from 0. Without the three, SLURM and Open MPI are
            asked.

    Raises:
        ConfigError: If the three do not fit together (E240), the processes have
            unequal numbers of devices (E242), or a variable sets JAX unfit (E243).
        ResourceError: If the others do not come (E606) or no device works (E610).
    """
    settings = settings_of(os.environ, coordinator, processes, process)
    if not settings:
        return
    # Its handler of SIGTERM would swallow the signal until the training loop asks.
    jax.config.update("jax_enable_preemption_service", False)
    late = threading.Timer(CONNECT_SECONDS, _give_up, [settings])
    late.daemon = True
    late.start()
    try:
        jax.distributed.initialize(
            **settings,
            # JAX itself ends the process by an abort, with a stack.
            initialization_timeout=2 * CONNECT_SECONDS,
            heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
        )
    except (RuntimeError, ValueError) as error:
        raise ResourceError(
            "E606",
            f"the processes of the run did not find each other: "
            f"{' '.join(str(error).split())[:300]}; see that all were started, "
            "reach the coordinator and that its port is free.",
        ) from error
    finally:
        late.cancel()
    check_equal(devices.find())


def _give_up(settings: dict[str, Any]) -> None:
    """Ends a process that waits for others in a call that nothing interrupts."""
    place = settings.get("coordinator_address", "the first process")
    error = ResourceError(
        "E606",
        f"process {settings['process_id']} waited {CONNECT_SECONDS} s for the "
        f"{settings['num_processes']} processes of the run; see that all were started "
        f"and reach {place}.",
    )
    os.write(2, f"{error}\n".encode())
    os._exit(error.exit_code)


def check_equal(devices: Sequence[Any]) -> None:
    """Checks that each process has as many devices, which JAX's own tools rely on.

    Raises:
        ConfigError: If one has fewer than another (E242).
    """
    counts = collections.Counter(d.process_index for d in devices)
    if len(set(counts.values())) > 1:
        raise ConfigError(
            "E242",
            f"the processes have {[counts[i] for i in sorted(counts)]} devices; start "
            "them so that each has as many (CUDA_VISIBLE_DEVICES limits one).",
        )


def lost_notice() -> tuple[float, str]:
    """For the watchdog: seconds of silence, and what they may mean with several."""
    if jax.process_count() == 1:
        return 0, ""
    return HEARTBEAT_SECONDS / 2, (
        f"process {jax.process_index()} of {jax.process_count()} waits. If another one "
        f"is gone, JAX ends this one within {HEARTBEAT_SECONDS} s; run the same "
        "command to resume from the last checkpoint."
    )


def number() -> int:
    """The number of this process, from 0, once connected; starts no device before."""
    return jax.process_index() if jax.distributed.is_initialized() else 0


def settings_of(
    environment: Environment,
    coordinator: str | None,
    processes: int | None,
    process: int | None,
) -> dict[str, Any]:
    """Arguments of `jax.distributed.initialize`; empty for a process on its own.

    Args:
        environment: Of the process, such as `os.environ`.
        coordinator, processes, process: See `connect`.

    Raises:
        ConfigError: If the three do not fit together (E240).
    """
    rank, size, local = _of_launcher(environment)
    given = [x is not None for x in (coordinator, processes, process)]
    if processes is None and process is None and size is not None:
        processes, process = size, rank
    elif any(given) and not all(given):
        raise ConfigError(
            "E240",
            "--coordinator=HOST:PORT, --processes=N and --process=I go together; under "
            "SLURM and Open MPI none is needed.",
        )
    if processes is None or process is None:
        return {}
    if not 0 <= process < processes:
        raise ConfigError(
            "E240",
            f"--process={process} must be from 0 to {processes - 1}, "
            f"--processes={processes}.",
        )
    if coordinator is not None and not coordinator.rpartition(":")[2].isdigit():
        raise ConfigError(
            "E240", f"--coordinator={coordinator} must be HOST:PORT, as node1:12345."
        )
    if processes == 1:
        return {}
    if coordinator is None and not {
        "SLURM_STEP_NODELIST",
        "OMPI_MCA_orte_hnp_uri",
    }.intersection(environment):
        raise ConfigError(
            "E240",
            "this Open MPI names no place to meet; add --coordinator=HOST:PORT of the "
            "first process.",
        )
    settings: dict[str, Any] = {"num_processes": processes, "process_id": process}
    if coordinator is not None:
        settings["coordinator_address"] = coordinator
    gpus = _gpus_of(environment, local)
    return settings | ({"local_device_ids": gpus} if gpus else {})


def _of_launcher(
    environment: Environment,
) -> tuple[int | None, int | None, tuple[int, int] | None]:
    """`(rank, size, (rank, size) on this machine)` that SLURM or Open MPI gave."""

    def number(name: str) -> int:
        return int(environment[name])

    if "OMPI_COMM_WORLD_RANK" in environment:
        here = (
            number("OMPI_COMM_WORLD_LOCAL_RANK"),
            number("OMPI_COMM_WORLD_LOCAL_SIZE"),
        )
        return number("OMPI_COMM_WORLD_RANK"), number("OMPI_COMM_WORLD_SIZE"), here
    # Of a step that srun started; a batch script outside of one runs alone.
    if {"SLURM_STEP_NODELIST", "SLURM_STEP_NUM_TASKS", "SLURM_PROCID"} <= set(
        environment
    ):
        size = number("SLURM_STEP_NUM_TASKS")
        nodes = int(environment.get("SLURM_STEP_NUM_NODES", "1"))
        here = number("SLURM_LOCALID"), -(-size // nodes)
        return number("SLURM_PROCID"), size, here
    return None, None, None


def _gpus_of(environment: Environment, local: tuple[int, int] | None) -> list[int]:
    """GPUs of a process among those it sees; empty for all of them, or on a CPU.

    The processes of a machine take equal parts, unless the launcher has bound them so
    that each sees its own only.
    """
    listed = environment.get("CUDA_VISIBLE_DEVICES")
    if listed is None:
        visible = len(glob.glob("/dev/nvidia[0-9]*"))
    else:
        visible = len([x for x in listed.split(",") if x.strip()])
    if not visible or local is None:
        return []
    rank, size = local
    too_few = visible < size
    if "SLURM_GPUS_PER_TASK" in environment or (too_few and listed is not None):
        return list(range(visible))
    if too_few:
        raise ConfigError(
            "E240",
            f"{size} processes on a machine with {visible} GPUs; start one for each.",
        )
    each = visible // size
    return list(range(rank * each, (rank + 1) * each))


class Vote:
    """Whether any process was asked to stop, known to all of them at the same step.

    Each call starts a reduction over all devices and returns the outcome of the one
    `DELAY` calls before, so that no step waits for it.
    """

    DELAY = 2

    def __init__(self, mesh: Mesh) -> None:
        self._alone = jax.process_count() == 1
        self._mesh = mesh
        self._own = len(devices.rows_of(mesh, mesh.size))
        self._any = jax.jit(jax.numpy.max, out_shardings=NamedSharding(mesh, P()))
        self._open: collections.deque[jax.Array] = collections.deque()

    def __call__(self, wish: bool) -> bool:
        """Casts this process's vote and returns an outcome."""
        if self._alone:
            return wish
        mine = np.full(self._own, wish, np.int32)
        votes = devices.shard_batch({"stop": mine}, self._mesh)
        self._open.append(self._any(votes["stop"]))
        if jax.default_backend() == "cpu":
            jax.block_until_ready(self._open[-1])
        return len(self._open) > self.DELAY and bool(self._open.popleft())
