"""The reference's own pixels on their way to the output, beside the features.

The features of the reference reach the output through 1x1 convolutions alone. Here its
fine detail, `ref - blur`, comes to the place where P says, is weighed by how well what
was found agrees with the LR image, and is added to the picture.
"""

from __future__ import annotations

import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from daasr_jax.models.conv import Conv3
from daasr_jax.registry import PARTS
from daasr_jax.resampling import depth_to_space, space_to_depth


def pixel_maps(
    ref: Float[Array, "*b sh sw 1"], blurred: Float[Array, "*b sh sw 1"], s: int
) -> Float[Array, "*b h w d"]:
    """`ref - blur` and `blur`, their s x s cells as channels, one after the other."""
    parts = [space_to_depth(x, s) for x in (ref - blurred, blurred)]
    return jnp.concatenate(parts, axis=-1)


@PARTS.register("detail.gain")
class Gain(nn.Module):
    """`g * D`, D the fine detail that was found, g learned of each pixel.

    g is made by two 3x3 convolutions of the features, of C, of D and of the difference
    between the coarse part of what was found and the enlarged LR image: where the two
    disagree the patch is another tissue. g starts at zero.

    Attributes:
        features: Channels C.
        scale: Factor s.
    """

    features: int = 64
    scale: int = 4
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self,
        f: Float[Array, "b h w c"],
        bicubic: Float[Array, "b sh sw 1"],
        found: Float[Array, "b h w d"],
        c: Float[Array, "b h w 1"] | None,
    ) -> tuple[Float[Array, "b h w c"], Float[Array, "b sh sw 1"]]:
        """Weighs what was found.

        Args:
            f: Features on the LR grid.
            bicubic: The enlarged LR image.
            found: Maps as those of `pixel_maps`; all zero where there is nothing.
            c: C on the LR grid, or None.

        Returns:
            The features with what was seen added, and the detail to add to the picture.
        """
        enlarged = space_to_depth(bicubic, self.scale)
        fine, coarse = jnp.split(found.astype(jnp.float32), 2, axis=-1)
        there = jnp.any(found != 0, axis=-1, keepdims=True)
        apart = jnp.where(there, coarse - enlarged, 0.0)
        seen = [f, fine, apart] if c is None else [f, c, fine, apart]
        y = jnp.concatenate(seen, axis=-1)
        y = nn.relu(Conv3(features=self.features, dtype=self.dtype, name="judge")(y))
        zero = nn.initializers.zeros
        gain = Conv3(
            features=fine.shape[-1],
            kernel_init=zero,
            bias_init=zero,
            dtype=self.dtype,
            name="gain",
        )(y)
        detail = gain.astype(jnp.float32) * fine
        given = jnp.concatenate([y, detail.astype(y.dtype)], axis=-1)
        width = f.shape[-1]
        f = f + Conv3(features=width, dtype=self.dtype, name="give")(given)
        return f, depth_to_space(detail, self.scale)
