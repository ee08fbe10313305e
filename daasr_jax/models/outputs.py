"""What every model returns, and the protocol it follows."""

from __future__ import annotations

from typing import Any, Protocol

from flax import struct

from daasr_jax.resampling import PIXEL_SHUFFLES, SCALES


@struct.dataclass
class Outputs:
    """Result of a super-resolution model.

    Attributes:
        sr: `(B, H, W, 1)` float32, nominally in [0, 1], never clipped.
        aux: Named extra arrays. DAASR gives `cwt (n, B, H, W, 1)` and
            `sat (n, B, H, W, 1)`, the pictures of the auxiliary heads, `index
            (G, B, h, w)` int32 and `confidence (G, B, h, w, 1)` of its groups.
    """

    sr: Any  # JAX rebuilds it with placeholders as leaves
    aux: dict[str, Any]


class SuperResolutionModel(Protocol):
    """A Linen module: `apply(variables, lr, ref, train=...) -> Outputs`.

    `lr (B, h, w, 1)` and `ref (B, H, W, 1)` are float32 in [0, 1]; a single-image
    system ignores `ref`.
    """

    def init(self, rngs: Any, *args: Any, **kwargs: Any) -> Any:
        """Creates the variables."""
        ...

    def apply(self, variables: Any, *args: Any, **kwargs: Any) -> Any:
        """Runs the model."""
        ...


def check_scale(scale: int) -> None:
    """Raises ValueError if `scale` is not 2, 3 or 4."""
    if scale not in SCALES:
        raise ValueError(f"scale must be one of {SCALES}, got {scale!r}.")


def levels(scale: int) -> tuple[int, int]:
    """The factor from one level of a network to the next, and the number of steps.

    Raises:
        ValueError: If `scale` is not 2, 3 or 4.
    """
    check_scale(scale)
    factor, *more = PIXEL_SHUFFLES[scale]
    return factor, 1 + len(more)
