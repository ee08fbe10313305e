r"""Bicubic resampling, the degradation of section 4.2 and the s x s cell layout.

One bicubic everywhere: Keys' kernel with a = -0.5, widened by the factor when it
shrinks (antialias), samples at pixel centres, weights renormalised at the border. It
equals PIL's BICUBIC on float images and PyTorch's `bicubic, antialias=True`; MATLAB's
`imresize` differs at the border only; PyTorch without antialias (its default) is about
1 dB away.
"""

from __future__ import annotations

import jax
from jaxtyping import Array, Float

# Factors of the pixel shuffles that make up a scale.
PIXEL_SHUFFLES = {2: (2,), 3: (3,), 4: (2, 2)}

DEGRADATION = "bicubic (Keys a=-0.5, antialias)"


def upsample(x: Float[Array, "b h w c"], scale: int) -> Float[Array, "b sh sw c"]:
    """Bicubic enlargement Up_s by an integer factor, in the dtype of `x`."""
    b, h, w, c = x.shape
    return jax.image.resize(x, (b, h * scale, w * scale, c), "cubic")


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


def space_to_depth(x: Float[Array, "b sh sw c"], s: int) -> Float[Array, "b h w d"]:
    """Moves s x s cells to channels, `d = s * s * c`, channel fastest."""
    b, h, w, c = x.shape
    x = x.reshape(b, h // s, s, w // s, s, c).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(b, h // s, w // s, s * s * c)


def depth_to_space(x: Float[Array, "b h w d"], s: int) -> Float[Array, "b sh sw c"]:
    """Inverse of `space_to_depth`: the pixel shuffle of the tail."""
    b, h, w, d = x.shape
    c = d // (s * s)
    x = x.reshape(b, h, w, s, s, c).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(b, h * s, w * s, c)
