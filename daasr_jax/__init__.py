"""Reference-guided MRI super-resolution (DAASR) in JAX and Flax."""

from typing import Any

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """`enhance` and `Enhanced`, which are imported when they are asked for."""
    if name in ("enhance", "Enhanced"):
        from daasr_jax import enhancement

        return getattr(enhancement, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
