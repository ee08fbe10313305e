"""One table from several result files of `eval.py`, with paired differences.

    python -m benchmarks.compare --out docs/results/NAME.md --title TITLE \
        [--base LABEL] LABEL=RESULT.json [LABEL=RESULT.json ...]

Differences are per slice against the run `--base` of the same scale; their interval is
the 95 % bootstrap interval of the mean.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from daasr_jax.evaluation.statistics import bootstrap_unit, summary


def read(argument: str) -> tuple[str, dict[str, Any]]:
    label, _, path = argument.partition("=")
    return label, json.loads(Path(path).read_text(encoding="utf-8"))


def values(report: dict[str, Any], method: str, metric: str) -> dict[str, float]:
    return {row["slice"]: row[method][metric] for row in report["per_slice"]}


def method_of(report: dict[str, Any]) -> str:
    return next(m for m in report["methods"] if m != "bicubic")


def interval(s: dict[str, Any], digits: int, sign: str = "") -> str:
    low, high = s["ci95"]
    mean = f"{s['mean']:{sign}.{digits}f}"
    return f"{mean} [{low:{sign}.{digits}f}, {high:{sign}.{digits}f}]"


def difference(
    report: dict[str, Any], base: dict[str, Any], metric: str, digits: int
) -> str:
    a, b = (values(r, method_of(r), metric) for r in (report, base))
    if a.keys() != b.keys():
        return "other slices"
    subjects = [r["subject"] for r in report["per_slice"]]
    return interval(summary([a[k] - b[k] for k in a], subjects), digits, "+")


def scores_of(scores: dict[str, Any], nets: list[str]) -> list[str]:
    """PSNR, SSIM and, where every run has it, LPIPS (lower is better)."""
    cells = [interval(scores["psnr"], 2), interval(scores["ssim"], 4)]
    return cells + [interval(scores[f"lpips_{net}"], 4) for net in nets]


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
    reports = dict(read(x) for x in args.results)
    first = next(iter(reports.values()))
    subjects = [r["subject"] for r in first["per_slice"]]
    measured = [r["methods"]["bicubic"] for r in reports.values()]
    nets = [n for n in ("alex", "vgg") if all(f"lpips_{n}" in m for m in measured)]
    compared = [("psnr", 2), *((f"lpips_{net}", 4) for net in nets)]
    compared = compared if args.base else []
    lines = [
        f"# {args.title}",
        "",
        f"{first['dataset']}, split `{first['split']}`: {first['n_slices']} slices of "
        f"{first['n_subjects']} subjects. Mean over slices [95 % bootstrap interval, "
        f"{bootstrap_unit(subjects)} resampled]; one training seed. "
        f"{first['protocol']['degradation']}, border of s pixels, "
        f"{first['protocol']['intensity']}."
        + (f" LPIPS: {first['protocol']['lpips']}." if nets else ""),
        "",
        row(
            [
                *("x", "run", "track", "steps", "PSNR, dB", "SSIM"),
                *(f"LPIPS {net}" for net in nets),
                "over bicubic, dB",
                *([f"over {args.base}, dB"] if args.base else []),
                *(f"LPIPS {net} over {args.base}" for net in nets if args.base),
            ]
        ),
        "|--:|---|---|" + "--:|" * (4 + len(nets) + len(compared)),
    ]
    scales = sorted({r["scale"] for r in reports.values()}, reverse=True)
    for scale in scales:
        chosen = {k: r for k, r in reports.items() if r["scale"] == scale}
        bicubic = next(iter(chosen.values()))["methods"]["bicubic"]
        cells = [str(scale), "bicubic", "-", "-", *scores_of(bicubic, nets), "-"]
        lines.append(row(cells + ["-"] * len(compared)))
        for label, report in chosen.items():
            method = method_of(report)
            gain = report[f"{method}_minus_bicubic"]["psnr"]
            base = reports.get(args.base)
            cells = [str(scale), label, report["protocol"]["track"]]
            cells += [f"{report['checkpoint_step']:,}"]
            cells += [*scores_of(report["methods"][method], nets)]
            cells += [interval(gain, 2, "+")]
            same = base is not None and base["scale"] == scale and label != args.base
            cells += [
                difference(report, base, metric, digits) if base and same else "-"
                for metric, digits in compared
            ]
            lines.append(row(cells))
    lines += [
        "",
        "| run | configuration | parameters | config SHA-256 | pairing SHA-256 | "
        "commit | device |",
        "|---|---|--:|---|---|---|---|",
    ]
    for label, r in reports.items():
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
