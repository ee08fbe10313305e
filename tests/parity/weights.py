"""Weights rebuilt from a seed and a parameter's path: golden files do not hold them.

Every number comes from `numpy.random.Generator.random`, whose PCG64 stream NumPy keeps
stable; a golden file still holds `fingerprint` of what it was made with.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np


def uniform(shape: tuple[int, ...], *, seed: int, name: str) -> np.ndarray:
    """Uniform in [0, 1), float32, fixed by the seed and the name."""
    rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
    return rng.random(shape).astype(np.float32)


def random_variables(shapes: Mapping[str, Any], *, seed: int, path: str = "") -> dict:
    """Fills a tree of shapes; nothing is zero or trivial, zero-initialised or not.

    Kernels have variance 1 / fan-in; scales, variances and temperatures stay positive.
    """
    filled = {}
    for name, item in shapes.items():
        full = f"{path}/{name}" if path else name
        if isinstance(item, Mapping):
            filled[name] = random_variables(item, seed=seed, path=full)
            continue
        u = 2 * uniform(item.shape, seed=seed, name=full) - 1
        if name == "kernel":
            u *= np.sqrt(3 / np.prod(item.shape[:-1]), dtype=np.float32)
        elif name == "temperature":
            u = 0.3 + 0.2 * u
        elif name in ("scale", "var"):
            u = 1 + 0.5 * u
        else:
            u *= 0.2
        filled[name] = u.astype(np.float32)
    return filled


def flatten(tree: Mapping[str, Any], path: str = "") -> dict[str, Any]:
    """`{"a/b": leaf}` of a nested mapping."""
    flat = {}
    for name, item in tree.items():
        full = f"{path}/{name}" if path else name
        flat |= flatten(item, full) if isinstance(item, Mapping) else {full: item}
    return flat


def fingerprint(*trees: Mapping[str, Any]) -> np.ndarray:
    """Sum and sum of squares of all leaves, float64: tells one rebuild from another."""
    leaves = [np.asarray(v, np.float64) for t in trees for v in flatten(t).values()]
    return np.array([sum(v.sum() for v in leaves), sum((v**2).sum() for v in leaves)])
