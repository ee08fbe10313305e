"""A registered network as it is asked for by name, and the shapes of its variables."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from daasr_jax.models.data_consistency import DataConsistent
from daasr_jax.registry import MODELS, resolved

_SIDE = 16  # of the LR window that shapes the variables; they do not depend on it


def make_network(
    name: str,
    *,
    scale: int,
    kwargs: Any,
    data_consistency: bool = False,
    **fixed: Any,
) -> Any:
    """The network.

    Args:
        name: Of `registry.MODELS`.
        scale: s.
        kwargs: Name -> value of its fields, as `registry.resolved` takes them.
        data_consistency: Keep to the LR image's k-space, see `DataConsistent`.
        fixed: Further fields, as they are.

    Raises:
        ConfigError: If there is no such model, part, or option of a part.
        TypeError, ValueError: If the model refuses a field.
    """
    network = MODELS.get(name)(scale=scale, **fixed, **resolved(kwargs))
    return DataConsistent(model=network, scale=scale) if data_consistency else network


def variable_shapes(model: Any, scale: int) -> Any:
    """Shapes and dtypes of `params` and `batch_stats`; nothing is computed."""
    lr = jax.ShapeDtypeStruct((1, _SIDE, _SIDE, 1), jnp.float32)
    ref = jax.ShapeDtypeStruct((1, _SIDE * scale, _SIDE * scale, 1), jnp.float32)
    return jax.eval_shape(
        lambda a, b: model.init(jax.random.key(0), a, b, train=False), lr, ref
    )
