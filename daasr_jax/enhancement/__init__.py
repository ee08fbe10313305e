"""Trained weights on a scan of one's own: the result, its maps and its page."""

from daasr_jax.enhancement.arrays import Enhanced, enhance
from daasr_jax.enhancement.engine import Engine, Slices

__all__ = ["Engine", "Enhanced", "Slices", "enhance"]
