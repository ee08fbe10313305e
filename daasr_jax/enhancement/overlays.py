"""C and P on the grid of the result."""

from __future__ import annotations

import numpy as np

TISSUE = 0.05  # of the range of training: what is brighter is tissue


def spread(values: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Values `(S, h, w)` of cells on all pixels `(S, H, W)` of those cells.

    Raises:
        ValueError: If the cells do not fill the size.
    """
    height, width = values.shape[1:]
    if size[0] % height or size[1] % width:
        raise ValueError(f"cells of {height}x{width} do not fill {size}.")
    return np.repeat(
        np.repeat(values, size[0] // height, axis=1), size[1] // width, axis=2
    )


def places(
    index: np.ndarray, keys: tuple[int, int], size: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The pixel of the reference that each pixel of the result was matched with.

    Args:
        index: (S, h, w), P: row-major in the cells of the references, which lie one
            after the other.
        keys: Cells of a reference along its height and width.
        size: (H, W) of the result.

    Returns:
        Number of the reference, row and column in it, (S, H, W) int32 each.
    """
    rows, columns = keys
    which, inside = np.divmod(spread(index, size), rows * columns)
    y, x = np.divmod(inside, columns)
    tall, wide = size[0] // index.shape[1], size[1] // index.shape[2]
    y = y * tall + np.arange(size[0], dtype=np.int32)[:, None] % tall
    x = x * wide + np.arange(size[1], dtype=np.int32) % wide
    return which.astype(np.int32), y.astype(np.int32), x.astype(np.int32)


def in_tissue(confidence: np.ndarray, lr: np.ndarray) -> np.ndarray:
    """C where the input is brighter than `TISSUE`; arguments: see `untrusted`."""
    return confidence[spread(lr, confidence.shape[1:3]) > TISSUE]


def untrusted(confidence: np.ndarray, lr: np.ndarray, *, low: float) -> float:
    """Share of the tissue for which nothing was found that agrees.

    Args:
        confidence: (S, h, w), C.
        lr: (S, h', w') in the range of training, h a multiple of h'.
        low: C below it does not agree.

    Returns:
        In [0, 1]; 0 where there is no tissue.
    """
    inside = in_tissue(confidence, lr)
    return float((inside < low).mean()) if inside.size else 0.0
