"""The tail of DAASR: from features to the picture, and the picture of any features."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from daasr_jax.models.conv import Conv3
from daasr_jax.resampling import PIXEL_SHUFFLES, depth_to_space


class Tail(nn.Module):
    """From the features of the last group to the picture.

    Attributes:
        features, scale, detail: See `daasr.DAASR`.
    """

    features: int
    scale: int
    detail: Callable[..., nn.Module] | None
    dtype: DTypeLike

    @nn.compact
    def __call__(
        self,
        f: Float[Array, "b h w c"],
        f0: Float[Array, "b h w c"],
        bicubic: Float[Array, "b sh sw 1"],
        pixels: Float[Array, "b h w d"] | None,
        c: Float[Array, "b h w 1"] | None,
    ) -> Float[Array, "b sh sw 1"]:
        """SR from F of the last group, F_0, and what `detail` takes."""
        conv = partial(Conv3, dtype=self.dtype)
        f = conv(features=self.features, name="body_out")(f) + f0
        start = bicubic
        if self.detail is not None:
            weigh = self.detail(
                features=self.features,
                scale=self.scale,
                dtype=self.dtype,
                name="detail",
            )
            f, detail = weigh(f, bicubic, pixels, c)
            start = bicubic + detail
        for i, factor in enumerate(PIXEL_SHUFFLES[self.scale]):
            f = conv(features=self.features * factor**2, name=f"up{i}")(f)
            f = depth_to_space(f, factor)
        return picture(f, start, scale=self.scale, dtype=self.dtype, name="out")


def picture(
    f: Array, bicubic: Array, *, scale: int, dtype: DTypeLike, name: str
) -> Array:
    """Conv3 from features on either grid to an image, added to the bicubic."""
    coarse = f.shape[1] != bicubic.shape[1]
    zero = nn.initializers.zeros
    y = Conv3(
        features=scale**2 if coarse else 1,
        kernel_init=zero,
        bias_init=zero,
        dtype=dtype,
        name=name,
    )(f)
    y = depth_to_space(y, scale) if coarse else y
    return y.astype(jnp.float32) + bicubic
