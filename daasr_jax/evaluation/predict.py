"""Running a model over a split: every slice once, whole, with its fixed reference.

The slices are shared by all devices of all processes, one on a device at a time.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from jax.typing import ArrayLike
from jaxtyping import Array
from rich.progress import track

from daasr_jax.data import Pairing, SliceTable, crop_to_multiple
from daasr_jax.evaluation.statistics import compared, finite_mean
from daasr_jax.metrics.consistency import consistency
from daasr_jax.metrics.lpips import lpips_many
from daasr_jax.metrics.psnr import psnr
from daasr_jax.metrics.ssim import ssim
from daasr_jax.models.outputs import SuperResolutionModel
from daasr_jax.resampling import degrade, upsample

METRICS = ("psnr", "ssim", "ssim_uniform7", "consistency")  # always measured
BASELINE = "bicubic"


@dataclasses.dataclass(frozen=True)
class Prediction:
    """One slice, all arrays `(h, w)`: what went in, what came out, how well.

    Attributes:
        position: Index of the slice in its table.
        reference: Index of the reference, the first of several.
        signal: Mean intensity of the HR slice.
        images: `lr`, `ref`, `hr`, `bicubic` and `sr`; with a SAT also the last group's
            `index` (int32) and `confidence`, and `indices` (h, w, G) of all groups.
            Several references lie below one another in `ref`, as `index` counts them.
        scores: Method -> metric -> value.
    """

    position: int
    reference: int
    signal: float
    images: dict[str, np.ndarray]
    scores: dict[str, dict[str, float]]


@dataclasses.dataclass(frozen=True)
class Predict:
    """`predict(variables, hr, ref) -> (images, scores)`, see `make_predict`.

    Attributes:
        function: That, jitted.
        at_once: Slices of a call: a multiple of this.
    """

    function: Callable[..., tuple[dict[str, Array], dict[str, dict[str, Array]]]]
    at_once: int

    def __call__(self, variables: Any, hr: ArrayLike, ref: ArrayLike) -> Any:
        """See `make_predict`."""
        return self.function(variables, hr, ref)


def make_predict(
    model: SuperResolutionModel,
    *,
    scale: int,
    border: int,
    method: str,
    degradation: str = "bicubic",
    lpips: Mapping[str, Any] | None = None,
    mesh: Mesh | None = None,
) -> Predict:
    """The jitted function behind every reported number.

    Args:
        model: The network.
        scale: s; the LR image is made from `hr` on the device.
        border: Pixels cut off every side before the metrics.
        method: Name of the model in the scores.
        degradation: How the LR image is made, see `resampling.degrade`.
        lpips: Net -> its `load_lpips`: measured too, as `lpips_<net>`, of 2x - 1.
        mesh: Devices of this process that share a call, each with a part of the
            slices; by default one device has all.

    Returns:
        `predict(variables, hr, ref) -> (images, scores)`, `hr` and `ref`
        `(B, H, W, 1)` float32 in [0, 1], `ref` of several references `(B, r, H, W,
        1)`. Images are not clipped nor rounded before the metrics; MAX is 1, the
        maximum of the volume.
    """

    def measure(
        estimates: dict[str, Array], lr: Array, hr: Array, weights: Mapping[str, Any]
    ):
        inner = slice(border, -border or None)
        y = hr[:, inner, inner]
        cut = {name: x[:, inner, inner] for name, x in estimates.items()}
        scores = {
            name: {
                "psnr": psnr(x, y),
                "ssim": ssim(x, y, window="gaussian11"),
                "ssim_uniform7": ssim(x, y, window="uniform7"),
                "consistency": consistency(
                    estimates[name], lr, degradation=degradation
                ),
            }
            for name, x in cut.items()
        }
        for net, arrays in weights.items():
            stack = 2 * jnp.stack(list(cut.values())) - 1
            values = lpips_many(stack, 2 * y - 1, arrays, net=net)
            for name, value in zip(cut, values, strict=True):
                scores[name][f"lpips_{net}"] = value
        return scores

    def predict(weights: Mapping[str, Any], variables: Any, hr: Array, ref: Array):
        lr = degrade(hr, scale, degradation=degradation)
        outputs = model.apply(variables, lr, ref, train=False)
        bicubic = upsample(lr, scale)
        images = {"lr": lr, "ref": ref, "hr": hr, "bicubic": bicubic, "sr": outputs.sr}
        if {"index", "confidence"} <= outputs.aux.keys():
            indices = jnp.moveaxis(outputs.aux["index"], 0, -1)
            images["indices"], images["index"] = indices[..., None], indices[..., -1:]
            images["confidence"] = outputs.aux["confidence"][-1]
        estimates = {BASELINE: bicubic, method: outputs.sr}
        return images, measure(estimates, lr, hr, weights)

    if mesh is None:
        return Predict(functools.partial(jax.jit(predict), lpips or {}), 1)
    own = P(mesh.axis_names)
    shared = jax.shard_map(
        predict,
        mesh=mesh,
        in_specs=(P(), P(), own, own),
        out_specs=own,
        check_vma=False,
    )
    return Predict(functools.partial(jax.jit(shared), lpips or {}), mesh.size)


def run_split(
    predict: Predict,
    variables: Any,
    table: SliceTable,
    pairing: Pairing,
    *,
    scale: int,
    positions: Sequence[int] | None = None,
    images: Callable[[int], list[np.ndarray]] | None = None,
    show_progress: bool = False,
) -> Iterator[Prediction]:
    """Predicts the slices of a split in their order: this process's share of them.

    A process that would have none, where there are more processes than slices,
    predicts the first. `of_all_processes` puts the shares together.

    Args:
        predict: From `make_predict`.
        variables: Of the model.
        table: The split.
        pairing: The reference of each slice.
        scale: s; slices are cut to a multiple of it (255 at x3).
        positions: Slices to predict instead of all.
        images: Slice i -> its references instead of the pairing's, (size, size, 1)
            float32 each.
        show_progress: Draw a bar with the remaining time.
    """

    def example(i: int) -> tuple[np.ndarray, np.ndarray]:
        refs = images(i) if images else references(table, pairing, i)
        hr, *refs = (crop_to_multiple(x, scale) for x in (table.image(i), *refs))
        return hr, refs[0] if len(refs) == 1 else np.stack(refs)

    chosen = list(range(len(table)) if positions is None else positions)
    chosen = chosen[jax.process_index() :: jax.process_count()] or chosen[:1]
    begins: Iterable[int] = range(0, len(chosen), predict.at_once)
    if show_progress and jax.process_index() == 0:
        begins = track(list(begins), description=f"evaluating {table.name}")
    for begin in begins:
        part = chosen[begin : begin + predict.at_once]
        filled = part + part[-1:] * (predict.at_once - len(part))
        hr, ref = zip(*(example(i) for i in filled), strict=True)
        hr, ref = np.stack(hr), np.stack(ref)
        made, scores = jax.device_get(predict(variables, hr, ref))
        for n, i in enumerate(part):
            yield Prediction(
                position=i,
                reference=int(pairing.references[i]),
                signal=float(hr[n].mean()),
                images={
                    name: x[n, ..., 0].reshape(-1, x.shape[-2])
                    if name == "ref"
                    else x[n, ..., 0]
                    for name, x in made.items()
                },
                scores={
                    method: {metric: float(v[n]) for metric, v in values.items()}
                    for method, values in scores.items()
                },
            )


def references(table: SliceTable, pairing: Pairing, i: int) -> list[np.ndarray]:
    """The references of slice i, (size, size, 1) float32 each."""
    image = table.image
    if pairing.of_contrasts:
        image = functools.partial(table.other_contrast, i)
    return [image(k) for k in pairing.all_of(i)]


def of_all_processes(own: Iterable[Prediction], slices: int) -> list[Prediction]:
    """The scores of all processes, each slice once, in the order of the split.

    Args:
        own: Of this process, see `run_split`; every process makes the call.
        slices: Number of slices over all.
    """
    rows = [without_images(row) for row in own]
    if jax.process_count() == 1:
        return rows
    share = -(-slices // jax.process_count())
    rows += rows[-1:] * (share - len(rows))
    names = [(m, k) for m, values in rows[0].scores.items() for k in values]
    places = np.array([(r.position, r.reference) for r in rows], np.int32)
    values = np.array(
        [[r.signal, *(r.scores[m][k] for m, k in names)] for r in rows], np.float32
    )
    places, values = (
        x.reshape(-1, x.shape[-1])
        for x in multihost_utils.process_allgather((places, values))
    )
    found: dict[int, Prediction] = {}
    for (position, reference), (signal, *numbers) in zip(
        places.tolist(), values.tolist(), strict=True
    ):
        scores: dict[str, dict[str, float]] = {}
        for (method, metric), number in zip(names, numbers, strict=True):
            scores.setdefault(method, {})[metric] = number
        found[position] = Prediction(position, reference, signal, {}, scores)
    return [found[position] for position in sorted(found)]


def mean_scores(predictions: Iterable[Prediction], method: str) -> dict[str, float]:
    """Means over slices for validation: the method's, and its gain over bicubic.

    As in a report, slices of infinite PSNR are left out for both, and a value that is
    not finite makes the mean NaN, which is never the best.
    """
    rows = [p.scores for p in predictions]

    def column(name: str, metric: str) -> np.ndarray:
        return np.array([row[name][metric] for row in rows], np.float64)

    def mean(values: np.ndarray) -> float:
        found = finite_mean(values)
        return math.nan if found is None else found

    use = compared({name: column(name, "psnr") for name in (BASELINE, method)})
    metrics = rows[0][method] if rows else METRICS
    scores = {m: mean(column(method, m)[use]) for m in metrics}
    return scores | {
        "gain_over_bicubic": scores["psnr"] - mean(column(BASELINE, "psnr")[use])
    }


def without_images(prediction: Prediction) -> Prediction:
    """The scores alone, so that a whole split fits in memory."""
    return dataclasses.replace(prediction, images={})
