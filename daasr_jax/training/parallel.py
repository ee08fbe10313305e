"""Data-parallel devices: the mesh, what lies where, and the compiled step."""

from __future__ import annotations

import collections
from collections.abc import Iterable, Iterator
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from daasr_jax.errors import ConfigError
from daasr_jax.training.step import Step

AXIS = "data"


def make_mesh(batch_size: int, devices: int = 0, accumulate: int = 1) -> Mesh:
    """One-dimensional mesh over the devices of all processes that share a batch.

    Args:
        batch_size: Global batch.
        devices: Number of devices to use, 0 for all.
        accumulate: Parts into which each device cuts its share.

    Raises:
        ConfigError: If there are fewer devices, or they do not divide the batch.
    """
    available = jax.devices()
    n = devices or len(available)
    alone = jax.process_count() == 1
    if not alone and n != len(available):
        raise ConfigError(
            "E221",
            f"config.train.devices={n}, but {jax.process_count()} processes have "
            f"{len(available)} devices, which all take part; leave it 0.",
        )
    counts = collections.Counter(d.process_index for d in available)
    sizes = sorted(counts.values())
    if sizes[0] != sizes[-1]:
        raise ConfigError(
            "E221",
            f"the processes have unequal numbers of devices, {sizes}; "
            "start them so that each has as many (CUDA_VISIBLE_DEVICES limits one).",
        )
    if n > len(available):
        raise ConfigError(
            "E221",
            f"config.train.devices={n} but {len(available)} are here; lower it.",
        )
    if batch_size % n:
        near = max(1, batch_size // n) * n
        fits = [d for d in range(1, n) if batch_size % d == 0]
        raise ConfigError(
            "E222",
            f"batch of {batch_size} does not divide over {n} devices; give "
            f"--config.train.batch_size={near} or {near + n}"
            + (f", or use --config.train.devices={fits[-1]}." if alone else "."),
        )
    if batch_size // n % accumulate:
        raise ConfigError(
            "E226",
            f"a share of {batch_size // n} images does not divide into "
            f"config.train.accumulate={accumulate} parts; give a divisor of it.",
        )
    return _mesh(available[:n])


def local_mesh(devices: int = 0) -> Mesh:
    """Mesh over the first devices of this process, 0 for all of them."""
    return _mesh(jax.local_devices()[: devices or None])


def _mesh(devices: list[Any]) -> Mesh:
    return jax.make_mesh(
        (len(devices),), (AXIS,), axis_types=(AxisType.Auto,), devices=devices
    )


def compile_step(step: Step, mesh: Mesh) -> Any:
    """The per-device step over the mesh, jitted, its state donated."""
    mapped = jax.shard_map(
        step, mesh=mesh, in_specs=(P(), P(AXIS)), out_specs=P(), check_vma=False
    )
    return jax.jit(mapped, donate_argnums=0)


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
    """This process's part of a batch, laid over the mesh along the first axis."""
    sharding = NamedSharding(mesh, P(AXIS))
    return {
        name: jax.make_array_from_process_local_data(sharding, value)
        for name, value in batch.items()
    }


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
