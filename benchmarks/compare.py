"""One table from several result files of `eval.py`, with paired differences.

    python -m benchmarks.compare --out docs/results/NAME.md --title TITLE \
        [--base LABEL] LABEL=RESULT.json [LABEL=RESULT.json ...]

Results of one label are training seeds of one system: `LABEL=A.json,B.json`.
Differences are per slice against the run `--base` of the same scale. Intervals are of
95 %, over subjects, and over seeds where there are several. Below six subjects there
are none.
"""

from __future__ import annotations

import argparse
import functools
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from daasr_jax.evaluation.statistics import MIN_SUBJECTS, compared, summary

Reports = list[dict[str, Any]]  # of one label: the training seeds of one system


def read(argument: str) -> tuple[str, Reports]:
    label, _, paths = argument.partition("=")
    reports = [
        json.loads(Path(path).read_text(encoding="utf-8")) for path in paths.split(",")
    ]
    if len({(r["scale"], r["pairing_sha256"]) for r in reports}) > 1:
        raise SystemExit(
            f"{label}: results of other scales or pairs are no seeds of it"
        )
    return label, reports


def method_of(report: dict[str, Any]) -> str:
    return next(m for m in report["methods"] if m != "bicubic")


def column(report: dict[str, Any], method: str, metric: str) -> list[float]:
    """Values by slice; infinite where the report has none of an identical image.

    A report has no value either where one is NaN: where it counts such, all are taken
    for NaN, as the mean over them is not finite in any case.
    """
    bad = report["methods"][method][metric]["n_nonfinite"]
    lacking = math.nan if bad else math.inf
    return [
        lacking if row[method][metric] is None else row[method][metric]
        for row in report["per_slice"]
    ]


def statistics(
    reports: Reports, metric: str, base: list[list[float]] | None = None
) -> dict[str, Any]:
    """Of a system's values by slice, or of their differences from `base`.

    Args:
        reports: Of its seeds.
        metric: Measured by all.
        base: For each seed the values of another method.
    """
    values, subjects, seeds = [], [], []
    for i, report in enumerate(reports):
        x = np.array(column(report, method_of(report), metric))
        beside = {"bicubic": column(report, "bicubic", metric)}
        if base is not None:
            beside["base"] = base[i]
        use = compared({"own": x} | beside)
        if base is not None:
            x = np.subtract(x, base[i], where=use, out=np.zeros_like(x))
        values += x[use].tolist()
        # equal pairs are of equal slices in one order; their names may have other salts
        names = np.array([row["subject"] for row in reports[0]["per_slice"]])
        subjects += names[use].tolist()
        seeds += [i] * int(use.sum())
    return summary(values, subjects, seeds=seeds)


def over_bicubic(reports: Reports) -> dict[str, Any]:
    """Gain in PSNR over bicubic."""
    base = [column(report, "bicubic", "psnr") for report in reports]
    return statistics(reports, "psnr", base)


def slices_of(report: dict[str, Any]) -> tuple:
    """What is equal for reports of the same slices, whatever the salts of names."""
    if "prepared_sha256" in report:
        return tuple(report[k] for k in ("prepared_sha256", "split", "n_slices"))
    return tuple(row["slice"] for row in report["per_slice"])


def over(reports: Reports, others: Reports, metric: str) -> dict[str, Any] | None:
    """Difference from another system, seeds in their order; None on other slices."""
    beside = [others[i % len(others)] for i in range(len(reports))]
    if len({slices_of(r) for r in reports + beside}) > 1:
        return None
    base = [column(report, method_of(report), metric) for report in beside]
    return statistics(reports, metric, base)


def interval(s: dict[str, Any], digits: int, sign: str = "") -> str:
    """Mean [interval], `not finite`, or the mean alone where subjects are few."""
    if s["mean"] is None:
        return "not finite"
    mean = f"{s['mean']:{sign}.{digits}f}"
    if s["ci95"] is None:
        return mean
    low, high = s["ci95"]
    return f"{mean} [{low:{sign}.{digits}f}, {high:{sign}.{digits}f}]"


