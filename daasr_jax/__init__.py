"""Reference-guided MRI super-resolution (DAASR) in JAX and Flax."""

__version__ = "0.1.0"
