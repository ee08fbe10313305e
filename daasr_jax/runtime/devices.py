"""Data-parallel devices: the mesh, what lies where, and the compiled step."""

from __future__ import annotations

import collections
import functools
import logging
import os
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jax.tree_util import Partial

from daasr_jax.errors import ConfigError, ResourceError

log = logging.getLogger("daasr_jax")

AXIS = "data"
DETERMINISTIC = "--xla_gpu_deterministic_ops=true"

# Settings of JAX, by variables of the environment, and their values that work here.
_FIT = {
    "jax_enable_x64": (False,),
    "jax_disable_jit": (False,),
    "jax_numpy_dtype_promotion": ("standard",),
    "jax_transfer_guard": (None, "allow", "log"),
}
_WHY = {
    "jax_enable_x64": "it computes in 32 bits, as its results and checkpoints are",
    "jax_disable_jit": "its steps are compiled for all devices together",
    "jax_numpy_dtype_promotion": "it mixes types as NumPy does",
    "jax_transfer_guard": "it puts batches on the devices and reads losses",
}


def make_deterministic() -> None:
    """Has a GPU compute the same bits in every run, by slower operations.

    XLA reads its flags once, so this comes before any device is used. A CPU computes
    the same bits anyhow.
    """
    given = os.environ.get("XLA_FLAGS", "")
    os.environ["XLA_FLAGS"] = f"{given} {DETERMINISTIC}".strip()
    log.info("operations are deterministic (%s)", DETERMINISTIC)


def is_deterministic() -> bool:
    """Whether a GPU is to compute the same bits in every run; a CPU always does."""
    name = DETERMINISTIC.partition("=")[0]
    values = re.findall(rf"{name}(?:=(\S*))?(?!\S)", os.environ.get("XLA_FLAGS", ""))
    return bool(values) and values[-1].lower() in ("", "true", "1")


def find() -> list[Any]:
    """The devices of all processes, once JAX is known to compute as is needed here.

    Raises:
        ConfigError: If a variable sets JAX so that nothing here works (E243).
        ResourceError: If there is no device of the kind that JAX was told (E610).
    """
    for name, fit in _FIT.items():
        value = jax.config.values[name]
        if value not in fit:
            raise ConfigError(
                "E243",
                f"{name.upper()}={value} is set, with which this package does not work "
                f"({_WHY[name]}): unset {name.upper()}.",
            )
    try:
        return jax.devices()
    except (RuntimeError, AssertionError) as error:  # of a plugin that is absent
        wanted = jax.config.values["jax_platforms"]
        reason = " ".join(str(error).split())[:300] or "no plugin for it is installed"
        remedy = (
            f"JAX_PLATFORMS={wanted} asks for them: unset it to use what there is, or "
            "install their support (make cuda for NVIDIA GPUs)"
            if wanted
            else "reinstall jax, or make cuda for NVIDIA GPUs"
        )
        raise ResourceError(
            "E610", f"JAX cannot use its devices ({reason}); {remedy}."
        ) from error


