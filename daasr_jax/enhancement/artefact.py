"""The network as a `jax.export` artefact, which runs with JAX alone."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import export

from daasr_jax.enhancement.arrays import LEAST, MOST
from daasr_jax.enhancement.engine import apply
from daasr_jax.released import Weights

PLATFORMS = ("cpu", "cuda")


def make_artefact(weights: Weights, size: tuple[int, int] | None = None) -> bytes:
    """The serialised program of `export_program`.

    Raises:
        ImportError: If flatbuffers is not installed.
        InconclusiveDimensionOperation: As `export_program`.
    """
    return bytes(export_program(weights, size).serialize())


def export_program(
    weights: Weights, size: tuple[int, int] | None = None
) -> export.Exported:
    """The program `(lr, ref) -> (sr, C, P)`, the weights in it.

    It is called by `jax.export.deserialize(data).call(lr, ref)`. A batch may have any
    number of slices; one goes after the other. Without `size` height and width of both
    are free too, from `LEAST` to `MOST`; the search then is that of `search` for sizes
    that are symbols, which is slower on a CPU.

    Args:
        weights: The network.
        size: Height and width of the LR slices; the references have s times as many.

    Returns:
        A program that takes `lr (B, h, w, 1)` and `ref (B, H, W, 1)`, float32 in
        [0, 1], H and W multiples of s, on CPUs and CUDA GPUs.

    Raises:
        InconclusiveDimensionOperation: Without `size`, if a part of the network needs
            numbers for height and width.
    """
    s = weights.about["scale"]
    if size is None:
        h, w, y, x, b = _free()
    else:
        h, w, y, x, b = *size, *size, *export.symbolic_shape("b")
    lr, ref = (b, h, w, 1), (b, s * y, s * x, 1)
    variables = jax.tree.map(jnp.asarray, weights.variables)

    def one(pair: tuple[jax.Array, jax.Array]) -> tuple:
        lr, ref = (x[None] for x in pair)
        return tuple(x[0] for x in apply(weights.model, variables, lr, ref[:, None]))

    def program(lr: Any, ref: Any) -> tuple:
        return jax.lax.map(one, (lr, ref))

    shapes = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in (lr, ref))
    try:
        return export.export(jax.jit(program), platforms=PLATFORMS)(*shapes)
    except TypeError as error:  # a symbol where numpy wants a number
        if size is None:
            raise jax.errors.InconclusiveDimensionOperation(str(error)) from error
        raise


def _free() -> tuple[Any, ...]:
    """Sides of LR slices and of cells of references, and a batch, of any number."""
    sides = ("h", "w", "y", "x")
    limits = [f"{n} >= {LEAST}" for n in sides] + [f"{n} <= {MOST}" for n in sides]
    return tuple(export.symbolic_shape(", ".join((*sides, "b")), constraints=limits))
