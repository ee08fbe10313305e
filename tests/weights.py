"""Weights of a tiny network that was never trained, for tests of what uses weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from daasr_jax import released
from daasr_jax.models.daasr import DAASR, PRESETS

# The preset `fast`, written as a configuration has it.
ABOUT: dict[str, Any] = {
    "scale": 2,
    "model": "daasr",
    "kwargs": {
        "features": 8,
        "groups": 1,
        **PRESETS["fast"],
        "fuse": {"name": "sat.gated"},
        "detail": {"name": "detail.gain"},
    },
    "degradation": "bicubic",
}


def random_variables(seed: int = 0, scale: int = 2, **fields: Any) -> dict[str, Any]:
    """Variables whose last layers are not zero, so that every part shows."""
    given = {"features": 8, "groups": 1, **PRESETS["fast"], **fields}
    model = DAASR(scale=scale, **given)
    lr, ref = jnp.zeros((1, 8, 8, 1)), jnp.zeros((1, 8 * scale, 8 * scale, 1))
    variables: Any = model.init(jax.random.key(seed), lr, ref, train=False)
    rng = np.random.default_rng(seed)

    def shaken(x: jax.Array) -> jax.Array:
        noise = rng.standard_normal(x.shape) * 0.05
        return jnp.asarray(np.abs(x + noise) if x.ndim == 0 else x + noise, x.dtype)

    return {**variables, "params": jax.tree.map(shaken, variables["params"])}


def write_weights(path: Path, scale: int = 2, **about: Any) -> Path:
    """A file of such weights."""
    released.save(path, random_variables(scale=scale), ABOUT | {"scale": scale} | about)
    return path