def about_intervals(reports: Reports) -> str:
    """What the intervals of a table are over, in one sentence's end."""
    n = reports[0]["n_subjects"]
    if n < MIN_SUBJECTS:
        return f"no interval: {n} subjects say too little of others"
    return "[95 % bootstrap interval, subjects and training seeds resampled]"


def scores_of(scores: Callable[[str], dict[str, Any]], nets: list[str]) -> list[str]:
    """PSNR, SSIM and, where every run has it, LPIPS (lower is better)."""
    cells = [interval(scores("psnr"), 2), interval(scores("ssim"), 4)]
    return cells + [interval(scores(f"lpips_{net}"), 4) for net in nets]


def row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", required=True)
    parser.add_argument("--title", required=True)
    parser.add_argument("--base", default="")
    parser.add_argument("--note", default="")
    parser.add_argument("results", nargs="+")
    args = parser.parse_args()
    systems = dict(read(x) for x in args.results)
    every = [report for reports in systems.values() for report in reports]
    first = every[0]
    measured = [r["methods"]["bicubic"] for r in every]
    nets = [n for n in ("alex", "vgg") if all(f"lpips_{n}" in m for m in measured)]
    differences = [("psnr", 2), *((f"lpips_{net}", 4) for net in nets)]
    differences = differences if args.base else []
    lines = [
        f"# {args.title}",
        "",
        f"{first['dataset']}, split `{first['split']}`: {first['n_slices']} slices of "
        f"{first['n_subjects']} subjects. Mean over slices; {about_intervals(every)}. "
        f"{first['protocol']['degradation']}, border of s pixels, "
        f"{first['protocol']['intensity']}."
        + (f" LPIPS: {first['protocol']['lpips']}." if nets else ""),
        "",
        row(
            [
                *("x", "run", "track", "seeds", "steps", "PSNR, dB", "SSIM"),
                *(f"LPIPS {net}" for net in nets),
                "over bicubic, dB",
                *([f"over {args.base}, dB"] if args.base else []),
                *(f"LPIPS {net} over {args.base}" for net in nets if args.base),
            ]
        ),
        "|--:|---|---|" + "--:|" * (5 + len(nets) + len(differences)),
    ]
    for scale in sorted({r["scale"] for r in every}, reverse=True):
        chosen = {k: r for k, r in systems.items() if r[0]["scale"] == scale}
        bicubic = next(iter(chosen.values()))[0]["methods"]["bicubic"]
        cells = [str(scale), "bicubic", "-", "-", "-"]
        cells += [*scores_of(bicubic.__getitem__, nets), "-"]
        lines.append(row(cells + ["-"] * len(differences)))
        for label, reports in chosen.items():
            base = systems.get(args.base)
            steps = sorted({r["checkpoint_step"] for r in reports})
            cells = [str(scale), label, reports[0]["protocol"]["track"]]
            cells += [str(len(reports)), ", ".join(f"{step:,}" for step in steps)]
            cells += scores_of(functools.partial(statistics, reports), nets)
            cells += [interval(over_bicubic(reports), 2, "+")]
            for metric, digits in differences:
                if not base or base[0]["scale"] != scale or label == args.base:
                    cells.append("-")
                    continue
                found = over(reports, base, metric)
                cells.append(interval(found, digits, "+") if found else "other slices")
            lines.append(row(cells))
    lines += [
        "",
        "| run | configuration | parameters | config SHA-256 | pairing SHA-256 | "
        "commit | device |",
        "|---|---|--:|---|---|---|---|",
    ]
    for label, r in ((k, r) for k, reports in systems.items() for r in reports):
        dirty = "-dirty" if r["commit"].endswith("dirty") else ""
        lines.append(
            f"| {label} | {r['config']}:{r['preset']} | {r['parameters']:,} | "
            f"{r['config_sha256'][:12]} | {r['pairing_sha256'][:12]} | "
            f"{r['commit'][:12]}{dirty} | {r['device']} |"
        )
    if args.note:
        lines += ["", Path(args.note).read_text(encoding="utf-8").rstrip()]
    text = "\n".join([*lines, ""])
    Path(args.out).parent.mkdir(parents=True, exist_ok=True)
    Path(args.out).write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
