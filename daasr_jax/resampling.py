r"""Bicubic resampling, the degradation of section 4.2 and the s x s cell layout.

One bicubic everywhere: Keys' kernel with a = -0.5, widened by the factor when it
shrinks (antialias), samples at pixel centres, weights renormalised at the border. It
equals PIL's BICUBIC on float images and PyTorch's `bicubic, antialias=True`; MATLAB's
`imresize` differs at the border only; PyTorch without antialias (its default) is about
1 dB away.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

# Factors of the pixel shuffles that make up a scale.
PIXEL_SHUFFLES = {2: (2,), 3: (3,), 4: (2, 2)}

DEGRADATION = "bicubic (Keys a=-0.5, antialias)"


def upsample(x: Float[Array, "b h w c"], scale: int) -> Float[Array, "b sh sw c"]:
    """Bicubic enlargement Up_s by an integer factor.

    Computed in float32 whatever the dtype of `x`, which the result has: weights that
    are rounded to bfloat16 do not add up to one.
    """
    b, h, w, c = x.shape
    wide = x.astype(jnp.float32)
    wide = jax.image.resize(wide, (b, h * scale, w * scale, c), "cubic")
    return wide.astype(x.dtype)


def upsample_at(x: Float[Array, "b h w c"], scale: int) -> Float[Array, "b h w c"]:
    """One pixel of each s x s cell of `upsample(x, s)`: that in row and column s // 2.

    The others are not computed. Floating point as in `upsample`.
    """
    place = (scale // 2 + 0.5) / scale - 0.5  # from the centre of the cell, in pixels
    moved = jax.image.scale_and_translate(
        x.astype(jnp.float32),
        x.shape,
        (1, 2),
        jnp.ones(2),
        jnp.full(2, -place),
        "cubic",
        antialias=False,
    )
    return moved.astype(x.dtype)


def downsample(x: Float[Array, "b sh sw c"], scale: int) -> Float[Array, "b h w c"]:
    """Antialiased bicubic reduction Down_s: HR -> LR.

    Raises:
        ValueError: If height or width is not a multiple of `scale`.
    """
    b, h, w, c = x.shape
    if h % scale or w % scale:
        raise ValueError(f"image of {h}x{w} is not divisible by scale {scale}.")
    shape = (b, h // scale, w // scale, c)
    return jax.image.resize(x, shape, "cubic", antialias=True)


def blur(x: Float[Array, "b h w c"], scale: int) -> Float[Array, "b h w c"]:
    """Blurred counterpart Up_s(Down_s(x)) of a reference, section 3.1.

    For a factor that does not divide the size (the literal x4 on 255 pixels) the
    reduced size is rounded up.
    """
    b, h, w, c = x.shape
    small = (b, -(-h // scale), -(-w // scale), c)
    return jax.image.resize(
        jax.image.resize(x, small, "cubic", antialias=True), x.shape, "cubic"
    )


def space_to_depth(x: Float[Array, "*b sh sw c"], s: int) -> Float[Array, "*b h w d"]:
    """Moves s x s cells to channels, `d = s * s * c`, channel fastest."""
    *b, h, w, c = x.shape
    x = x.reshape(*b, h // s, s, w // s, s, c).swapaxes(-4, -3)
    return x.reshape(*b, h // s, w // s, s * s * c)


def depth_to_space(x: Float[Array, "b h w d"], s: int) -> Float[Array, "b sh sw c"]:
    """Inverse of `space_to_depth`: the pixel shuffle of the tail."""
    b, h, w, d = x.shape
    c = d // (s * s)
    x = x.reshape(b, h, w, s, s, c).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(b, h * s, w * s, c)
