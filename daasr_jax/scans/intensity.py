"""The range of a user's scan: to that of training, and back to its unit."""

import dataclasses

import numpy as np

from daasr_jax.data.slices import HOT, MAX_NEGATIVE, usual_high
from daasr_jax.data.sources.base import log
from daasr_jax.errors import DataError
from daasr_jax.scans.scan import counted

# A voxel that is brighter than all around it by more than this factor is damaged.
_ALONE = 2
# So small a share of a scan's voxels says nothing of its range.
_FEW = 0.001


@dataclasses.dataclass(frozen=True)
class Restore:
    """Back to the unit of a scan: `low + images (top - low)`.

    Attributes:
        top: What became 1.
        low: What became 0; 0 but for a scan that is negative in good part.
        hot: Number of voxels that lay above `top` and were cut to it.
        remarks: What the user should know of the range, in words.
    """

    top: float
    low: float = 0.0
    hot: int = 0
    remarks: tuple[str, ...] = ()

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """Images in the range of training to float32 in the unit of the scan."""
        images = np.asarray(images, np.float32)
        out = images * np.float32(self.top - self.low)
        if self.low:
            out += np.float32(self.low)
        return out


def normalise(voxels: np.ndarray, name: str = "the scan") -> tuple[np.ndarray, Restore]:
    """A volume in the range of training: divided by its maximum.

    A damaged voxel does not set the range. Voxels above 20 times `slices.usual_high`
    are left out of the maximum and cut to it. So is a single voxel among the brightest
    0.1 % that is over twice as bright as all 26 around it; of 19 real volumes (T1w,
    T2w, FLAIR, MEMPRAGE, spin echo) the most that any voxel reaches is 1.35 times.

    A few negative values, as interpolation leaves them, are cut to 0. Where over 0.1 %
    of the voxels lie below -10 % of the maximum the range begins at the minimum. Each
    is said.

    Args:
        voxels: (S, H, W) real, finite, in any unit.
        name: The scan, for messages.

    Returns:
        (S, H, W) float32 in [0, 1], and the way back.

    Raises:
        DataError: If all voxels are equal (E347).
    """
    low, high = float(voxels.min()), float(voxels.max())
    if low == high:
        raise DataError(
            "E347", f"{name} is blank: all voxels are {low:g}; give another scan."
        )
    remarks = []
    start, top, hot = _range(voxels)
    if start:
        remarks.append(
            f"has values from {low:.4g} to {top:.4g}; magnitude images start at 0, so "
            f"{low:.4g} is taken as black"
        )
    elif low < 0:
        cut = int(np.count_nonzero(voxels < 0))
        remarks.append(f"has {counted(cut)} below 0 (down to {low:.4g}), taken as 0")
    if hot:
        remarks.append(_damaged(hot, high, top))
    images = np.empty(voxels.shape, np.float32)
    for i, image in enumerate(voxels):
        images[i] = ((image.astype(np.float64) - start) / (top - start)).clip(0, 1)
    for remark in remarks:
        log.warning("%s %s", name, remark)
    return images, Restore(top, start, hot, tuple(remarks))


def without_damaged(voxels: np.ndarray) -> tuple[np.ndarray, tuple[str, ...]]:
    """A volume whose damaged voxels, see `normalise`, are cut to the maximum of others.

    It is done before a volume is resampled: a spline makes a blob of such a voxel,
    which is not alone any more.

    Args:
        voxels: (X, Y, Z) real, finite, in any unit.

    Returns:
        The volume itself or a copy of its type, and what the user should know.
    """
    _, top, hot = _range(voxels)
    if not hot:
        return voxels, ()
    cut = np.minimum(voxels, voxels.dtype.type(top))
    return cut, (_damaged(hot, float(voxels.max()), top),)


def _damaged(hot: int, high: float, top: float) -> str:
    return (
        f"has {counted(hot)} of up to {high:.4g} where no other is over {top:.4g}: "
        "taken as damaged and cut to it"
    )


def _range(voxels: np.ndarray) -> tuple[float, float, int]:
    """What becomes 0 and what 1, and how many voxels are damaged, see `normalise`."""
    low, high = float(voxels.min()), float(voxels.max())
    top, hot = _top(voxels, 0.0, high)
    far = np.count_nonzero(voxels < -MAX_NEGATIVE * top)
    if low < high and (top <= 0 or far > _FEW * voxels.size):
        return low, *_top(voxels, low, high)
    return 0.0, top, hot


def _top(voxels: np.ndarray, start: float, high: float) -> tuple[float, int]:
    """The maximum without damaged voxels, and how many those are."""
    shifted = voxels - np.float64(start) if start else voxels
    usual = usual_high(shifted)
    hot = shifted > HOT * usual
    for place in np.argwhere(shifted > usual):
        around = tuple(slice(max(p - 1, 0), p + 2) for p in place)
        value = float(shifted[tuple(place)])
        # of the voxels around and itself, it alone is over a half of it
        if np.count_nonzero(shifted[around] * float(_ALONE) >= value) == 1:
            hot[tuple(place)] = True
    count = int(np.count_nonzero(hot))
    if not count:
        return high, 0
    return float(np.max(voxels, where=~hot, initial=start)), count
