"""Which form of a computation is in use: for CPUs, or JAX's own."""

from __future__ import annotations

import jax


def cpu_forms() -> bool:
    """Whether functions with a form for CPUs take it: on a host without accelerator.

    Those forms have gradients of their own, quicker and smaller on a CPU, which JAX
    differentiates in reverse only: `jax.jvp`, `jax.jacfwd` and `jax.linearize` raise
    its TypeError. The others serve every mode. Asked when a function is traced; either
    form is right on any platform. The search, which has no gradient, is chosen when a
    program is lowered.
    """
    return jax.default_backend() == "cpu"