def make_mesh(batch_size: int, devices: int = 0, accumulate: int = 1) -> Mesh:
    """One-dimensional mesh over devices of all processes, which share a batch equally.

    The devices of a process follow one another. Where not all are used, those that are
    come from all processes alike.

    Args:
        batch_size: Global batch.
        devices: Number of devices to use; 0 for as many as divide the batch.
        accumulate: Parts into which each device cuts its share.

    Raises:
        ConfigError: If there are not as many devices (E221), they do not divide the
            batch, a process would have none (E222), or the parts do not divide a share
            (E226).
    """
    available = jax.devices()
    processes = jax.process_count()
    if devices and not processes <= devices <= len(available):
        raise ConfigError(
            "E221",
            f"config.train.devices={devices}, but {processes} process(es) have "
            f"{len(available)} devices; give {processes} to {len(available)}, or 0 for "
            "as many as divide the batch.",
        )
    most = devices or len(available)
    n = max(d for d in range(1, most + 1) if batch_size % d == 0)
    near = max(1, batch_size // most) * most
    fits = f"--config.train.batch_size={near} or {near + most}"
    if devices and n < devices:
        raise ConfigError(
            "E222",
            f"a batch of {batch_size} does not divide over {devices} devices; give "
            f"{fits}, or use --config.train.devices={n}.",
        )
    if n < processes:
        raise ConfigError(
            "E222",
            f"a batch of {batch_size} divides over {n} of {most} devices and leaves "
            f"some of the {processes} processes without; give {fits}, or start one "
            "process on each machine, which takes all its devices.",
        )
    if batch_size // n % accumulate:
        raise ConfigError(
            "E226",
            f"a share of {batch_size // n} images does not divide into "
            f"config.train.accumulate={accumulate} parts; give a divisor of it.",
        )
    if n < most:
        log.warning(
            "%d OF %d DEVICES STAY IDLE: a batch of %d divides over %d; %s would use "
            "all and is another experiment",
            most - n,
            most,
            batch_size,
            n,
            fits,
        )
    return _mesh(_spread(available, n))


def _spread(available: list[Any], n: int) -> list[Any]:
    """n devices, from each process alike, those of a process side by side."""
    own: dict[int, list[Any]] = collections.defaultdict(list)
    for device in available:
        own[device.process_index].append(device)
    each, more = divmod(n, len(own))
    return [d for i, p in enumerate(sorted(own)) for d in own[p][: each + (i < more)]]


def rows_of(mesh: Mesh, batch_size: int) -> range:
    """The rows of a batch that lie on the devices of this process."""
    share = batch_size // mesh.size
    own = _own(mesh)
    return range(own[0] * share, (own[-1] + 1) * share)


def _own(mesh: Mesh) -> list[int]:
    me = jax.process_index()
    return [i for i, d in enumerate(mesh.devices.flat) if d.process_index == me]


def local_mesh(devices: int = 0) -> Mesh:
    """Mesh over the first devices of this process, 0 for all of them."""
    return _mesh(jax.local_devices()[: devices or None])


def _mesh(devices: list[Any]) -> Mesh:
    # Not `jax.make_mesh`, which refuses nodes that no fast link connects (slices).
    return Mesh(np.asarray(devices), (AXIS,), axis_types=(AxisType.Auto,))


def compile_step(
    function: Callable[..., Any], mesh: Mesh
) -> functools.partial[tuple[Any, dict[str, jax.Array]]]:
    """The per-device step over the mesh, jitted, its state donated.

    Arrays that the step holds as a `jax.tree_util.Partial` are arguments of the
    compiled program, on every device of the mesh: constants of it would make it large
    and slow to compile.

    Returns:
        `run(state, batch) -> (state, metrics)`; `run.func` is jitted, `run.args` holds
        the step.
    """

    def step(held: Partial, state: Any, batch: Any) -> Any:
        """Its name is that of the compiled program."""
        return held(state, batch)

    mapped = jax.shard_map(
        step,
        mesh=mesh,
        in_specs=(P(), P(), P(AXIS)),
        out_specs=P(),
        check_vma=False,
    )
    own = replicate(held(function), mesh)
    return functools.partial(jax.jit(mapped, donate_argnums=1), own)


def held(function: Callable[..., Any]) -> Partial:
    """The function as a tree, whose leaves are the arrays that it holds; see above."""
    return function if isinstance(function, Partial) else Partial(function)


def replicate(tree: Any, mesh: Mesh) -> Any:
    """The same arrays on every device of the mesh."""
    return jax.device_put(tree, NamedSharding(mesh, P()))


def replicated(template: Any) -> Any:
    """Shapes and types that say: the same on every device of every process."""
    sharding = NamedSharding(_mesh(jax.devices()), P())
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), template
    )


def to_local(tree: Any, mesh: Mesh) -> Any:
    """Replicated arrays of the run's mesh on every device of this process's `mesh`."""

    def own(x: Any) -> Any:
        return x.addressable_data(0) if isinstance(x, jax.Array) else x

    return replicate(jax.tree.map(own, tree), mesh)


def shard_batch(batch: dict[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """This process's rows of a batch, laid over the mesh along the first axis."""
    sharding = NamedSharding(mesh, P(AXIS))
    own = len(_own(mesh))

    def lay(value: np.ndarray) -> jax.Array:
        shape = (len(value) // own * mesh.size, *value.shape[1:])
        return jax.make_array_from_process_local_data(sharding, value, shape)

    return {name: lay(value) for name, value in batch.items()}


def ahead(
    batches: Iterable[dict[str, np.ndarray]], mesh: Mesh, depth: int = 2
) -> Iterator[dict[str, jax.Array]]:
    """The batches on the devices, `depth` of them on their way while one is used."""
    queue: collections.deque[dict[str, jax.Array]] = collections.deque()
    for batch in batches:
        queue.append(shard_batch(batch, mesh))
        if len(queue) > depth:
            yield queue.popleft()
    yield from queue


def description() -> str:
    """Platform and kind of the device that computes."""
    device = jax.devices()[0]
    return f"{device.platform}: {device.device_kind} x{jax.device_count()}"
