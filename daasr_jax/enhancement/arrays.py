"""`daasr_jax.enhance`: the network on arrays."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from daasr_jax.enhancement.engine import Engine
from daasr_jax.errors import DataError
from daasr_jax.released import Weights, load
from daasr_jax.scans import normalise

LEAST, MOST = 20, 1024  # pixels along a side of a slice


@dataclasses.dataclass(frozen=True)
class Enhanced:
    """What `enhance` returns; without the axis S where one slice was given.

    Attributes:
        sr: (S, sH, sW) float32, in the unit of the input.
        confidence: (S, H, W) float32, C in [-1, 1]: how well what was found in the
            reference agrees with the slice. None of a network without search.
        index: (S, H, W) int32, P: the place in the reference from which a pixel of the
            input took its detail, row-major in the cells of s x s pixels of the
            reference, padded or cropped to (sH, sW); those of several references one
            after the other. None likewise.
    """

    sr: np.ndarray
    confidence: np.ndarray | None
    index: np.ndarray | None


def enhance(
    lr: np.ndarray,
    ref: np.ndarray | Sequence[np.ndarray] | None = None,
    weights: str | Path | Weights = "x4",
    *,
    memory: int | None = None,
    within: int = 0,
) -> Enhanced:
    """Super-resolves slices in their plane, with the help of a reference.

    All slices are one volume: they are divided by their common maximum, as in training,
    and the result is in their unit again.

    Args:
        lr: (H, W) or (S, H, W) real, 20 to 1024 pixels a side.
        ref: A sharper image of each slice, another contrast or time: as `lr`, but of
            about s times the size; what is missing or too much, half on either side, is
            padded with zeros or cropped. A list of such arrays is several references of
            each slice. None for none.
        weights: A name of `python -m daasr_jax.models --released`, a `.safetensors`
            file, or what `daasr_jax.released.load` returns.
        memory: Bytes that it may take; None for a half of what is free.
        within: A reference is searched so many pixels of the LR slice around each place
            alone, which is quicker where it is registered; 0 searches all of it.

    Raises:
        DataError: If an array is no image, blank, or of another size (E347, E361).
        CheckpointError: If there are no such weights (E420, E421).
        ResourceError: If a slice is too large for the memory.

    Example:
        >>> import daasr_jax
        >>> made = daasr_jax.enhance(t2, ref=t1, weights="x4")  # doctest: +SKIP
        >>> made.sr.shape  # doctest: +SKIP
        (40, 1024, 1024)
    """
    if not isinstance(weights, Weights):
        weights = load(weights)
    scale = weights.about["scale"]
    lr = np.asarray(lr)
    one = lr.ndim == 2
    slices = lr[None] if one else lr
    _check(slices, "lr")
    images, restore = normalise(slices, "lr")
    wanted = tuple(scale * n for n in images.shape[1:])
    given: list[np.ndarray] = []
    if ref is not None:
        for i, each in enumerate(ref if isinstance(ref, list | tuple) else [ref]):
            name = f"ref {i}" if isinstance(ref, list | tuple) else "ref"
            each = np.asarray(each)
            each = each[None] if each.ndim == 2 else each
            _check(each, name, slices=len(images))
            given.append(fitted(normalise(each, name)[0], wanted))
    engine = Engine(weights, memory, within)
    made = engine(images, np.stack(given, axis=1) if given else None)
    sr, found = restore(made.sr), (made.confidence, made.index)
    if one:
        return Enhanced(sr[0], *(None if x is None else x[0] for x in found))
    return Enhanced(sr, *found)


def fitted(images: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
    """Images `(..., H, W)` padded with zeros or cropped to a size, about the centre."""
    for axis, wanted in zip((-2, -1), size, strict=True):
        have = images.shape[axis]
        before = abs(wanted - have) // 2
        if have > wanted:
            images = np.take(images, range(before, before + wanted), axis)
        elif have < wanted:
            padding = [(0, 0)] * images.ndim
            padding[axis] = (before, wanted - have - before)
            images = np.pad(images, padding)
    return images


def _check(images: np.ndarray, name: str, slices: int | None = None) -> None:
    """Asks for slices of numbers.

    Raises:
        DataError: Else (E361).
    """
    said = ""
    if images.ndim != 3 or 0 in images.shape:
        said = f"has the shape {images.shape}, wanted (H, W) or (S, H, W)"
    elif images.dtype.kind not in "uifb":
        said = f"has the type {images.dtype}, wanted real numbers"
    elif not np.isfinite(images).all():
        said = "holds values that are not finite"
    elif slices is not None and len(images) != slices:
        said = f"has {len(images)} slices, wanted {slices} as in lr"
    elif slices is None and not (
        min(images.shape[1:]) >= LEAST and max(images.shape[1:]) <= MOST
    ):
        said = f"has slices of {images.shape[1:]}, wanted {LEAST} to {MOST} a side"
    if said:
        raise DataError("E361", f"{name} {said}.")
