"""Slices through a network, as many at a time as the memory that may be taken holds."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from daasr_jax.released import Weights
from daasr_jax.runtime.failures import explained
from daasr_jax.runtime.memory import free_bytes

log = logging.getLogger("daasr_jax")

_AT_ONCE = 8  # slices, where an accelerator has room; a CPU takes one after the other
_NOTHING = 3  # side, in LR pixels, of the zeros that stand for no reference

Track = Callable[[Iterable[int], int], Iterable[int]]


@dataclasses.dataclass(frozen=True)
class Slices:
    """What a network made of S slices, in the range of training.

    Attributes:
        sr: (S, sH, sW) float32.
        confidence: (S, h', w') float32, C on the grid of the queries, which is that of
            the LR slices but for `match_stride=1`; None of a network without search.
        index: (S, h', w') int32, P, see `models.Outputs`; None likewise.
        bytes: What the compiled program takes, beside the slices.
    """

    sr: np.ndarray
    confidence: np.ndarray | None
    index: np.ndarray | None
    bytes: int


class Engine:
    """A network with its weights, ready for slices of any size.

    Args:
        weights: The network.
        memory: Bytes that it may take; None for a half of what is free.
    """

    def __init__(self, weights: Weights, memory: int | None = None) -> None:
        self.weights = weights
        self.memory = free_bytes() // 2 if memory is None else memory
        self._programs: dict[tuple[int, ...], Any] = {}

    @property
    def scale(self) -> int:
        """Factor s."""
        return self.weights.about["scale"]

    def __call__(
        self, lr: np.ndarray, ref: np.ndarray | None, track: Track | None = None
    ) -> Slices:
        """Super-resolves slices.

        Args:
            lr: (S, h, w) float32 in [0, 1].
            ref: (S, r, H, W) float32 in [0, 1], H and W multiples of s; None for no
                reference.
            track: Shows how far it is; takes the numbers of slices and their number.

        Raises:
            ResourceError: If one slice is too large for the memory.
        """
        s = self.scale
        if ref is None:  # zeros, of which a few are as good as many
            ref = np.zeros((len(lr), 1, s * _NOTHING, s * _NOTHING), np.float32)
        at_once, program = self._fitting(lr.shape[1:], ref.shape[1:])
        parts: list[tuple[np.ndarray, ...]] = []
        places = range(0, len(lr), at_once)
        for begin in places if track is None else track(places, len(places)):
            chosen = np.arange(begin, begin + at_once).clip(max=len(lr) - 1)
            with explained():
                made = program(
                    self.weights.variables,
                    lr[chosen, ..., None],
                    ref[chosen, ..., None],
                )
                kept = min(at_once, len(lr) - begin)
                parts.append(tuple(np.asarray(x)[:kept] for x in made))
        sr, *found = (np.concatenate(x) for x in zip(*parts, strict=True))
        c, p = found or (None, None)
        return Slices(sr, c, p, _size(program))

    def _fitting(self, lr: tuple[int, ...], ref: tuple[int, ...]) -> tuple[int, Any]:
        """How many slices go at once, and their program."""
        program = self._program(1, lr, ref)
        if jax.default_backend() == "cpu":
            return 1, program
        at_once = max(1, min(_AT_ONCE, self.memory // max(1, _size(program))))
        return at_once, self._program(at_once, lr, ref)

    def _program(self, n: int, lr: tuple[int, ...], ref: tuple[int, ...]) -> Any:
        if (n, *lr, *ref) not in self._programs:
            shapes = (
                jax.ShapeDtypeStruct((n, *side, 1), jnp.float32) for side in (lr, ref)
            )
            with explained():
                self._programs[n, *lr, *ref] = (
                    jax.jit(self._apply)
                    .lower(self.weights.variables, *shapes)
                    .compile()
                )
        return self._programs[n, *lr, *ref]

    def _apply(self, variables: Any, lr: jax.Array, ref: jax.Array) -> tuple:
        """`(sr, C, P)`, or `(sr,)`."""
        one = ref.shape[1] == 1
        outputs = self.weights.model.apply(
            variables, lr, ref[:, 0] if one else ref, train=False
        )
        found = (outputs.aux.get(name) for name in ("confidence", "index"))
        c, p = found
        if c is None or p is None:
            return (outputs.sr[..., 0],)
        return outputs.sr[..., 0], c[-1, ..., 0], p[-1]


def _size(program: Any) -> int:
    """Bytes that a compiled program takes for itself."""
    about = program.memory_analysis()
    return 0 if about is None else about.temp_size_in_bytes + about.output_size_in_bytes
