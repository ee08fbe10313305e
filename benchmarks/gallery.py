"""One picture of several runs: the middle slice of every volume of a split.

    python -m benchmarks.gallery --data DIR --out docs/results/NAME.png \
        [--split test] [--crop 96] LABEL=RUN [LABEL=RUN ...]

Each row is a slice: HR with the window marked, then the window in HR, bicubic and every
run, with PSNR and LPIPS (alex) of the whole slice below. The slice in the middle of
each volume and the window in the middle of the slice are taken, so nothing is chosen
by eye. References are those of the evaluation.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from daasr_jax import data
from daasr_jax.evaluation import predict as evaluation
from daasr_jax.experiment import checks, parts, saved_run
from daasr_jax.metrics.lpips import load_lpips


def middle_slices(table: data.SliceTable) -> list[int]:
    """Position of the slice in the middle of each volume."""
    chosen = []
    for volume in dict.fromkeys(table.volumes.tolist()):
        rows = np.flatnonzero(table.volumes == volume)
        chosen.append(int(rows[len(rows) // 2]))
    return chosen


def predictions(
    folder: Path, root: str, split: str, lpips: dict[str, Any]
) -> tuple[data.SliceTable, list[evaluation.Prediction]]:
    run = saved_run.load_run(folder)
    config = run.config
    config.data.root = root
    table = data.prepare(parts.data_settings(config)).splits[split]
    predict = evaluation.make_predict(
        parts.make_model(config),
        scale=config.scale,
        border=checks.metric_border(config),
        method="run",
        degradation=config.degradation,
        lpips=lpips,
    )
    rows = evaluation.run_split(
        predict,
        run.variables,
        table,
        parts.make_pairing(config, table),
        scale=config.scale,
        positions=middle_slices(table),
    )
    return table, list(rows)


def draw(
    table: data.SliceTable,
    columns: dict[str, list[evaluation.Prediction]],
    crop: int,
) -> Figure:
    first = next(iter(columns.values()))
    n = len(columns) + 3
    figure = Figure(figsize=(2.3 * n, 2.75 * len(first)), layout="constrained")
    axes = figure.subplots(len(first), n, squeeze=False)
    for row, shown in enumerate(first):
        hr = shown.images["hr"]
        y, x = ((side - crop) // 2 for side in hr.shape)
        window = np.s_[y : y + crop, x : x + crop]
        grey = np.percentile(hr[window], (0.2, 99.8))  # of all images of the row
        name = table.keys[shown.position].rsplit("/", 1)[-1]
        images = [(name, hr, None), ("HR", hr[window], None)]
        images.append(
            ("bicubic", shown.images["bicubic"][window], shown.scores["bicubic"])
        )
        for label, rows in columns.items():
            p = rows[row]
            images.append((label, p.images["sr"][window], p.scores["run"]))
        for axis, (label, image, scores) in zip(axes[row], images, strict=True):
            axis.imshow(image, "gray", vmin=grey[0], vmax=grey[1])
            if scores:
                label += f"\n{scores['psnr']:.2f} dB, LPIPS {scores['lpips_alex']:.3f}"
            axis.set_title(label, fontsize=8)
            axis.set_axis_off()
        axes[row, 0].add_patch(Rectangle((x, y), crop, crop, fill=False, color="gold"))
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, help="data root")
    parser.add_argument("--out", required=True, help="PNG file")
    parser.add_argument("--split", default="test")
    parser.add_argument("--crop", type=int, default=96, help="side of the window")
    parser.add_argument("runs", nargs="+", metavar="LABEL=RUN")
    args = parser.parse_args()
    lpips = {"alex": load_lpips("alex")}
    columns, table = {}, None
    for argument in args.runs:
        label, _, folder = argument.partition("=")
        table, columns[label] = predictions(Path(folder), args.data, args.split, lpips)
    Path(args.out).parent.mkdir(parents=True, exist_ok=True)
    draw(table, columns, args.crop).savefig(args.out, dpi=85)


if __name__ == "__main__":
    main()
