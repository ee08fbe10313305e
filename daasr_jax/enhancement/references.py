"""Which slices of a bank of scans resemble a slice most, once both are blurred."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image

SIDE = 24  # pixels along a side of what is compared


def signature(
    image: np.ndarray, spacing: tuple[float, float], field: float
) -> np.ndarray:
    """What is compared of a slice: `SIDE` pixels along a square field about its centre.

    Args:
        image: (H, W) float32, in any unit.
        spacing: Sides of a pixel.
        field: Side of the field, in the unit of `spacing`.

    Returns:
        (SIDE * SIDE,) float32 of mean 0 and norm 1; zeros of a slice without content.
    """
    size = [
        max(1, round(n * side / field * SIDE))
        for n, side in zip(image.shape, spacing, strict=True)
    ]
    picture = Image.fromarray(np.ascontiguousarray(image, np.float32))
    small = np.asarray(picture.resize((size[1], size[0]), Image.Resampling.BICUBIC))
    out = np.zeros((SIDE, SIDE), np.float32)
    cut = [slice(max(0, (n - SIDE) // 2), max(0, (n - SIDE) // 2) + SIDE) for n in size]
    small = small[cut[0], cut[1]]
    top, left = ((SIDE - n) // 2 for n in small.shape)
    out[top : top + small.shape[0], left : left + small.shape[1]] = small
    out -= out.mean()
    norm = float(np.linalg.norm(out))
    return (out / norm if norm > 1e-6 else np.zeros_like(out)).ravel()


def nearest(
    targets: np.ndarray, candidates: np.ndarray, count: int = 1
) -> tuple[np.ndarray, np.ndarray]:
    """The candidates that resemble each target most, by the correlation of the blurred.

    Args:
        targets: (S, d), of `signature`.
        candidates: (N, d).
        count: How many for each target, at most N.

    Returns:
        Numbers of the candidates (S, count) and their correlations, the best first.
    """
    scores = targets @ candidates.T
    order = np.argsort(-scores, axis=1, kind="stable")[:, :count]
    return order, np.take_along_axis(scores, order, axis=1)


def resampled(image: np.ndarray, spacing: Sequence[float], wanted: Sequence[float]):
    """A slice with pixels of other sides, antialiased bicubic, (H', W') float32."""
    size = [
        max(1, round(n * have / side))
        for n, have, side in zip(image.shape, spacing, wanted, strict=True)
    ]
    picture = Image.fromarray(np.ascontiguousarray(image, np.float32))
    made = picture.resize((size[1], size[0]), Image.Resampling.BICUBIC)
    return np.asarray(made, np.float32).clip(0.0, 1.0)


def same_image(a: np.ndarray, b: np.ndarray) -> bool:
    """Whether two volumes of one shape hold the same image, but for unit and rounding.

    By their correlation over all voxels, summed slice by slice in float64.
    """
    means = [v.mean(dtype=np.float64) for v in (a, b)]
    xx = yy = xy = 0.0
    for x, y in zip(a, b, strict=True):
        x, y = ((v - mean).ravel() for v, mean in zip((x, y), means, strict=True))
        xx, yy, xy = xx + x @ x, yy + y @ y, xy + x @ y
    norms = float(np.sqrt(xx) * np.sqrt(yy))
    return norms > 0 and float(xy) / norms > 1 - 1e-6


def same_slices(slices: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Which slices hold the image of one of others, see `same_image`.

    Args:
        slices: (S, H, W) real.
        others: (N, H', W') real; of another size they are other images.

    Returns:
        (S,) bool.
    """
    out = np.zeros(len(slices), bool)
    if slices.shape[1:] != others.shape[1:]:
        return out
    near = _unit(slices) @ _unit(others).T > 1 - 1e-4  # in float32
    for i, k in np.argwhere(near):
        out[i] = out[i] or same_image(slices[i], others[k])
    return out


def _unit(images: np.ndarray) -> np.ndarray:
    """(N, d) float32 of mean 0 and norm 1; zeros of an image of one value."""
    flat = images.reshape(len(images), -1).astype(np.float32)
    flat -= flat.mean(axis=1, dtype=np.float64, keepdims=True).astype(np.float32)
    norm = np.linalg.norm(flat, axis=1, keepdims=True)
    return np.divide(flat, norm, out=np.zeros_like(flat), where=norm > 0)
