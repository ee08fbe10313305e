"""Pictures of a cell: the same slices in every cell, with and without skull."""

from __future__ import annotations

import zipfile
from pathlib import Path

import jax
import numpy as np

from daasr_jax import data
from daasr_jax.data.masks import Masks
from daasr_jax.data.references import with_reference
from daasr_jax.errors import DataError
from daasr_jax.evaluation import predict as evaluation
from daasr_jax.experiment import parts
from daasr_jax.experiment.opening import Opened

PICTURES = "pictures.npz"
SHOWN = 4  # slices of every cell, beside the worst and best


def inner_slices(table: data.SliceTable, most: int = SHOWN) -> list[int]:
    """Positions of slices that lie in the middle halves of their volumes.

    They are evenly spaced among those, in the order of the split. So none is the neck
    or the vertex of a head.

    Args:
        table: The split.
        most: How many, at most.
    """
    order = np.lexsort((table.index, table.volumes))
    _, starts, counts = np.unique(
        table.volumes[order], return_index=True, return_counts=True
    )
    part = np.empty(len(table))
    rank = np.arange(len(table)) - np.repeat(starts, counts)
    part[order] = (rank + 0.5) / np.repeat(counts, counts)
    inner = np.flatnonzero((part >= 0.25) & (part <= 0.75))
    n = min(most, len(inner))
    return [int(inner[(2 * k + 1) * len(inner) // (2 * n)]) for k in range(n)]


def pictured(table: data.SliceTable, aligned: str) -> list[int]:
    """Positions of the slices that are pictured.

    Args:
        table: The split.
        aligned: The slices are those that have a reference on this aligned track,
            where any has; empty for all.
    """
    try:
        part = with_reference(table, aligned=aligned) if aligned else table
    except DataError:
        part = table
    position = {place: i for i, place in enumerate(table.places.tolist())}
    return [position[int(part.places[i])] for i in inner_slices(part)]


def keep_pictures(
    run: Opened,
    path: Path,
    *,
    aligned: str,
    extremes: list[int],
    masks: str,
) -> None:
    """Writes images of some slices, the same in every cell, then the worst and best.

    Args:
        run: The run and its split.
        path: File.
        aligned: See `pictured`.
        extremes: Positions of the worst and the best slice.
        masks: Folder of masks; empty for none.

    Raises:
        DataError: If a mask cannot be used (E364, E365).
    """
    positions = pictured(run.table, aligned)
    every = [*positions, *extremes]
    shown = list(
        evaluation.run_split(
            run.predict,
            run.variables,
            run.table,
            run.pairing,
            scale=run.config.scale,
            positions=every,
        )
    )
    arrays: dict[str, np.ndarray] = {
        "keys": np.array([run.label(p) for p in every]),
        "references": np.array([run.label(s.reference) for s in shown]),
        "psnr": np.array([s.scores[run.method]["psnr"] for s in shown]),
        "psnr_bicubic": np.array([s.scores["bicubic"]["psnr"] for s in shown]),
    }
    for name in ("lr", "ref", "hr", "bicubic", "sr", "confidence", "index"):
        if name in shown[0].images:
            stack = np.stack([s.images[name] for s in shown])
            exact = name == "index"
            arrays[name] = stack if exact else stack.astype(np.float16)
    if masks:
        arrays |= _stripped(run, positions, Path(masks))
    with path.with_suffix(".part.npz").open("wb") as file:
        np.savez_compressed(file, **arrays)  # pyright: ignore[reportArgumentType]
    path.with_suffix(".part.npz").replace(path)


def is_stripped(path: Path) -> bool:
    """Whether the pictures of a cell have some without skull."""
    try:
        with np.load(path) as stored:
            return "stripped_hr" in stored
    except (OSError, ValueError, zipfile.BadZipFile):
        return False


def _stripped(run: Opened, positions: list[int], folder: Path) -> dict[str, np.ndarray]:
    """The same slices without skull: target and reference times their masks."""
    settings = parts.data_settings(run.config)
    masks = Masks(folder, data.prepare(settings, check=False), settings)
    table, scale = run.table, run.config.scale

    def masked(i: int, image: np.ndarray) -> np.ndarray:
        own = masks.of_slice(str(table.volumes[i]), int(table.index[i]))
        return data.crop_to_multiple(image * own, scale)[None]

    found: dict[str, list[np.ndarray]] = {"hr": [], "bicubic": [], "sr": []}
    for i in positions:
        k = int(run.pairing.references[i])
        (reference,) = evaluation.references(table, run.pairing, i)[:1]
        volumes = str(table.volumes[i]), str(table.volumes[k])
        # Another contrast may be resampled to the target's grid, where its mask fits.
        at_target = run.pairing.of_contrasts and volumes in table.companions
        hr, ref = masked(i, table.image(i)), masked(i if at_target else k, reference)
        at_once = run.predict.at_once
        images, _ = jax.device_get(
            run.predict(run.variables, *(np.repeat(x, at_once, 0) for x in (hr, ref)))
        )
        for name in found:
            found[name].append(images[name][0, ..., 0])
    return {f"stripped_{k}": np.stack(v).astype(np.float16) for k, v in found.items()}
