"""Test-wide settings: CPU, four devices where a test asks, strict shapes."""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import jax

jax.config.update("jax_num_cpu_devices", 4)
jax.config.update("jax_numpy_rank_promotion", "raise")
# Compiling takes most of the time here; half of it is optimisation nobody waits for.
jax.config.update("jax_disable_most_optimizations", True)
