"""What the arrays of whole volumes take in host memory, beside the network.

Each has 4 bytes a voxel of the result, N voxels, where nothing else is said:

- Every reference on the grid of the result: 1 N.
- While one is placed: the resampled volume, the positive part of it for its range, and
  three masks of a byte: 2.75 N. Before it, the spline of the reference: 24 bytes a
  voxel of the reference, beside the resampled volume and a mask.
- The output in the range of training; in a simulation bicubic and the output without a
  reference too. C and P of the network: 0.5 N at x2.
- While the files are written: one map or the output in its own unit at a time, 1 N (P
  has 8 bytes where N and the references make numbers over 2^31), and the page.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Generator

import jax

from daasr_jax.enhancement.page import LIMIT
from daasr_jax.errors import ResourceError, first_line
from daasr_jax.runtime import memory
from daasr_jax.runtime.failures import is_out_of_memory

_PLACED, _RESAMPLED, _SPLINE = 11, 5, 24  # bytes of a voxel
_MATCHED = 2  # likewise, C and P of LR voxels at x2, of which a scale has no more
_PAGES = 3  # the pictures of the page, their JSON and the text
_REMEDY = "close other programs, crop the input, or give fewer --ref"


def needed(
    shape: tuple[int, ...],
    references: int,
    *,
    reference_voxels: int = 0,
    simulated: bool = False,
) -> int:
    """Bytes that are still to be taken once the scan was read, at the largest stage.

    Args:
        shape: Of the result.
        references: How many are still to be placed.
        reference_voxels: Of the largest of them, where it is known.
        simulated: The scan was made small first.
    """
    out = math.prod(shape)
    placing = 0
    if references:
        spline = _RESAMPLED * out + _SPLINE * reference_voxels
        placing = max(spline, _PLACED * out + 4 * reference_voxels)
    wide = out * references >= 2**31
    kept = 12 if simulated else 4
    writing = (kept + _MATCHED + (8 if wide else 4)) * out + _PAGES * LIMIT
    return 4 * out * references + max(placing, writing)


def require(
    shape: tuple[int, ...],
    references: int,
    *,
    reference_voxels: int = 0,
    simulated: bool = False,
) -> None:
    """Refuses volumes that the host's memory has no room for; arguments: `needed`.

    Raises:
        ResourceError: If there is less (E619).
    """
    need = needed(
        shape, references, reference_voxels=reference_voxels, simulated=simulated
    )
    place, free = memory.host_free()
    if need + memory.COMPILER > free:
        size = "x".join(map(str, shape))
        raise ResourceError(
            "E619",
            f"the arrays of a result of {size} voxels need {need / 2**30:.3g} GiB "
            f"beside the network, and {place} leaves {free / 2**30:.3g} GiB: "
            f"{_REMEDY}.",
        )


@contextlib.contextmanager
def told() -> Generator[None]:
    """Memory that runs out nevertheless, in one line.

    Raises:
        ResourceError: In place of a `MemoryError`, and of JAX's own (E619).
    """
    try:
        yield
    except MemoryError as error:
        raise _ran_out(error) from error
    except jax.errors.JaxRuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise _ran_out(error) from error


def _ran_out(error: Exception) -> ResourceError:
    return ResourceError(
        "E619", f"memory ran out ({first_line(error)[:120]}): {_REMEDY}."
    )
