"""Discriminator on image patches, section 4.2: one logit for each patch."""

from __future__ import annotations

import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from daasr_jax.models.conv import Conv3


class PatchDiscriminator(nn.Module):
    """Fully convolutional; `stages` times (Conv3, Conv3 of stride 2), then a logit.

    The width is `features`, doubled from stage to stage; LeakyReLU(0.2) follows every
    convolution but the last. There is no normalisation: a gradient penalty belongs to
    one image, and a batch is spread over devices. The paper says no more than "a
    convolutional discriminator operating on image patches"; patches are those of P.
    Isola, J.-Y. Zhu, T. Zhou, A. Efros, "Image-to-image translation with conditional
    adversarial networks", 2017, https://arxiv.org/abs/1611.07004.

    A logit sees a square of `receptive_field` pixels: with two 3x3 convolutions at
    each step 1, 2, .. 2^(stages-1) and one at 2^stages, each adding twice its step,
    it is 1 + 4 (2^stages - 1) + 2 2^stages = 6 2^stages - 3, 45 for three stages.

    Attributes:
        features: Channels of the first stage.
        stages: Halvings of the size.
        dtype: Type of the computation; parameters and logits are float32.
    """

    features: int = 64
    stages: int = 3
    dtype: DTypeLike = jnp.float32

    @property
    def receptive_field(self) -> int:
        """Side in pixels of the square that one logit depends on."""
        return 6 * 2**self.stages - 3

    @nn.compact
    def __call__(self, x: Float[Array, "b h w 1"]) -> Float[Array, "b h2 w2 1"]:
        """Judges images of any size, one pixel upwards.

        Args:
            x: Images, nominally in [0, 1].

        Returns:
            Logits, float32, ceil(h / 2^stages) x ceil(w / 2^stages); large for real.

        Raises:
            ValueError: If `features` or `stages` is below 1.
        """
        for field in ("features", "stages"):
            if getattr(self, field) < 1:
                raise ValueError(
                    f"{field} must be 1 or more, got {getattr(self, field)}."
                )
        for i in range(self.stages):
            width = self.features * 2**i
            for stride in (1, 2):
                name = f"stage{i}_conv{stride}"
                conv = Conv3(features=width, dtype=self.dtype, stride=stride, name=name)
                x = nn.leaky_relu(conv(x), 0.2)
        return Conv3(features=1, dtype=self.dtype, name="out")(x).astype(jnp.float32)
