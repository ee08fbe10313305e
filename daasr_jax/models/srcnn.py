"""SRCNN: three convolutions on the bicubic image.

Reference: C. Dong, C. C. Loy, K. He, X. Tang, "Image Super-Resolution Using Deep
Convolutional Networks", IEEE Transactions on Pattern Analysis and Machine Intelligence
38(2), 2016.
"""

from __future__ import annotations

import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from daasr_jax.models.init import bias_init, kernel_init
from daasr_jax.models.outputs import Outputs, check_scale
from daasr_jax.registry import MODELS
from daasr_jax.resampling import upsample

_STARTS = ("default", "published")


@MODELS.register("srcnn")
class SRCNN(nn.Module):
    """The 9-5-5 network: `lr -> Outputs`; `ref` is not used, `aux` is empty.

    Patch extraction, ReLU, non-linear mapping, ReLU, reconstruction, all on the HR grid
    with zero padding, so that the size stays (the paper crops). The same layers serve
    every scale. As published, nothing is added to the output: an untrained network does
    not return the bicubic image.

    Attributes:
        scale: s in {2, 3, 4}.
        features: Channels after the first convolution; half as many after the second.
        kernels: Sides of the three kernels, odd.
        start: `"default"`: PyTorch's; `"published"`: N(0, 0.001) and zero biases, made
            for SGD with momentum and millions of updates. With Adam it barely moves at
            the start, because the three small kernels multiply.
        axis_name: Not used; there are no batch statistics.
        dtype: Type of the computation; parameters are float32.
    """

    scale: int = 4
    features: int = 64
    kernels: tuple[int, ...] = (9, 5, 5)
    start: str = "default"
    axis_name: str | None = None
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self,
        lr: Float[Array, "b h w 1"],
        ref: Float[Array, "b h2 w2 1"],
        *,
        train: bool,
    ) -> Outputs:
        """Super-resolves `lr`.

        Args:
            lr: Low-resolution slices, float32 in [0, 1], of any size.
            ref: Ignored.
            train: Ignored; both modes are the same.

        Returns:
            `Outputs`.

        Raises:
            ValueError: If `scale`, `kernels` or `start` is unfit.
        """
        check_scale(self.scale)
        if len(self.kernels) != 3 or any(side % 2 == 0 for side in self.kernels):
            raise ValueError(f"kernels must be three odd sides, got {self.kernels}.")
        x = upsample(lr, self.scale)
        x = nn.relu(self._conv(self.features, 0, "extract", x))
        x = nn.relu(self._conv(self.features // 2, 1, "map", x))
        return Outputs(
            sr=self._conv(1, 2, "reconstruct", x).astype(jnp.float32), aux={}
        )

    def _conv(self, features: int, layer: int, name: str, x: Array) -> Array:
        side = self.kernels[layer]
        inits = {
            "default": (kernel_init, bias_init(side * side * x.shape[-1])),
            "published": (nn.initializers.normal(0.001), nn.initializers.zeros),
        }
        if self.start not in inits:
            raise ValueError(f"start must be one of {_STARTS}, got {self.start!r}.")
        kernel, bias = inits[self.start]
        return nn.Conv(
            features,
            (side, side),
            padding=side // 2,
            kernel_init=kernel,
            bias_init=bias,
            dtype=self.dtype,
            name=name,
        )(x)


@MODELS.register("srcnn_915")
class SRCNN915(SRCNN):
    """The 9-1-5 network: the mapping looks at one position."""

    kernels: tuple[int, ...] = (9, 1, 5)
