"""The network as a `jax.export` artefact, which runs with JAX alone."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import export

from daasr_jax.enhancement.engine import apply
from daasr_jax.released import Weights

PLATFORMS = ("cpu", "cuda")


def make_artefact(weights: Weights, lr: tuple[int, ...], ref: tuple[int, ...]) -> bytes:
    """The serialised program of `export_program`.

    Raises:
        ImportError: If flatbuffers is not installed.
    """
    return bytes(export_program(weights, lr, ref).serialize())


def export_program(
    weights: Weights, lr: tuple[int, ...], ref: tuple[int, ...]
) -> export.Exported:
    """The program `(lr, ref) -> (sr, C, P)`, the weights in it.

    It is called by `jax.export.deserialize(data).call(lr, ref)`. A batch may have any
    number of slices; one goes after the other. Height and width are fixed: the search
    cuts its maps into tiles, whose sizes must be numbers when it is compiled.

    Args:
        weights: The network.
        lr: Height and width of the LR slices.
        ref: Height and width of the references, multiples of s.

    Returns:
        A program that takes `lr (B, h, w, 1)` and `ref (B, H, W, 1)`,
        float32 in [0, 1], on CPUs and CUDA GPUs.
    """
    variables = jax.tree.map(jnp.asarray, weights.variables)

    def one(pair: tuple[jax.Array, jax.Array]) -> tuple:
        lr, ref = (x[None] for x in pair)
        return tuple(x[0] for x in apply(weights.model, variables, lr, ref[:, None]))

    def program(lr: Any, ref: Any) -> tuple:
        return jax.lax.map(one, (lr, ref))

    (b,) = export.symbolic_shape("b")
    shapes = (jax.ShapeDtypeStruct((b, *side, 1), jnp.float32) for side in (lr, ref))
    return export.export(jax.jit(program), platforms=PLATFORMS)(*shapes)
