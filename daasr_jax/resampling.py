r"""Bicubic resampling, the degradations HR -> LR and the s x s cell layout.

One bicubic everywhere: Keys' kernel with a = -0.5, widened by the factor when it
shrinks (antialias), samples at pixel centres, weights renormalised at the border. It
equals PIL's BICUBIC on float images and PyTorch's `bicubic, antialias=True`; MATLAB's
`imresize` differs at the border only; PyTorch without antialias (its default) is about
1 dB away.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Real

# Factors of the pixel shuffles that make up a scale.
PIXEL_SHUFFLES = {2: (2,), 3: (3,), 4: (2, 2)}
SCALES = tuple(PIXEL_SHUFFLES)

# Name in a configuration -> words of reports, of a scale.
DEGRADATIONS = {
    "bicubic": "bicubic (Keys a=-0.5, antialias)",
    "kspace": "k-space centre crop x{scale}",
}


def upsample(x: Float[Array, "b h w c"], scale: int) -> Float[Array, "b sh sw c"]:
    """Bicubic enlargement Up_s by an integer factor.

    Computed in float32 whatever the dtype of `x`, which the result has: weights that
    are rounded to bfloat16 do not add up to one.
    """
    b, h, w, c = x.shape
    wide = x.astype(jnp.float32)
    wide = jax.image.resize(wide, (b, h * scale, w * scale, c), "cubic")
    return wide.astype(jnp.result_type(x))


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
    return moved.astype(jnp.result_type(x))


def downsample(x: Float[Array, "b sh sw c"], scale: int) -> Float[Array, "b h w c"]:
    """Antialiased bicubic reduction Down_s: HR -> LR.

    Raises:
        ValueError: If height or width is not a multiple of `scale`.
    """
    shape = (x.shape[0], *_reduced(x, scale), x.shape[-1])
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


def degrade(
    hr: Real[Array, "b sh sw c"], scale: int, *, degradation: str
) -> Float[Array, "b h w c"]:
    r"""LR image of an HR image, float32 whatever the dtype of `hr`; differentiable.

    `"bicubic"` is `downsample`, section 4.2. `"kspace"` is the centre of k-space, as a
    scan of the same field of view at 1/s of the resolution along both axes sees it:

    .. math::

        lr = \Re\,\mathcal F_{h,w}^{-1}\!\left[\tfrac1s\, e^{\pi i\,(s-1)
        (k_y/H + k_x/W)}\, X_k\right],\quad X = \mathcal F_{H,W}\, hr,
        \quad -\tfrac h2 \le k_y \le \tfrac h2,\; -\tfrac w2 \le k_x \le \tfrac w2

    Both transforms are orthonormal. The conventions:

    * *Gain.* 1/s keeps a constant image constant. Without it LR is s times too bright,
      as in the public code of MINet, which then normalises every image.
    * *Nyquist.* An even h has one line at its Nyquist frequency, on which two conjugate
      lines of HR, -h/2 and +h/2, fall. LR takes their mean, so that LR of a real image
      is real. A crop that holds one of the two, as usual, has the same real part, but
      for the one corner where both frequencies are Nyquist's. The magnitude that public
      code takes folds the ringing below zero upward; LR here may be slightly negative,
      and is linear in HR.
    * *Place.* The linear phase puts LR pixels at the centres of the s x s cells that
      they stand for, where bicubic has them, and `upsample` expects them. Without it
      they lie at the first pixels of the cells, off by (s - 1)/2 HR pixels, but for odd
      sizes under centred transforms.

    k-space is that of the image given: a crop of a slice is taken as periodic.

    Args:
        hr: Images, any real dtype.
        scale: s.
        degradation: A name in `DEGRADATIONS`.

    Raises:
        ValueError: If the name is unknown, or height or width is not a multiple of
            `scale`.
    """
    if degradation not in DEGRADATIONS:
        raise ValueError(
            f"degradation must be one of {[*DEGRADATIONS]}, got {degradation!r}."
        )
    x = hr.astype(jnp.float32)
    if degradation == "bicubic":
        return downsample(x, scale)
    return _separable(x, *(_crop(n, scale) for n in _reduced(x, scale)))


def replace_centre(
    sr: Float[Array, "b sh sw c"], lr: Float[Array, "b h w c"], scale: int
) -> Float[Array, "b sh sw c"]:
    r"""The image with the centre of its k-space replaced by that of `lr`, float32.

    :math:`sr + D^+ (lr - D\,sr)`, with D the degradation `"kspace"` and
    :math:`D^+` its pseudo-inverse, which fills LR's k-space up with zeros: the nearest
    to `sr` of all images that degrade to `lr`. Differentiable in both.

    Raises:
        ValueError: If `sr` is not `scale` times as large as `lr`.
    """
    x = sr.astype(jnp.float32)
    error = lr.astype(jnp.float32) - degrade(x, scale, degradation="kspace")
    return x + _separable(error, *(_fill(n, scale) for n in lr.shape[1:3]))


def _reduced(x: Array, scale: int) -> tuple[int, int]:
    """LR height and width of an HR image."""
    _, h, w, _ = x.shape
    if h % scale or w % scale:
        raise ValueError(f"image of {h}x{w} is not divisible by scale {scale}.")
    return h // scale, w // scale


def _separable(x: Array, rows: np.ndarray, columns: np.ndarray) -> Array:
    """A matrix along the height and one along the width."""
    precision = lax.Precision.HIGHEST
    x = jnp.einsum("ih,bhwc->biwc", rows, x, precision=precision)
    return jnp.einsum("jw,biwc->bijc", columns, x, precision=precision)


def _crop(n: int, scale: int) -> np.ndarray:
    """`"kspace"` along one axis of sn pixels, `(n, sn)`: a low-pass, sampled.

    Real numbers instead of two Fourier transforms, since all of it is linear.
    """
    return _waves(n, scale, nyquist=0.5) / np.float32(scale * n)


def _fill(n: int, scale: int) -> np.ndarray:
    """Pseudo-inverse of `_crop`, `(sn, n)`: trigonometric interpolation."""
    return _waves(n, scale, nyquist=1.0).T / np.float32(n)


@functools.lru_cache(maxsize=32)
def _waves(n: int, scale: int, *, nyquist: float) -> np.ndarray:
    """Sum over -n/2 <= k <= n/2 of the wave k between LR place i and HR place m.

    Args:
        n: LR pixels along the axis.
        scale: s.
        nyquist: Weight of k = n/2 and k = -n/2, where n is even.
    """
    k = np.arange(-(n // 2), n // 2 + 1)
    places = scale * np.arange(n) + (scale - 1) / 2, np.arange(scale * n)
    lr, hr = (np.exp(2j * np.pi / (scale * n) * np.outer(p, k)) for p in places)
    weight = np.where(2 * np.abs(k) == n, nyquist, 1.0)
    total = (lr * weight) @ hr.conj().T
    return np.real(total).astype(np.float32)


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
