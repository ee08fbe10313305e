"""Processes of a bare machine: without any package but a few and what those need."""

from __future__ import annotations

import functools
import os
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

# What `benchmarks.gpu` and `tests/gpu` say that they need, and PyTorch for its peers.
NEEDED = ("jax", "flax", "optax", "numpy", "jaxtyping", "pytest", "torch")
LACKING = ("orbax-checkpoint", "tensorstore")  # though flax asks for them

# Read by every Python at its start. A package that is not there cannot be imported.
HOOK = """
import sys
from importlib.machinery import PathFinder


class Bare(PathFinder):
    refused = {refused!r}

    @classmethod
    def find_spec(cls, name, path=None, target=None):
        if name.partition(".")[0] in cls.refused:
            return None
        return super().find_spec(name, path, target)


sys.meta_path[sys.meta_path.index(PathFinder)] = Bare
"""


def allowed(needed: tuple[str, ...] = NEEDED) -> set[str]:
    """Distributions that are installed where the needed ones are."""
    found: set[str] = set()
    waiting = list(needed)
    while waiting:
        name: str = canonicalize_name(waiting.pop())
        if name in found or name in LACKING:
            continue
        found.add(name)
        try:
            asked = [Requirement(text) for text in metadata.requires(name) or []]
        except metadata.PackageNotFoundError:  # PyTorch need not be here
            continue
        waiting += [
            one.name
            for one in asked
            if one.marker is None or one.marker.evaluate({"extra": ""})
        ]
    return found


@functools.cache
def refused(*beside: str) -> set[str]:
    """Modules of every other distribution that is installed here, but the project's.

    Args:
        beside: Distributions to refuse too.
    """
    kept = (allowed() | {"daasr-jax"}) - set(beside)
    return {
        module
        for module, owners in metadata.packages_distributions().items()
        if not kept & {canonicalize_name(owner) for owner in owners}
    }


def environment(folder: Path, *beside: str, **changes: str) -> dict[str, str]:
    """Variables of a process, and of all that it starts, that is bare.

    Args:
        folder: Where the hook is written.
        beside: Distributions that are lacking too.
        changes: Further variables.
    """
    text = HOOK.format(refused=refused(*beside))
    (folder / "sitecustomize.py").write_text(text, encoding="utf-8")
    path = os.pathsep.join(
        x for x in (str(folder), os.environ.get("PYTHONPATH", "")) if x
    )
    return os.environ | {"PYTHONPATH": path, "JAX_PLATFORMS": "cpu"} | changes
