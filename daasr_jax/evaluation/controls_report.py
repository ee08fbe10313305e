"""The report of reference controls, its table and what stands under it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from rich.table import Table
from rich.text import Text

from daasr_jax.data import Names, Pairing, SliceTable
from daasr_jax.evaluation.controls import BLOCK, CONTROLS, Control
from daasr_jax.evaluation.controls_scores import BINS, FOREGROUND
from daasr_jax.evaluation.predict import BASELINE, Prediction
from daasr_jax.evaluation.report import (
    COLUMNS,
    caption,
    cell,
    columns,
    contrast_by,
    count,
    measure,
    number,
    protocol,
)
from daasr_jax.evaluation.statistics import MIN_SUBJECTS, finite_mean, summary


def make_controls_report(
    rows: Sequence[Prediction],
    table: SliceTable,
    pairing: Pairing,
    controls: Mapping[str, Control],
    left_out: Mapping[str, str],
    *,
    used: bool,
    method: str,
    scale: int,
    degradation: str = "bicubic",
    border: int,
    resamples: int,
    seed: int,
    provenance: dict[str, Any],
    names: Names | None = None,
) -> dict[str, Any]:
    """The controls of a split as one JSON-ready dictionary.

    Args:
        rows: From `controls_scores.measured`, one for each slice.
        table: The split.
        pairing: The references of `pair`.
        controls, left_out: From `controls.draw_controls`.
        used: Whether the network takes a reference at all.
        method: Name of the model.
        scale, degradation, border: As measured.
        resamples, seed: Of the bootstrap.
        provenance: Where the numbers come from.
        names: What subjects and slices are called in it; None for their names.
    """
    found = measure(
        rows,
        table,
        pairing,
        (BASELINE, *controls),
        minus="black",
        resamples=resamples,
        seed=seed,
        shown=names,
    )
    subjects = np.array([str(table.subjects[p.position]) for p in rows])

    def over_slices(name: str, key: str) -> dict[str, Any]:
        """Statistics over the slices that have the number."""
        values = np.array([p.scores[name][key] for p in rows], np.float64)
        use = np.isfinite(values)
        return summary(values[use], subjects[use], resamples=resamples, seed=seed)

    reaction = float(np.max([p.scores["reaction"]["largest"] for p in rows]))
    identity = calibration = None
    if "identity" in rows[0].scores and used:
        groups = rows[0].scores["identity"]
        identity = {
            name: {group: over_slices(name, group) for group in groups}
            for name in ("identity", "near")
        }
        calibration = {
            "bins": [
                {
                    name: over_slices("calibration", f"{name}_{k}")["mean"]
                    for name in ("confidence", "error", "gain")
                }
                for k in range(BINS)
            ],
            "rank_error": over_slices("calibration", "rank_error"),
            "rank_gain": over_slices("calibration", "rank_gain"),
        }
    used = used and reaction != 0
    return provenance | {
        "split": table.name,
        "scale": scale,
        "method": method,
        "protocol": protocol(
            table,
            pairing,
            found["methods"]["pair"],
            scale=scale,
            degradation=degradation,
            border=border,
            resamples=resamples,
        )
        | {
            "foreground": f"LR above {FOREGROUND}",
            "shuffled_block": BLOCK * scale,
            "bins": f"{BINS} of each slice's foreground by its own C",
        },
        "pairing_sha256": pairing.sha256,
        "uses_reference": used,
        "largest_reaction": finite_mean([reaction]),
        "references": {
            name: {
                "what": CONTROLS[name],
                "same_as": c.same_as or None,
                "contrast_by": c.pairing and contrast_by(table, c.pairing),
            }
            for name, c in controls.items()
        },
        "left_out": dict(left_out),
        "identity": identity,
        "calibration": calibration,
        **{("minus_black" if k == "minus" else k): v for k, v in found.items()},
    }


def make_controls_table(report: dict[str, Any]) -> Table:
    """The means of every control; below six subjects with those of each."""
    beside = ("ssim_uniform7", "consistency")  # they are in the JSON
    shown = {m: c for m, c in columns(report).items() if m not in beside}
    table = Table(
        title=f"{report['dataset']}, {report['split']}, x{report['scale']}, "
        f"{report['method']}: reference controls",
        caption=caption(report),
    )
    titles = [title for title, _ in shown.values()]
    titles.insert(1, "minus black")
    table.add_column("reference")
    for title in (*titles, "n"):
        table.add_column(title, justify="right")
    for name, values in report["methods"].items():
        cells = [cell(values[m], digits) for m, (_, digits) in shown.items()]
        cells.insert(1, _difference(report, name))
        table.add_row(_label(report, name), *cells, count(report, values))
    if 1 < report["n_subjects"] < MIN_SUBJECTS:
        for subject, scores in report["per_subject"].items():
            table.add_section()
            table.add_row(Text(subject))
            n = str(sum(r["subject"] == subject for r in report["per_slice"]))
            black = scores["black"]["psnr"]
            for name, means in scores.items():
                cells = [number(means[m], digits) for m, (_, digits) in shown.items()]
                known = None not in (means["psnr"], black)
                gain = f"{means['psnr'] - black:+.2f}" if known else "not finite"
                cells.insert(1, "" if name == "black" else gain)
                table.add_row(f"  {name}", *cells, n)
    return table


def _label(report: dict[str, Any], name: str) -> Text:
    if name == BASELINE:
        return Text(f"{name}\nno network")
    about = report["references"][name]
    same = about["same_as"] and report["uses_reference"]
    words = f"the same as {about['same_as']}" if same else about["what"]
    if how := about.get("contrast_by"):
        words += f", {how}"
    if name == "pair":
        words = f"track {report['protocol']['track']}"
    title = f"{name}: NO RESULT" if name == "self" else name
    return Text(f"{title}\n{words}")


def _difference(report: dict[str, Any], name: str) -> str:
    if name == "black":
        return ""
    if name != BASELINE and not report["uses_reference"]:
        return "not used"
    s = report["minus_black"][name]["psnr"]
    text = cell(s, COLUMNS["psnr"][1])
    return text if s["mean"] is None or s["mean"] < 0 else f"+{text}"


def describe_controls(report: dict[str, Any]) -> dict[str, str]:
    """What stands under the table: title -> one line."""
    lines = {}
    method = report["method"]
    if not report["uses_reference"]:
        lines["reference"] = f"NOT USED: {method} gives one output for every reference"
    if report["identity"]:
        for name, words in (
            ("identity", "given the target, the match is its own place at"),
            ("near", "or a place beside its own at"),
        ):
            shares = [s["mean"] for s in report["identity"][name].values()]
            text = ", ".join(
                "no foreground" if s is None else f"{100 * s:.1f} %" for s in shares
            )
            lines[name] = f"{words} {text} (groups 1 to {len(shares)})"
    elif report["uses_reference"]:
        lines["identity"] = f"{method} gives no index map, so no share"
    if report["calibration"]:
        lines["confidence"] = describe_calibration(report["calibration"])
    for name, reason in report["left_out"].items():
        lines[f"no {name}"] = f"left out: {reason}"
    return lines


def describe_calibration(calibration: dict[str, Any]) -> str:
    """Spearman's correlations of the confidence in one line."""
    error, gain = (calibration[k]["mean"] for k in ("rank_error", "rank_gain"))
    if error is None or gain is None:
        return "too little foreground, or C is constant: no correlation"
    return (
        f"Spearman of C with the error {error:+.2f} (below 0: a higher C, a smaller "
        f"error), with the gain over black {gain:+.2f}"
    )
