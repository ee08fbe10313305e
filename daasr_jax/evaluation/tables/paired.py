"""Tests of paired differences over subjects."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

_EXACT = 16  # subjects up to which all changes of sign are counted
_RESAMPLES = 100_000


def sign_flip_test(differences: ArrayLike, *, seed: int = 0) -> float:
    """Two-sided p of a paired permutation test that the mean difference is 0.

    Under the null hypothesis the two values of a subject may change places: the sign
    of its difference may be either. Up to 16 subjects all 2^n signs are counted, the
    smallest p is then 2^(1 - n); above it 100,000 are drawn and the observed one is
    counted among them.

    Args:
        differences: One for each subject.
        seed: Of the drawing.

    Returns:
        p in (0, 1]; 1 where there is no subject, NaN where a value is not finite.

    Example:
        >>> sign_flip_test([1.0, 2.0, 3.0])
        0.25
    """
    x = np.asarray(differences, np.float64)
    n = len(x)
    if not n:
        return 1.0
    if not np.isfinite(x).all():
        return float("nan")
    if n <= _EXACT:
        bits = (np.arange(2**n)[:, None] >> np.arange(n)) & 1
        signs, more = 1 - 2 * bits, 0
    else:
        rng = np.random.default_rng(seed)
        signs, more = rng.choice((-1, 1), size=(_RESAMPLES, n)), 1
    sums = np.abs(signs @ x)
    reached = np.abs(x.sum())
    count = int((sums >= reached * (1 - 1e-12) - 1e-300).sum()) + more
    return count / (len(signs) + more)


def holm(p: ArrayLike) -> np.ndarray:
    """Holm's step-down correction of p for several tests, in their order.

    The i-th smallest of m, from 0, is multiplied by m - i; none is below a smaller
    one, and none above 1. NaN stay NaN and do not count.

    References:
        S. Holm, "A simple sequentially rejective multiple test procedure",
        Scandinavian Journal of Statistics 6, 1979.

    Example:
        >>> holm([0.01, 0.04, 0.03]).round(3).tolist()
        [0.03, 0.06, 0.06]
    """
    x = np.asarray(p, np.float64)
    out = np.full(x.shape, np.nan)
    known = np.flatnonzero(~np.isnan(x))
    order = known[np.argsort(x[known], kind="stable")]
    factors = len(order) - np.arange(len(order))
    out[order] = np.minimum(1, np.maximum.accumulate(x[order] * factors))
    return out
