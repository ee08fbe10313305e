"""What reference controls tell: own places found, what C is worth, gains over none."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy import stats

from daasr_jax.evaluation.predict import BASELINE, Prediction
from daasr_jax.evaluation.statistics import compared, finite_mean

BINS = 10  # of the confidence
FOREGROUND = 0.05  # LR pixels above it hold tissue


def measured(rows: Mapping[str, Prediction], method: str) -> Prediction:
    """One slice under all controls as one prediction without images.

    Args:
        rows: Control -> prediction.
        method: Name of the model in their scores.

    Returns:
        Its scores are those of the baseline and of each control, and numbers of these
        names: `identity` and `near`, by group from 1, see `identity_shares`;
        `calibration`, see `calibrate`; `reaction`, the largest change of a pixel
        between `self` and `black`.
    """
    pair, black, answer = (rows[name].images for name in ("pair", "black", "self"))
    scores = {BASELINE: rows["pair"].scores[BASELINE]}
    scores |= {name: row.scores[method] for name, row in rows.items()}
    scores["reaction"] = {"largest": float(np.abs(answer["sr"] - black["sr"]).max())}
    if "indices" in answer:
        found = with_identity(rows["self"]).scores
        scores |= {name: found[name] for name in ("identity", "near")}
        scores["calibration"] = calibrate(
            pair["confidence"],
            np.abs(pair["sr"] - pair["hr"]),
            np.abs(black["sr"] - black["hr"]),
            pair["lr"],
        )
    return dataclasses.replace(rows["pair"], images={}, scores=scores)


def identity_shares(
    indices: np.ndarray, lr: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Share of the foreground whose match is its own place, the target as reference.

    Args:
        indices: P of each group, (h, w, G) int, row-major in a key grid of h x w, or in
            several such grids one after another; h x w is the LR grid or a finer one.
        lr: LR image.

    Returns:
        `(identity, near)`, each (G,): the share of queries that found their own place,
        and of those that found it or one of the eight places around it. NaN without
        foreground.
    """
    height, width = indices.shape[:2]
    use = foreground(lr, (height, width))
    if not use.any():
        nothing = np.full(indices.shape[2], np.nan)
        return nothing, nothing
    y, x = np.divmod(indices[use] % (height * width), width)
    own_y, own_x = (places[:, None] for places in np.nonzero(use))
    away = np.maximum(np.abs(y - own_y), np.abs(x - own_x))
    return np.mean(away == 0, axis=0), np.mean(away <= 1, axis=0)


def with_identity(row: Prediction) -> Prediction:
    """A prediction without images, whose scores have the `identity` of each group."""
    scores = dict(row.scores)
    if "indices" in row.images:
        shares = identity_shares(row.images["indices"], row.images["lr"])
        for name, values in zip(("identity", "near"), shares, strict=True):
            scores[name] = {str(g): float(v) for g, v in enumerate(values, 1)}
    return dataclasses.replace(row, images={}, scores=scores)


def control_scores(
    pair: Sequence[Prediction],
    none: Sequence[Prediction],
    answer: Sequence[Prediction],
    method: str,
) -> dict[str, float]:
    """Means over some slices that tell during training whether a reference is used.

    Args:
        pair, none, answer: The slices with their own references, with black ones, and
            with themselves as references, this with `with_identity`.
        method: Name of the model in the scores.

    Returns:
        `gain_over_black`, PSNR of `pair` less that of `none` in dB, over the slices
        where neither is infinite, NaN where one is NaN; `identity`, the share of the
        last group over the slices with foreground, if the model has an index map. NaN
        where there is no such slice.
    """

    values = {
        name: np.array([r.scores[method]["psnr"] for r in rows], np.float64)
        for name, rows in (("pair", pair), ("none", none))
    }
    use = compared(values)
    out = {"gain_over_black": _mean(values["pair"][use] - values["none"][use])}
    if "identity" in answer[0].scores:
        last = max(answer[0].scores["identity"], key=int)
        shares = np.array([r.scores["identity"][last] for r in answer], np.float64)
        out["identity"] = _mean(shares[~np.isnan(shares)])
    return out


def calibrate(
    confidence: np.ndarray,
    error: np.ndarray,
    error_black: np.ndarray,
    lr: np.ndarray,
) -> dict[str, float]:
    """How the confidence of a slice goes with its error, over the foreground.

    The places are put in order of C and cut into `BINS` bins of equal size.

    Args:
        confidence: C (h, w), on the LR grid or a finer one.
        error: |sr - hr| (H, W), H a multiple of h; averaged over the cells of C.
        error_black: The same without reference.
        lr: LR image.

    Returns:
        `confidence_k`, `error_k` and `gain_k`, means of bin k from 0, where the gain is
        `error_black - error`; `rank_error` and `rank_gain`, Spearman's correlation of C
        with error and gain. All are NaN below two places a bin; a correlation is where
        one of the two is constant.
    """
    use = foreground(lr, confidence.shape)
    values = {
        "confidence": confidence[use].astype(np.float64),
        "error": _cells(error, confidence.shape)[use],
        "gain": _cells(error_black - error, confidence.shape)[use],
    }
    enough = int(use.sum()) >= 2 * BINS
    bins = np.array_split(np.argsort(values["confidence"], kind="stable"), BINS)
    out = {
        f"{name}_{k}": float(x[places].mean()) if enough else np.nan
        for name, x in values.items()
        for k, places in enumerate(bins)
    }
    for name in ("error", "gain"):
        pair = values["confidence"], values[name]
        varied = enough and all(np.ptp(x) > 0 for x in pair)
        found: Any = stats.spearmanr(*pair) if varied else (np.nan,)
        out[f"rank_{name}"] = float(found[0])
    return out


def foreground(lr: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Where an LR image holds tissue, on its own grid or a finer one, bool."""
    rows, columns = (n // m for n, m in zip(shape, lr.shape, strict=True))
    return np.repeat(np.repeat(lr > FOREGROUND, rows, 0), columns, 1)


def _cells(image: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Means of an image over the cells of a coarser grid."""
    height, width = shape
    rows, columns = image.shape[0] // height, image.shape[1] // width
    return image.reshape(height, rows, width, columns).mean((1, 3), dtype=np.float64)


def _mean(values: np.ndarray) -> float:
    found = finite_mean(values)
    return np.nan if found is None else found
