"""Damage to a reference, so that training meets references not to be trusted.

One of five ways, each equally likely: moved, blurred, recoloured, partly blank, noisy.
"""

import numpy as np
from scipy import ndimage

# A way of damage and its range. Lengths are parts of the side of a slice.
_SHIFT = (1 / 64, 1 / 8)
_SIGMA = (1 / 256, 1 / 64)
_EXPONENT = (0.3, 3.0)
_NOISE = (0.05, 1.0)  # standard deviation
_BLOCKS = 8  # along each side, of which half are blanked


def corrupted(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A damaged copy of a slice.

    Args:
        image: (H, W, 1) float32 in [0, 1].
        rng: Chooses the way and its strength.

    Returns:
        (H, W, 1) float32 in [0, 1].
    """
    way = _WAYS[int(rng.integers(len(_WAYS)))]
    return np.clip(way(image, rng), 0.0, 1.0).astype(np.float32)


def _moved(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Moved by whole pixels in any direction; what moves in is zero."""
    side = max(image.shape[:2])
    distance, angle = rng.uniform(*_SHIFT) * side, rng.uniform(0, 2 * np.pi)
    rows, columns = round(distance * np.sin(angle)), round(distance * np.cos(angle))
    if not rows and not columns:
        columns = 1
    return ndimage.shift(image, (rows, columns, 0), order=0, cval=0.0)


def _blurred(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    sigma = rng.uniform(*_SIGMA) * max(image.shape[:2])
    return ndimage.gaussian_filter(image, (sigma, sigma, 0), mode="nearest")


def _recoloured(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A power of the intensity x, of which half then become 4 x (t - x) / t.

    t is the maximum, so what was brightest is dark. Background stays dark in both.
    """
    power = _log_uniform(rng, _EXPONENT)
    out = np.maximum(image, 0.0) ** power
    if rng.integers(2):
        top = max(float(out.max()), 1e-6)
        out = 4 * out * (top - out) / top
    return out


def _blanked(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Half of the blocks of a coarse grid are zero."""
    number = _BLOCKS * _BLOCKS
    blank = rng.permutation(number).reshape(_BLOCKS, _BLOCKS) < number // 2
    rows, columns = (np.arange(n) * _BLOCKS // n for n in image.shape[:2])
    return np.where(blank[np.ix_(rows, columns)][..., None], 0.0, image)


def _noisy(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """From a little to so much that nothing is left."""
    return add_noise(image, _log_uniform(rng, _NOISE), rng)


def add_noise(
    image: np.ndarray, deviation: float, rng: np.random.Generator
) -> np.ndarray:
    """White Gaussian noise is added.

    Args:
        image: (H, W, 1) in [0, 1].
        deviation: Standard deviation of the noise.
        rng: Draws it.

    Returns:
        (H, W, 1) float64; it may leave [0, 1].
    """
    return image + deviation * rng.standard_normal(image.shape)


def _log_uniform(rng: np.random.Generator, ends: tuple[float, float]) -> float:
    return float(np.exp(rng.uniform(*np.log(ends))))


_WAYS = (_moved, _blurred, _recoloured, _blanked, _noisy)
