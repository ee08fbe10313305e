"""Running a model over a split: every slice once, whole, with its fixed reference."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array
from rich.progress import track

from daasr_jax.data import Pairing, SliceTable, crop_to_multiple
from daasr_jax.metrics.lpips import lpips_many
from daasr_jax.metrics.psnr import psnr
from daasr_jax.metrics.ssim import ssim
from daasr_jax.models.outputs import SuperResolutionModel
from daasr_jax.resampling import downsample, upsample

METRICS = ("psnr", "ssim", "ssim_uniform7")  # always measured
BASELINE = "bicubic"


@dataclasses.dataclass(frozen=True)
class Prediction:
    """One slice, all arrays `(h, w)`: what went in, what came out, how well.

    Attributes:
        position: Index of the slice in its table.
        reference: Index of the reference.
        signal: Mean intensity of the HR slice.
        images: `lr`, `ref`, `hr`, `bicubic` and `sr`; with a SAT also the last group's
            `index` (int32) and `confidence`.
        scores: Method -> metric -> value.
    """

    position: int
    reference: int
    signal: float
    images: dict[str, np.ndarray]
    scores: dict[str, dict[str, float]]


def make_predict(
    model: SuperResolutionModel,
    *,
    scale: int,
    border: int,
    method: str,
    lpips: Mapping[str, Any] | None = None,
) -> Callable[
    [Any, Array, Array], tuple[dict[str, Array], dict[str, dict[str, Array]]]
]:
    """The jitted function behind every reported number.

    Args:
        model: The network.
        scale: s; the LR image is made from `hr` on the device.
        border: Pixels cut off every side before the metrics.
        method: Name of the model in the scores.
        lpips: Net -> its `load_lpips`: measured too, as `lpips_<net>`, of 2x - 1.

    Returns:
        `predict(variables, hr, ref) -> (images, scores)`, `hr` and `ref`
        `(B, H, W, 1)` float32 in [0, 1]. Images are not clipped nor rounded before
        the metrics; MAX is 1, the maximum of the volume.
    """

    def measure(estimates: dict[str, Array], hr: Array, weights: Mapping[str, Any]):
        inner = slice(border, -border or None)
        y = hr[:, inner, inner]
        cut = {name: x[:, inner, inner] for name, x in estimates.items()}
        scores = {
            name: {
                "psnr": psnr(x, y),
                "ssim": ssim(x, y, window="gaussian11"),
                "ssim_uniform7": ssim(x, y, window="uniform7"),
            }
            for name, x in cut.items()
        }
        for net, arrays in weights.items():
            stack = 2 * jnp.stack(list(cut.values())) - 1
            values = lpips_many(stack, 2 * y - 1, arrays, net=net)
            for name, value in zip(cut, values, strict=True):
                scores[name][f"lpips_{net}"] = value
        return scores

    @jax.jit
    def predict(weights: Mapping[str, Any], variables: Any, hr: Array, ref: Array):
        lr = downsample(hr, scale)
        outputs = model.apply(variables, lr, ref, train=False)
        bicubic = upsample(lr, scale)
        images = {"lr": lr, "ref": ref, "hr": hr, "bicubic": bicubic, "sr": outputs.sr}
        if "index" in outputs.aux:
            images["index"] = outputs.aux["index"][-1][..., None]
            images["confidence"] = outputs.aux["confidence"][-1]
        estimates = {BASELINE: bicubic, method: outputs.sr}
        return images, measure(estimates, hr, weights)

    return functools.partial(predict, lpips or {})


def run_split(
    predict: Callable[..., Any],
    variables: Any,
    table: SliceTable,
    pairing: Pairing,
    *,
    scale: int,
    positions: Sequence[int] | None = None,
    show_progress: bool = False,
) -> Iterator[Prediction]:
    """Predicts every slice of a split, in its order.

    Args:
        predict: From `make_predict`.
        variables: Of the model.
        table: The split.
        pairing: The reference of each slice.
        scale: s; slices are cut to a multiple of it (255 at x3).
        positions: Slices to predict instead of all.
        show_progress: Draw a bar with the remaining time.
    """
    chosen: Iterable[int] = range(len(table)) if positions is None else positions
    if show_progress:
        chosen = track(list(chosen), description=f"evaluating {table.name}")
    for i in chosen:
        j = int(pairing.references[i])
        hr, ref = (crop_to_multiple(table.image(k), scale)[None] for k in (i, j))
        images, scores = jax.device_get(
            predict(variables, jnp.asarray(hr), jnp.asarray(ref))
        )
        yield Prediction(
            position=i,
            reference=j,
            signal=float(hr.mean()),
            images={name: x[0, ..., 0] for name, x in images.items()},
            scores={
                method: {metric: float(v[0]) for metric, v in values.items()}
                for method, values in scores.items()
            },
        )


def mean_scores(predictions: Iterator[Prediction], method: str) -> dict[str, float]:
    """Means over slices for validation: the method's, and its gain over bicubic."""
    rows = [p.scores for p in predictions]
    scores = {m: float(np.mean([r[method][m] for r in rows])) for m in METRICS}
    base = float(np.mean([r[BASELINE]["psnr"] for r in rows]))
    return scores | {"gain_over_bicubic": scores["psnr"] - base}


def without_images(prediction: Prediction) -> Prediction:
    """The scores alone, so that a whole split fits in memory."""
    return dataclasses.replace(prediction, images={})
