"""Another contrast on the grid of a volume, where the headers say how the two lie.

Two contrasts of one visit seldom share a grid. Their headers place both in the space of
the scanner, so the one is resampled at the voxels of the other. What comes out is kept
as prepared volumes are, see `store`. Its name is made from both contents, how the grids
lie to each other, and the preparation of the target.
"""

import functools
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np
from scipy import ndimage

from daasr_jax.data.locking import exclusive
from daasr_jax.data.progress import track
from daasr_jax.data.settings import DataSettings
from daasr_jax.data.slices import normalised, resized
from daasr_jax.data.sources.base import Source, Volume, log
from daasr_jax.data.splits import Splits
from daasr_jax.data.store import (
    Stored,
    StoredImages,
    check_disk,
    read_index,
    store_folder,
    verify,
    write_slices,
)
from daasr_jax.data.table import Companion, SliceRecord

# Raise it when the same volumes would give other companions.
_VERSION = 1
_ORDER = 3  # of the spline
_TO_SIGMA = 1 / np.sqrt(8 * np.log(2))  # from a full width at half maximum
_DIGITS = 6

Pairs = dict[tuple[str, str], tuple[Volume, Volume]]


def companion_pairs(splits: Splits) -> tuple[Pairs, int]:
    """The pairs of contrasts of one person and visit, in one split, that headers place.

    Returns:
        By the keys of target and other volume, both; and the number of pairs whose
        headers do not tell.
    """
    known: Pairs = {}
    unknown = 0
    for members in splits.values():
        of_subject: dict[str, list[Volume]] = {}
        for volume in members:
            of_subject.setdefault(volume.subject, []).append(volume)
        for volumes in of_subject.values():
            for target in volumes:
                for other in volumes:
                    if target.contrast == other.contrast:
                        continue
                    if target.study and target.study != other.study:
                        continue
                    if target.affine is None or other.affine is None:
                        unknown += 1
                    else:
                        known[target.key, other.key] = target, other
    return known, unknown


def prepare_companions(
    source: Source,
    splits: Splits,
    stored: Mapping[str, Stored],
    settings: DataSettings,
    *,
    check: bool,
) -> dict[tuple[str, str], Stored]:
    """Every pair of contrasts that headers place, the other on the target's grid.

    Args:
        source: Reads the volumes.
        splits: Volumes by split.
        stored: The prepared volumes by key.
        settings: How slices are prepared, and the cache.
        check: Compare the files with their SHA-256.

    Returns:
        By the keys of target and other volume: where the slices lie.

    Raises:
        DataError: If a volume cannot be read (E302) or what is kept is damaged (E311).
        ResourceError: If the disk is too small (E601).
        OSError: If the cache cannot be written.
    """
    pairs, unknown = companion_pairs(splits)
    if pairs or unknown:
        log.info(
            "other contrasts: %d pairs of volumes by their headers, %d by the relative "
            "number of the slice",
            len(pairs),
            unknown,
        )
    found = {}
    for names, (target, other) in pairs.items():
        name = _name(target, other, stored, settings)
        found[names] = Stored(name, store_folder(settings) / name)

    def missing() -> list[tuple[str, str]]:
        return [names for names, one in found.items() if not one.folder.is_dir()]

    if missing():
        place = store_folder(settings)
        with exclusive(place.with_suffix(".lock")):
            lacking = missing()
            check_disk([pairs[names][0] for names in lacking], settings, place)
            read = functools.lru_cache(maxsize=1)(
                lambda volume: normalised(source.read(volume))
            )
            # of one other volume after another, so that each is read once
            lacking = sorted(lacking, key=lambda names: names[::-1])
            for names in track(lacking, "resampling contrasts", len(lacking)):
                target, other = pairs[names]
                kept = [i for i, _ in read_index(stored[names[0]], check=False)]
                images = on_grid(
                    read(other), between(target, other), target.shape[1:], kept
                )
                write_slices(
                    found[names].folder,
                    zip(kept, _sized(images, settings), strict=True),
                    content=found[names].content,
                    size=settings.size,
                    hashes=[""] * len(kept),
                    kept=kept,
                )
    elif check:
        for one in found.values():
            verify(one.folder)
    return found


