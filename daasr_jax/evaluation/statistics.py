"""Means with their spread and bootstrap intervals."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

_DRAWN = 10**6  # numbers of the resampling that are held at once
MIN_SUBJECTS = 10  # with fewer, resampling subjects says nothing: slices instead


def bootstrap_unit(subjects: Sequence[str]) -> str:
    """What the intervals resample: `"subjects"`, or `"slices"` where those are few.

    Slices of one subject resemble each other, so an interval over slices is too narrow
    as a statement about new subjects.
    """
    return "subjects" if len(set(subjects)) >= MIN_SUBJECTS else "slices"


def finite_mean(values: Iterable[float]) -> float | None:
    """Mean of the finite values; None, which JSON can hold, where there is none."""
    finite = [v for v in values if math.isfinite(v)]
    return float(np.mean(finite)) if finite else None


def summary(
    values: Sequence[float],
    subjects: Sequence[str],
    *,
    resamples: int = 10_000,
    seed: int = 0,
) -> dict[str, Any]:
    """Mean, standard deviation and 95 % bootstrap interval of per-slice values.

    Args:
        values: One value for each slice. Non-finite ones (the PSNR of identical images)
            are left out and counted.
        subjects: Subject of each slice.
        resamples: Bootstrap resamples.
        seed: Of the resampling.

    Returns:
        `mean`, `std` (sample, over slices), `ci95` [low, high] of the mean, by
        percentiles, and `n_nonfinite`.
    """
    x = np.asarray(values, np.float64)
    names = np.asarray(subjects)
    finite = np.isfinite(x)
    x, names = x[finite], names[finite]
    dropped = int((~finite).sum())
    if not len(x):
        return {"mean": None, "std": None, "ci95": None, "n_nonfinite": dropped}
    rng = np.random.default_rng(seed)
    if bootstrap_unit(subjects) == "subjects":
        units = [x[names == s] for s in sorted(set(names.tolist()))]
        sums, counts = np.array([[u.sum(), len(u)] for u in units]).T
    else:
        sums, counts = x, np.ones(len(x))

    def draw(count: int) -> np.ndarray:
        drawn = rng.integers(len(sums), size=(count, len(sums)))
        return sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1)

    at_once = max(1, _DRAWN // len(sums))
    shares = np.diff([*range(0, resamples, at_once), resamples])
    means = np.concatenate([draw(share) for share in shares.tolist()])
    low, high = np.percentile(means, [2.5, 97.5])
    return {
        "mean": float(x.mean()),
        "std": float(x.std(ddof=1)) if len(x) > 1 else 0.0,
        "ci95": [float(low), float(high)],
        "n_nonfinite": dropped,
    }
