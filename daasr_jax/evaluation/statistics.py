"""Means with their spread, and bootstrap intervals over subjects."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

_DRAWN = 10**6  # numbers of the resampling that are held at once
MIN_SUBJECTS = 6  # fewer say too little of others: no interval


def compared(scores: Mapping[str, ArrayLike]) -> np.ndarray:
    """The slices that a comparison of methods is over, (N,) bool.

    A PSNR of +inf (identical images) has no mean. Its slice is left out for every
    method, so that all means are over the same slices.

    Args:
        scores: Method -> one value of a metric for each slice.
    """
    return ~np.any(np.isposinf(np.asarray(list(scores.values()))), axis=0)


def finite_mean(values: ArrayLike) -> float | None:
    """Mean; None, which JSON can hold, where a value is not finite or there is none."""
    x = np.asarray(values, np.float64)
    return float(x.mean()) if x.size and np.isfinite(x).all() else None


def summary(
    values: ArrayLike,
    subjects: ArrayLike,
    *,
    seeds: ArrayLike | None = None,
    resamples: int = 10_000,
    seed: int = 0,
) -> dict[str, Any]:
    """Mean, standard deviation and 95 % bootstrap interval of per-slice values.

    The interval speaks of new subjects, so it resamples subjects, each with all its
    slices. Percentiles of few subjects are too narrow: they leave out the factor
    sqrt(n / (n - 1)) and Student's t. The interval takes the percentiles at
    Phi(+-sqrt(n / (n - 1)) t(0.975, n - 1)) instead of 2.5 and 97.5 % (the expanded
    percentile interval of Hesterberg 2015, "What Teachers Should Know About the
    Bootstrap", The American Statistician 69). Where the values are of several training
    seeds, these are resampled too, independently of the subjects.

    Args:
        values: One value for each slice (and seed).
        subjects: Subject of each value.
        seeds: Training seed of each value; by default all are of one.
        resamples: Bootstrap resamples.
        seed: Of the resampling.

    Returns:
        `mean`, `std` (sample, over the values), `ci95` [low, high] of the mean, `n`,
        the number of values, and `n_nonfinite` of them. Where one is not finite,
        `mean`, `std` and `ci95` are None: the mean is not finite. Below `MIN_SUBJECTS`
        subjects `ci95` is None.
    """
    x = np.asarray(values, np.float64)
    bad = int((~np.isfinite(x)).sum())
    out: dict[str, Any] = {"mean": None, "std": None, "ci95": None}
    out |= {"n": len(x), "n_nonfinite": bad}
    if bad or not len(x):
        return out
    out["mean"] = float(x.mean())
    out["std"] = float(x.std(ddof=1)) if len(x) > 1 else 0.0
    if len(np.unique(np.asarray(subjects))) >= MIN_SUBJECTS:
        sums, counts = _cells(x, subjects, seeds)
        means = _resampled(sums, counts, resamples, seed)
        n = sums.shape[1]
        tail = stats.norm.sf(math.sqrt(n / (n - 1)) * stats.t.ppf(0.975, n - 1))
        low, high = np.percentile(means, [100 * tail, 100 * (1 - tail)])
        out["ci95"] = [float(low), float(high)]
    return out


def _cells(
    x: np.ndarray, subjects: ArrayLike, seeds: ArrayLike | None
) -> tuple[np.ndarray, np.ndarray]:
    """Sum and number of the values of each seed and subject, (seeds, subjects)."""
    _, column = np.unique(np.asarray(subjects), return_inverse=True)
    _, row = np.unique(
        np.zeros(len(x)) if seeds is None else np.asarray(seeds), return_inverse=True
    )
    shape = int(row.max()) + 1, int(column.max()) + 1
    sums, counts = np.zeros(shape), np.zeros(shape)
    np.add.at(sums, (row, column), x)
    np.add.at(counts, (row, column), 1)
    return sums, counts


def _resampled(
    sums: np.ndarray, counts: np.ndarray, resamples: int, seed: int
) -> np.ndarray:
    """Means of resampled seeds and subjects, (resamples,)."""
    rng = np.random.default_rng(seed)
    rows, columns = sums.shape
    at_once = max(1, _DRAWN // (rows * columns))
    means = []
    for begin in range(0, resamples, at_once):
        size = min(at_once, resamples - begin)
        column = rng.integers(columns, size=(size, 1, columns))
        row = rng.integers(rows, size=(size, rows, 1))
        total, number = (a[row, column].sum(axis=(1, 2)) for a in (sums, counts))
        means.append(total / number)
    return np.concatenate(means)
