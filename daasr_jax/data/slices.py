"""From a volume to prepared slices: which are kept, their range and their size."""

import hashlib

import numpy as np

from daasr_jax.errors import DataError

# Intensities below zero, as a share of the maximum, that interpolation may leave.
MAX_NEGATIVE = 0.1
# How far the largest voxel may lie above all but 0.1 % of the positive ones, as a
# factor. Of 66 real volumes (T1w, T2w, FLAIR, MEMPRAGE, spin echo) the largest has
# 3.5, a skull-stripped T1w head.
HOT, _HOT_SHARE = 20, 0.001
# Slices with fewer voxels than this above or below zero are alike by chance.
_LEAST_VOXELS = 16


def central_slices(count: int, cut: tuple[float, float], step: int) -> range:
    """Indices of the slices kept of `count`, before blank ones are dropped.

    Example:
        >>> list(central_slices(10, (0.2, 0.8), 2))
        [2, 4, 6]
    """
    return range(round(cut[0] * count), round(cut[1] * count), step)


def voxel_fault(volume: np.ndarray) -> str:
    """Why these voxels cannot be used, in words, or an empty string.

    Args:
        volume: (S, H, W) real, any type.
    """
    if volume.dtype.kind == "f":
        bad = ~np.isfinite(volume)
        count = int(bad.sum())
        if count:
            first = int(np.flatnonzero(bad.any(axis=(1, 2)))[0])
            return f"{count} voxels are NaN or infinite, the first in slice {first}"
    low, high = volume.min(), volume.max()
    if low == high:
        return f"all voxels are {low}: a blank volume"
    if high <= 0 or -float(low) > MAX_NEGATIVE * float(high):
        return f"intensities run from {low} to {high}; magnitude images start at 0"
    return _hot_voxel(volume)


def usual_high(volume: np.ndarray) -> float:
    """What all but 0.1 % of the positive voxels stay below; infinite for fewer than 2.

    Args:
        volume: (S, H, W) real, any type.
    """
    positive = volume[volume > 0]
    # of few voxels at least the largest is left out
    place = min(int((1 - _HOT_SHARE) * positive.size), positive.size - 2)
    if place < 0:
        return np.inf
    positive.partition(place)  # a copy of its own already
    return float(positive[place])


def _hot_voxel(volume: np.ndarray) -> str:
    """A damaged voxel would set the range of the whole volume."""
    usual = usual_high(volume)
    high = float(volume.max())
    if high <= HOT * usual:
        return ""
    where = int(np.argmax(volume.max(axis=(1, 2))))
    return (
        f"one voxel of slice {where} is {high:.4g}, {high / usual:.3g} times what all "
        f"but {100 * _HOT_SHARE:g} % of the foreground stay below ({usual:.4g}), and "
        f"would set the range of the volume; {HOT} times is the most that is taken"
    )


def slice_hash(image: np.ndarray, size: int, mode: str) -> str:
    """SHA-256 of a slice's prepared pixels, hexadecimal; empty for a nearly empty one.

    The slice is divided by its own maximum here. So a scan in another unit or type, or
    of which slices are missing, has the hashes of the scan.

    Args:
        image: (H, W) real, in any unit, not all zero.
        size: Side of a prepared slice.
        mode: `stretch` or `pad`, see `resized`.
    """
    if np.count_nonzero(image) < _LEAST_VOXELS:
        return ""
    values = image.astype(np.float64)
    pixels = resized((values / np.abs(values).max()).astype(np.float32), size, mode)
    return hashlib.sha256(pixels.astype("<f4").tobytes()).hexdigest()


def normalised(volume: np.ndarray) -> np.ndarray:
    """The volume divided by its maximum, float32 in (-0.1, 1].

    The quotient is taken in float64, so a scan and a copy of it scaled by a power of
    two give the same bits.

    Args:
        volume: (S, H, W) real with a positive maximum, in any unit.
    """
    top = np.float64(volume.max())
    out = np.empty(volume.shape, np.float32)
    for i, image in enumerate(volume):
        out[i] = image.astype(np.float64) / top
    return out


def resized(image: np.ndarray, size: int, mode: str) -> np.ndarray:
    """One slice on the square grid of the prepared set.

    Bicubic with antialias, Keys' kernel with a = -0.5 (Pillow's BICUBIC on float32),
    the kernel that also makes the low-resolution images.

    Args:
        image: (H, W) float32, nominally in [0, 1].
        size: Side of the result.
        mode: `stretch` resizes both sides; `pad` first pads to a square with zeros.

    Returns:
        (size, size, 1) float32, clipped to [0, 1].
    """
    if mode == "pad":
        image = _square(image)
    if image.shape != (size, size):
        from PIL import Image  # prepared slices are read without it

        picture = Image.fromarray(np.ascontiguousarray(image))
        image = np.asarray(picture.resize((size, size), Image.Resampling.BICUBIC))
    return np.clip(image, 0.0, 1.0)[..., np.newaxis]


def not_blank(volume: np.ndarray, kept: range, name: str) -> list[int]:
    """The kept slices that are not one constant value.

    Raises:
        DataError: If none is left (E315).
    """
    left = [i for i in kept if volume[i].min() != volume[i].max()]
    if not left:
        raise DataError(
            "E315",
            f"{name}: no slice with an image is left of {len(volume)}: widen "
            "data.slice_first and data.slice_last, lower data.slice_step or leave the "
            "subject out",
        )
    return left


def _square(image: np.ndarray) -> np.ndarray:
    height, width = image.shape
    side = max(height, width)
    top, left = (side - height) // 2, (side - width) // 2
    return np.pad(image, ((top, side - height - top), (left, side - width - left)))
