"""The panel picture of one slice: inputs, outputs, errors, source of the match."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

from daasr_jax.evaluation.predict import BASELINE, Prediction

matplotlib.use("Agg")
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator


def typical(predictions: Sequence[Prediction], method: str) -> Prediction:
    """The slice of median PSNR among the half with most signal, neither best nor worst.

    Almost empty slices at the ends of a volume are passed over. A PSNR that is NaN
    counts as the worst.
    """
    by_signal = sorted(predictions, key=lambda p: p.signal)
    full = by_signal[len(by_signal) // 2 :]
    ranked = sorted(full, key=lambda p: np.nan_to_num(p.scores[method]["psnr"], nan=-1))
    return ranked[len(ranked) // 2]


def draw_panel(
    prediction: Prediction,
    *,
    method: str,
    scale: int,
    titles: tuple[str, str],
    path: str | Path,
) -> None:
    """Draws LR, reference, bicubic, SR, HR, error maps, index map P, confidence map C.

    All images share one grey scale, both error maps one colour scale. The index map is
    coloured by the place of the match in the reference; the key beside it shows the
    reference tinted with the same colours.

    Args:
        prediction: The slice.
        method: Name of the model.
        scale: s.
        titles: Names of the slice and of its reference.
        path: PNG file to write.
    """
    images = prediction.images
    figure = Figure(figsize=(15, 6.6), layout="constrained")
    axes = figure.subplots(2, 5)
    top = float(np.percentile(images["hr"], 99.8)) or 1.0
    scores = prediction.scores

    def label(name: str) -> str:
        s = scores[name]
        return f"{s['psnr']:.2f} dB / {s['ssim']:.4f}"

    greys = (
        (f"LR (x{scale})\n{'x'.join(map(str, images['lr'].shape))}", "lr"),
        (f"reference\n{titles[1]}", "ref"),
        (f"bicubic\n{label(BASELINE)}", "bicubic"),
        (f"SR ({method})\n{label(method)}", "sr"),
        (f"HR\n{titles[0]}", "hr"),
    )
    for axis, (title, name) in zip(axes[0], greys, strict=True):
        axis.imshow(
            images[name], cmap="gray", vmin=0, vmax=top, interpolation="nearest"
        )
        axis.set_title(title, fontsize=9)
    errors = {name: np.abs(images[name] - images["hr"]) for name in ("bicubic", "sr")}
    limit = float(np.percentile(errors["bicubic"], 99.5)) or 1.0
    shown: Any = None
    for axis, (name, error) in zip(axes[1], errors.items(), strict=False):
        shown = axis.imshow(error, cmap="magma", vmin=0, vmax=limit)
        axis.set_title(f"|{name} - HR|, mean {error.mean():.4f} of 1", fontsize=9)
    colour_bar(figure, axes[1, 1], shown, "white")
    if "index" in images:
        _draw_match(figure, axes[1, 2:], images)
    else:
        axes[1, 3].text(0.5, 0.5, "no search:\nno P and C", ha="center", va="center")
    for axis in axes.flat:
        axis.set_axis_off()
    figure.savefig(path, dpi=120)


def _draw_match(figure: Figure, axes: Sequence[Any], images: dict[str, Any]) -> None:
    """Index map P, its colour key on the reference, and confidence map C."""
    index, ref = images["index"], images["ref"]
    cell = images["hr"].shape[0] // index.shape[0]
    rows, columns = ref.shape[0] // cell, ref.shape[1] // cell
    index = index % (rows * columns)  # where further copies were searched too
    axes[0].imshow(_colours(index // columns / rows, index % columns / columns))
    axes[0].set_title("index map P: place of the match", fontsize=9)
    y, x = np.mgrid[: ref.shape[0], : ref.shape[1]]
    key = _colours(y / ref.shape[0], x / ref.shape[1])
    grey = np.clip(ref / max(float(ref.max()), 1e-6), 0, 1)[..., None]
    axes[1].imshow(key * (0.45 + 0.55 * np.sqrt(grey)))
    axes[1].set_title("key: reference in the colours of P", fontsize=9)
    shown = axes[2].imshow(images["confidence"], cmap="cividis", vmin=0, vmax=1)
    axes[2].set_title(
        f"confidence map C, mean {images['confidence'].mean():.3f}", fontsize=9
    )
    colour_bar(figure, axes[2], shown, "black")


def colour_bar(figure: Figure, axis: Any, shown: Any, colour: str) -> None:
    """A colour bar inside the axis, so that the panels keep one size."""
    place = axis.inset_axes([0.03, 0.05, 0.03, 0.3])
    bar = figure.colorbar(shown, cax=place)
    bar.ax.tick_params(labelsize=7, colors=colour)
    bar.ax.yaxis.set_major_locator(MaxNLocator(3))


def _colours(y: np.ndarray, x: np.ndarray) -> np.ndarray:
    """A colour for each place in the unit square: corners red, yellow, blue, green."""
    corners = np.array(
        [[[0.9, 0.2, 0.2], [0.95, 0.85, 0.2]], [[0.2, 0.3, 0.9], [0.2, 0.8, 0.5]]]
    )
    y, x = y[..., None], x[..., None]
    upper = (1 - x) * corners[0, 0] + x * corners[0, 1]
    lower = (1 - x) * corners[1, 0] + x * corners[1, 1]
    return (1 - y) * upper + y * lower
