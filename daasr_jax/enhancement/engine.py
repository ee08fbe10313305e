"""Slices through a network, as many at a time as the memory that may be taken holds."""

from __future__ import annotations

import dataclasses
import functools
import logging
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from daasr_jax.enhancement import bands
from daasr_jax.errors import ResourceError
from daasr_jax.models.daasr import searching_within
from daasr_jax.released import Weights
from daasr_jax.runtime.failures import is_out_of_memory
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
        bytes: What the compiled program of one whole slice takes for itself.
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
        within: Pixels of the LR slice around each place in which a reference is
            searched; 0 for the whole slice.
    """

    def __init__(
        self, weights: Weights, memory: int | None = None, within: int = 0
    ) -> None:
        model: Any = searching_within(weights.model, within)
        self.weights = weights._replace(model=model)
        self.memory = free_bytes() // 2 if memory is None else memory
        self._at_once = 1
        self._bytes = 0
        self._bands: bands.Bands | None = None

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
            ResourceError: If one slice is too large for the memory (E615).
        """
        s = self.scale
        if ref is None:  # zeros; of them, a search finds a few as good as many
            few = bands.can_band(self.weights.model)
            side = (_NOTHING, _NOTHING) if few else lr.shape[1:]
            ref = np.zeros((len(lr), 1, s * side[0], s * side[1]), np.float32)
        shapes = lr.shape[1:], ref.shape[1:]
        self._bands = None
        self._at_once = self._fitting(*shapes)
        whole: list[np.ndarray] = []
        places = range(len(lr))
        done = 0
        for i in places if track is None else track(places, len(places)):
            if i >= done:  # the bar counts slices, which go several at once
                made = self._some(lr[i:], ref[i:])
                if not whole:
                    whole = [np.empty((len(lr), *x.shape[1:]), x.dtype) for x in made]
                for out, x in zip(whole, made, strict=True):
                    out[done : done + len(x)] = x
                done += len(made[0])
        sr, *found = whole
        c, p = found or (None, None)
        return Slices(sr, c, p, self._bytes)

    def _some(self, lr: np.ndarray, ref: np.ndarray) -> tuple[np.ndarray, ...]:
        """The first of the slices, as many as go at once; half as many without room."""
        while True:
            n = self._at_once
            if self._bands is not None:
                return self._banded(lr[0], ref[0])
            chosen = np.arange(n).clip(max=len(lr) - 1)
            try:
                program = self._program(n, lr.shape[1:], ref.shape[1:])
                made = program(
                    self.weights.variables,
                    lr[chosen, ..., None],
                    ref[chosen, ..., None],
                )
                return tuple(np.asarray(x)[: len(lr)] for x in made)
            except jax.errors.JaxRuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                self._at_once = n // 2
                if n > 1:
                    log.warning("out of memory: %d slices at once from here", n // 2)
                elif not self._in_bands(lr.shape[1:], ref.shape[1:]):
                    raise _too_large(lr.shape[1:], self.memory) from error

    def _banded(self, lr: np.ndarray, ref: np.ndarray) -> tuple[np.ndarray, ...]:
        """One slice in bands, of half as many rows where there is no room."""
        assert self._bands is not None
        while True:
            try:
                return tuple(x[None] for x in self._bands(lr, ref))
            except jax.errors.JaxRuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                rows = self._bands.rows
                if rows <= bands.LEAST:
                    raise _too_large(lr.shape, self.memory) from error
                self._bands.rows = max(bands.LEAST, rows // 2)
                log.warning("out of memory: bands of %d rows", self._bands.rows)

    def _fitting(self, lr: tuple[int, ...], ref: tuple[int, ...]) -> int:
        """How many slices go at once; 0 where not even one fits, but bands of it do.

        Raises:
            ResourceError: If neither does (E615).
        """
        try:
            self._bytes = _size(self._program(1, lr, ref))
        except jax.errors.JaxRuntimeError as error:
            if not is_out_of_memory(error):
                raise
            self._bytes = self.memory + 1  # it takes more than there is
        fitting = self.memory // self._bytes
        if not fitting:
            if self._in_bands(lr, ref):
                return 0
            raise _too_large(lr, self.memory, self._bytes)
        most = 1 if jax.default_backend() == "cpu" else _AT_ONCE
        return max(1, min(most, fitting))

    def _in_bands(self, lr: tuple[int, ...], ref: tuple[int, ...]) -> bool:
        """Prepares bands of one slice; whether the network has them."""
        model, variables, _ = self.weights
        if not bands.can_band(model):
            return False
        features = variables["params"]["shallow"]["bias"].size
        rows = bands.rows_within(self.memory, lr, ref[0], features)
        self._bands = bands.Bands(model, variables, min(rows, lr[0]))
        log.info("slices of %dx%d go in bands of %d rows", *lr, self._bands.rows)
        least = bands.least_bytes(lr, ref[0], features)
        if least > self.memory:
            log.warning(
                "they take about %.2g GB so, the least; %.2g may be taken",
                least / 2**30,
                self.memory / 2**30,
            )
        return True

    def _program(self, n: int, lr: tuple[int, ...], ref: tuple[int, ...]) -> Any:
        leaves, tree = jax.tree.flatten(self.weights.variables)
        like = tuple(jax.ShapeDtypeStruct(x.shape, x.dtype) for x in leaves)
        return _compiled(self.weights.model, tree, like, n, lr, ref)


@functools.lru_cache(maxsize=16)
def _compiled(
    model: Any,
    tree: Any,
    like: tuple,
    n: int,
    lr: tuple[int, ...],
    ref: tuple[int, ...],
) -> Any:
    """The program of n slices, and of variables `like` these; the last are kept."""
    shapes = (jax.ShapeDtypeStruct((n, *side, 1), jnp.float32) for side in (lr, ref))
    program = jax.jit(functools.partial(apply, model))
    return program.lower(jax.tree.unflatten(tree, like), *shapes).compile()


def apply(model: Any, variables: Any, lr: jax.Array, ref: jax.Array) -> tuple:
    """The network on slices: `(sr, C, P)`, or `(sr,)` where nothing is searched.

    Args:
        model: The network.
        variables: Its weights.
        lr: (B, h, w, 1).
        ref: (B, r, H, W, 1).
    """
    one = ref.shape[1] == 1
    outputs = model.apply(variables, lr, ref[:, 0] if one else ref, train=False)
    c, p = (outputs.aux.get(name) for name in ("confidence", "index"))
    if c is None or p is None:
        return (outputs.sr[..., 0],)
    return outputs.sr[..., 0], c[-1, ..., 0], p[-1]


def _size(program: Any) -> int:
    """Bytes that a compiled program takes for itself; 1 where it does not tell."""
    about = program.memory_analysis()
    return 1 if about is None else about.temp_size_in_bytes + about.output_size_in_bytes


def _too_large(lr: tuple[int, ...], memory: int, needed: int = 0) -> ResourceError:
    height, width = lr
    takes = f" (it takes {needed / 2**30:.3g})" if needed > memory + 1 else ""
    return ResourceError(
        "E615",
        f"one slice of {height}x{width} pixels does not fit into {memory / 2**30:.3g} "
        f"GiB{takes}: close other programs, give more by --memory, or crop the input.",
    )
