"""The picture of reference controls: one slice under each, scores and calibration."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from daasr_jax.evaluation.controls_report import describe_calibration
from daasr_jax.evaluation.controls_scores import FOREGROUND
from daasr_jax.evaluation.panel import colour_bar
from daasr_jax.evaluation.predict import BASELINE, Prediction

_SMALL = 9
_BARS = {"pair": "#1a237e", "black": "#424242", "self": "#b0bec5"}  # else:
_BAR = "#5c6bc0"


def draw_controls_panel(
    rows: Mapping[str, Prediction],
    report: dict[str, Any],
    *,
    titles: tuple[str, str],
    path: str | Path,
) -> None:
    """Draws references, outputs and errors of a slice, and the scores of the split.

    A column is a control; the first has the target and the error of bicubic.
    Output and error show half the slice, around its tissue. All images share one grey
    scale, all error maps one colour scale. A control that is the same as another has
    no column of its own.

    Args:
        rows: Control -> prediction of the slice.
        report: From `make_controls_report`.
        titles: Names of the slice and of its reference.
        path: PNG file to write.
    """
    method = report["method"]
    same = {n: r["same_as"] for n, r in report["references"].items() if r["same_as"]}
    shown = [name for name in rows if name not in same]
    figure = Figure(
        figsize=(max(12.0, 2.35 * (len(shown) + 1)), 11.6), layout="constrained"
    )
    halves: Any = figure.subfigures(2, 1, height_ratios=(7.4, 4.2))
    upper, lower = halves
    upper.suptitle(
        f"{titles[0]}: {method} x{report['scale']}, the same weights with other "
        f"references (pair: {titles[1]})",
        fontsize=11,
    )
    axes = upper.subplots(3, len(shown) + 1, squeeze=False)
    first = rows["pair"].images
    window = window_of_tissue(first["hr"])
    top = float(np.percentile(first["hr"], 99.8)) or 1.0
    grey = {"cmap": "gray", "vmin": 0, "vmax": top, "interpolation": "nearest"}
    error = np.abs(first["bicubic"] - first["hr"])[window]
    limit = float(np.percentile(error, 99.5)) or 1.0

    def column(
        place: int, title: str, whole: np.ndarray, part: str, sr: np.ndarray, score: Any
    ) -> Any:
        enlarged = first["hr"] if place == 0 else sr
        for axis, image in zip(axes[:2, place], (whole, enlarged[window]), strict=True):
            axis.imshow(image, **grey)
        words = f"error{part}\n{score['psnr']:.2f} dB / {score['ssim']:.4f}"
        titles = (title, "output" if place else "target, enlarged", words)
        for axis, text in zip(axes[:, place], titles, strict=True):
            axis.set_title(text, fontsize=_SMALL)
            axis.set_axis_off()
        error = np.abs(sr - first["hr"])[window]
        return axes[2, place].imshow(error, cmap="magma", vmin=0, vmax=limit)

    score = rows["pair"].scores[BASELINE]
    drawn = column(
        0, "target (HR)", first["hr"], f" of {BASELINE}", first["bicubic"], score
    )
    colour_bar(upper, axes[2, 0], drawn, "white")
    for place, name in enumerate(shown, 1):
        twins = [n for n, other in same.items() if other == name]
        title = " = ".join([name, *twins]) if len(shown) > 1 else "any reference"
        title += ": upper bound,\nno result" if name == "self" else ""
        images, score = rows[name].images, rows[name].scores[method]
        column(place, title, images["ref"], "", images["sr"], score)
    left, right = lower.subfigures(1, 2, width_ratios=(1.25, 1))
    _draw_scores(left.subplots(), report)
    _draw_calibration(right, report)
    figure.savefig(path, dpi=110)


def window_of_tissue(image: np.ndarray) -> tuple[slice, slice]:
    """The window of half the height and width around the centre of the tissue.

    Args:
        image: (H, W).
    """
    found = []
    tissue = np.nonzero(image > FOREGROUND)
    for places, size in zip(tissue, image.shape, strict=True):
        centre = round(float(places.mean())) if places.size else size // 2
        begin = min(max(centre - size // 4, 0), size - size // 2)
        found.append(slice(begin, begin + size // 2))
    return found[0], found[1]


def _draw_scores(axis: Any, report: dict[str, Any]) -> None:
    """PSNR of every control over the split, with the gain over black."""
    means = {n: m["psnr"]["mean"] for n, m in report["methods"].items()}
    means = {name: mean for name, mean in means.items() if mean is not None}
    tops = []
    for place, (name, mean) in enumerate(means.items()):
        axis.bar(place, mean, color=_BARS.get(name, _BAR))
        gain = report["minus_black"].get(name, {"psnr": {"mean": None}})["psnr"]["mean"]
        text = f"{mean:.2f}" + ("" if gain is None else f"\n{gain:+.2f}")
        interval = report["methods"][name]["psnr"]["ci95"]
        if interval:
            axis.plot([place, place], interval, color="black", linewidth=2)
        tops.append(interval[1] if interval else mean)
        axis.annotate(
            text, (place, tops[-1]), (0, 3), textcoords="offset points", ha="center",
            fontsize=_SMALL,
        )  # fmt: skip
    axis.set_xticks(range(len(means)), list(means), fontsize=_SMALL)
    if means:
        low, high = min(means.values()), max(tops)
        room = max(high - low, 0.5)
        axis.set_ylim(low - 0.4 * room, high + 0.35 * room)
    axis.set_ylabel("PSNR (dB), not from 0")
    used = "" if report["uses_reference"] else "; THE REFERENCE IS NOT USED"
    axis.set_title(
        f"{report['split']}, {report['n_slices']} slices: mean PSNR, below it the gain "
        f"over black{used}",
        fontsize=_SMALL + 1,
    )
    axis.spines[["top", "right"]].set_visible(False)


def _draw_calibration(figure: Any, report: dict[str, Any]) -> None:
    """Error and gain over black in each bin of the confidence."""
    bins = (report["calibration"] or {}).get("bins", [])
    bins = [b for b in bins if None not in b.values()]
    if not bins:
        axis = figure.subplots()
        axis.text(0.5, 0.5, "no confidence map", ha="center", va="center")
        axis.set_axis_off()
        return
    words = describe_calibration(report["calibration"])
    figure.suptitle(words.replace(", with", ",\nwith"), fontsize=_SMALL + 1)
    axes = figure.subplots(2, 1, sharex=True)
    for axis, name, words, colour in zip(
        axes,
        ("error", "gain"),
        ("|sr - hr|", "gain over black"),
        ("#b71c1c", "#1a237e"),
        strict=True,
    ):
        axis.plot(
            [b["confidence"] for b in bins], [b[name] for b in bins], "o-", color=colour
        )
        axis.set_ylabel(words, fontsize=_SMALL)
        axis.spines[["top", "right"]].set_visible(False)
    axes[1].axhline(0, color="black", linewidth=0.8)
    axes[1].set_xlabel(
        "confidence C of the pair: means of tenths of the foreground", fontsize=_SMALL
    )
