"""What a result is measured by: against the input, and in a simulation the original."""

from __future__ import annotations

from collections.abc import Mapping

import jax.numpy as jnp
import numpy as np

from daasr_jax.metrics.consistency import consistency
from daasr_jax.metrics.psnr import psnr
from daasr_jax.metrics.ssim import ssim
from daasr_jax.resampling import upsample


def bicubic(lr: np.ndarray, scale: int) -> np.ndarray:
    """Slices (S, h, w) enlarged, (S, sh, sw) float32."""
    slices, height, width = lr.shape
    out = np.empty((slices, scale * height, scale * width), np.float32)
    for i, x in enumerate(lr):
        out[i] = np.asarray(upsample(_nhwc(x), scale))[0, ..., 0]
    return out


def data_consistency(sr: np.ndarray, lr: np.ndarray, degradation: str) -> float:
    """How well the result, degraded again, agrees with the input, in dB.

    Of the mean square over all slices, see `metrics.consistency`.
    """
    of_slices = [
        float(consistency(_nhwc(a), _nhwc(b), degradation=degradation)[0])
        for a, b in zip(sr, lr, strict=True)
    ]
    return float(-10 * np.log10(np.mean(10 ** (-np.array(of_slices) / 10))))


def scores(
    made: Mapping[str, np.ndarray], hr: np.ndarray, border: int
) -> dict[str, dict[str, object]]:
    """PSNR and SSIM of each method, the mean over slices.

    By the conventions of the evaluation: over the range of the volume, less a border.
    Slices that a method restores exactly, as blank ones, are left out for all.

    Args:
        made: Method -> (S, H, W).
        hr: (S, H, W) in [0, 1].
        border: Pixels cut off every side.

    Returns:
        Method -> `psnr`, `ssim`, and `of_slices`, a pair of them or None for each.
    """
    inside = slice(border, -border or None)
    pairs = {
        name: [
            (float(psnr(_nhwc(a), _nhwc(b))[0]), float(ssim(_nhwc(a), _nhwc(b))[0]))
            for a, b in zip(x[:, inside, inside], hr[:, inside, inside], strict=True)
        ]
        for name, x in made.items()
    }
    count = len(hr)
    use = [all(np.isfinite(p[i][0]) for p in pairs.values()) for i in range(count)]
    if not any(use):
        use = [False] * count
    return {
        name: {
            "psnr": _mean([p[i][0] for i in range(count) if use[i]]),
            "ssim": _mean([p[i][1] for i in range(count) if use[i]]),
            "of_slices": [list(p[i]) if use[i] else None for i in range(count)],
        }
        for name, p in pairs.items()
    }


def _mean(values: list[float]) -> float | None:
    return float(np.mean(values)) if values else None


def _nhwc(x: np.ndarray):
    return jnp.asarray(x)[None, ..., None]
