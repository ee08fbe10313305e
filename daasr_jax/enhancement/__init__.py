"""Weights put to use: slices of one's own enhanced, the maps and the page beside them."""

from daasr_jax.enhancement.arrays import Enhanced, enhance
from daasr_jax.enhancement.engine import Engine, Slices

__all__ = ["Engine", "Enhanced", "Slices", "enhance"]
