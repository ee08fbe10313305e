"""Data-parallel devices: the mesh, what lies where, and the compiled step."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from daasr_jax.errors import ConfigError
from daasr_jax.training.step import Step

AXIS = "data"


def make_mesh(batch_size: int, devices: int = 0) -> Mesh:
    """One-dimensional mesh over the devices that share a batch.

    Args:
        batch_size: Global batch.
        devices: Number of devices to use, 0 for all.

    Raises:
        ConfigError: If there are fewer devices, or they do not divide the batch.
    """
    available = jax.devices()
    n = devices or len(available)
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
            f"--config.train.batch_size={near} or {near + n}, or use "
            f"--config.train.devices={fits[-1]}.",
        )
    return jax.make_mesh(
        (n,), (AXIS,), axis_types=(AxisType.Auto,), devices=available[:n]
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


def shard_batch(batch: dict[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """This process's part of a batch, laid over the mesh along the first axis."""
    sharding = NamedSharding(mesh, P(AXIS))
    return {
        name: jax.make_array_from_process_local_data(sharding, value)
        for name, value in batch.items()
    }
