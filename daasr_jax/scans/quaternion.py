"""The quaternion of a NIfTI header that turns most nearly as an affine does.

A qform holds three numbers b, c, d of 24 bits; a reader makes the fourth,
`a = sqrt(1 - b^2 - c^2 - d^2)`. Near half a turn, where scans with axes to the left,
back and top are, a is small, and rounding b, c and d moves it by up to 3e-4: a tenth of
a millimetre at the corner of a head. Of all close triples the one is taken with which
the corners move least, a half to a tenth of that.
"""

import dataclasses

import numpy as np
from nibabel.quaternions import fillpositive, mat2quat, quat2mat

_THRESHOLD = np.finfo(np.float32).eps * 3  # as nibabel has it
# The two smaller numbers are tried on a fine lattice, the largest by its last bits.
_FINE = np.arange(-24, 25) * 2.0**-26
_BITS = np.arange(-3, 4)


@dataclasses.dataclass(frozen=True)
class Qform:
    """What a header holds of an affine.

    Attributes:
        quaternion: b, c and d, float32.
        sides: Of a voxel, float32.
        handed: 1, or -1 for a left-handed affine.
        offset: Of the first voxel, float32.
        error: How far a corner of the outer voxels lies from its place at most, in the
            unit of the affine. Large where the axes are not at right angles, which no
            quaternion holds.
    """

    quaternion: np.ndarray
    sides: np.ndarray
    handed: int
    offset: np.ndarray
    error: float


def qform_of(
    affine: np.ndarray, shape: tuple[int, ...], quaternion: np.ndarray | None = None
) -> Qform:
    """The qform nearest to an affine over a volume.

    Args:
        affine: (4, 4) float64.
        shape: The three sides of the volume.
        quaternion: b, c and d where they are known, float32.
    """
    turn = affine[:3, :3]
    sides = np.linalg.norm(turn, axis=0)
    handed = 1 if np.linalg.det(turn) > 0 else -1
    if quaternion is None:
        u, _, v = np.linalg.svd(turn / sides * [1, 1, handed])
        quaternion = _nearest(u @ v, sides * np.array(shape))
    short = sides.astype(np.float32)
    right = quat2mat(fillpositive(quaternion.astype(np.float64), _THRESHOLD))
    held = right * short.astype(np.float64) * [1, 1, handed]
    middle = (np.array(shape) - 1) / 2
    offset = (turn @ middle + affine[:3, 3] - held @ middle).astype(np.float32)
    corners = np.array(np.meshgrid(*[(-0.5, side - 0.5) for side in shape]))
    error = (held - turn) @ corners.reshape(3, -1) + (offset - affine[:3, 3])[:, None]
    return Qform(
        quaternion=quaternion,
        sides=short,
        handed=handed,
        offset=offset,
        error=float(np.linalg.norm(error, axis=0).max()),
    )


def _nearest(right: np.ndarray, extent: np.ndarray) -> np.ndarray:
    """(b, c, d) float32 of a rotation, whose error over the extent is least."""
    exact = mat2quat(right)[1:]
    exact = exact if mat2quat(right)[0] >= 0 else -exact
    largest = int(np.abs(exact).argmax())
    p, q = (i for i in range(3) if i != largest)
    tried = np.empty((_FINE.size, _FINE.size, _BITS.size, 3), np.float32)
    tried[..., p] = (exact[p] + _FINE)[:, None, None]
    tried[..., q] = (exact[q] + _FINE)[:, None]
    top = np.float32(exact[largest])
    tried[..., largest] = top + _BITS * np.spacing(top)
    tried = tried.reshape(-1, 3)
    b, c, d = tried.T.astype(np.float64)
    w2 = 1 - (b * b + c * c + d * d)
    kept = w2 > -_THRESHOLD
    a = np.sqrt(np.maximum(w2, 0))
    n = 2 / (a * a + b * b + c * c + d * d)
    turns = np.array(
        [
            [1 - n * (c * c + d * d), n * (b * c - a * d), n * (b * d + a * c)],
            [n * (b * c + a * d), 1 - n * (b * b + d * d), n * (c * d - a * b)],
            [n * (b * d - a * c), n * (c * d + a * b), 1 - n * (b * b + c * c)],
        ]
    )
    # bounds the way of a corner from its place, about the middle
    off = np.abs(turns - right[..., None]) * (extent / 2)[None, :, None]
    error = np.where(kept, np.linalg.norm(off.sum(axis=1), axis=0), np.inf)
    return tried[int(error.argmin())]
