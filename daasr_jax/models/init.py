"""Initial weights: PyTorch's defaults, which the paper's network was trained from.

Kernels and biases of convolutions and linear maps are uniform in
+-1/sqrt(fan_in). The biases matter here: with zero biases the black background of an
MRI slice gives features that are exactly zero, where every layer norm multiplies the
gradient by 1/sqrt(epsilon) = 316, once for each norm on the path.
"""

from __future__ import annotations

from typing import Any

import jax
from flax import linen as nn
from flax.typing import Initializer
from jaxtyping import Array

kernel_init = jax.nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


def bias_init(fan_in: int) -> Initializer:
    """Uniform in +-1/sqrt(fan_in)."""

    def init(key, shape, dtype):
        bound = fan_in**-0.5
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


def linear(features: int, x: Array, **kwargs: Any) -> Array:
    """A Dense layer on `x` with this module's initial weights."""
    kwargs.setdefault("kernel_init", kernel_init)
    return nn.Dense(features, bias_init=bias_init(x.shape[-1]), **kwargs)(x)