def companions_of(
    records: Sequence[SliceRecord],
    splits: Splits,
    stored: Mapping[tuple[str, str], Stored],
    size: int,
) -> dict[tuple[str, str], Companion]:
    """The companions of the slices of a split.

    Args:
        records: The slices, in their order.
        splits: Volumes by split.
        stored: Of `prepare_companions`.
        size: Side of a slice, in pixels.
    """
    volumes = {v.key: v for members in splits.values() for v in members}
    of_volume: dict[str, list[SliceRecord]] = {}
    for record in records:
        of_volume.setdefault(record.volume, []).append(record)
    out = {}
    for (name, other), one in stored.items():
        if name not in of_volume:
            continue
        members = of_volume[name]
        target, affine = volumes[name], between(volumes[name], volumes[other])
        middle = (np.array(target.shape[1:]) - 1) / 2
        out[name, other] = Companion(
            images=StoredImages(members, {name: one}, size),
            numbers={record.index: k for k, record in enumerate(members)},
            places={
                record.index: float((affine @ [record.index, *middle, 1])[0])
                for record in members
            },
        )
    return out


def between(target: Volume, other: Volume) -> np.ndarray:
    """From (slice, row, column, 1) of one volume to that of another, (4, 4) float64."""
    return np.linalg.inv(np.array(other.affine)) @ np.array(target.affine)


def on_grid(
    volume: np.ndarray,
    affine: np.ndarray,
    plane: tuple[int, int],
    slices: Iterable[int],
) -> Iterator[np.ndarray]:
    """A volume at the voxels of slices of another grid: a cubic spline, antialiased.

    Where the other grid is coarser, the volume is blurred first: with r the ratio of
    the spacings along an axis, by a Gaussian whose full width at half maximum is
    `sqrt(r^2 - 1)` voxels, which takes one point spread to the other (Cardoso et al.,
    Scale factor point spread function matching, MICCAI 2015).

    Args:
        volume: (S, H, W) float32.
        affine: (4, 4), from (slice, row, column, 1) of the other grid to that of the
            volume.
        plane: Height and width of the other grid.
        slices: Indices of its slices.

    Yields:
        (height, width) float32 of each slice; zero outside the volume.
    """
    spline = spline_of(volume, affine)
    for i in slices:
        yield at_slice(spline, affine, plane, i)


def spline_of(volume: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """The coefficients of a volume's spline, blurred for a coarser grid.

    Args:
        volume: (S, H, W) float32.
        affine: As in `on_grid`.

    Returns:
        (S, H, W) float32.
    """
    ratio = np.linalg.norm(affine[:3, :3], axis=1)
    sigma = _TO_SIGMA * np.sqrt(np.maximum(ratio**2 - 1, 0))
    blurred = ndimage.gaussian_filter(volume, sigma, mode="nearest")
    return ndimage.spline_filter(blurred, _ORDER, mode="mirror").astype(np.float32)


def at_slice(
    spline: np.ndarray, affine: np.ndarray, plane: tuple[int, int], i: int
) -> np.ndarray:
    """One slice of `on_grid`, (height, width) float32, of `spline_of`."""
    turn, shift = affine[:3, :3], affine[:3, 3]
    rows, columns = np.indices(plane)
    place = np.tensordot(turn[:, 1:], np.stack([rows, columns]), axes=1)
    place += (turn[:, 0] * i + shift).reshape(3, 1, 1)
    image = ndimage.map_coordinates(
        spline, place, order=_ORDER, mode="mirror", prefilter=False
    )
    ends = np.array(spline.shape).reshape(3, 1, 1) - 0.5
    inside = ((place >= -0.5) & (place <= ends)).all(axis=0)
    return np.where(inside, image, np.float32(0))


def _sized(
    images: Iterable[np.ndarray], settings: DataSettings
) -> Iterator[np.ndarray]:
    for image in images:
        yield resized(image, settings.size, settings.resize)


def _name(
    target: Volume,
    other: Volume,
    stored: Mapping[str, Stored],
    settings: DataSettings,
) -> str:
    parts = {
        "version": _VERSION,
        "target": stored[target.key].folder.name,  # its content and preparation
        "plane": target.shape[1:],
        "other": stored[other.key].content,
        "affine": (np.round(between(target, other), _DIGITS) + 0.0).tolist(),
        "resize": settings.resize,
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
