"""Reference controls: whether a trained network uses its reference, and what for.

The same weights restore the same slices with other references: one that holds the
answer, one that holds nothing, one whose textures lie elsewhere. The differences tell
what the network takes from a reference.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from daasr_jax.data import Pairing, SliceTable, draw_pairing
from daasr_jax.data.corruption import add_noise
from daasr_jax.data.references import number_of
from daasr_jax.errors import DataError
from daasr_jax.evaluation.predict import (
    Predict,
    Prediction,
    references,
    run_split,
)
from daasr_jax.models.outputs import SuperResolutionModel

# Control -> its reference, in the order of tables and pictures.
CONTROLS = {
    "pair": "of the run's own track",
    "stranger": "a slice of another subject",
    "neighbour": "the neighbouring slice",
    "contrast": "the same place in another contrast",
    "shuffled": "the pair, its blocks at other places",
    "noisy": "the pair, with noise of a tenth of the range",
    "black": "none: zeros",
    "self": "the target itself: an upper bound",
}
# Those that draw a reference from the split, by the rule of `data.draw_pairing`, and
# why there may be none.
_DRAWN: dict[str, tuple[dict[str, Any], str]] = {
    "stranger": ({"track": "random", "exclude": "subject"}, "there is one subject"),
    "neighbour": (
        {"track": "aligned", "aligned": "neighbour"},
        "a volume has one slice only",
    ),
    "contrast": (
        {"track": "aligned", "aligned": "contrast"},
        "not in these data: a volume has no other contrast beside it",
    ),
}
BLOCK = 4  # LR pixels: the side of what is shuffled
NOISE = 0.1  # standard deviation of the noise of `noisy`


Images = Callable[[int], list[np.ndarray]]


@dataclasses.dataclass(frozen=True)
class Control:
    """The references of one control.

    Attributes:
        images: Slice i -> its references, (size, size, 1) each, as many as the pairing
            has; None for the pairing's own.
        same_as: The control that has the same references, which is run instead.
        pairing: Where they were drawn from the split.
    """

    images: Images | None
    same_as: str = ""
    pairing: Pairing | None = None


def draw_controls(
    table: SliceTable, pairing: Pairing, *, scale: int, used: bool = True
) -> tuple[dict[str, Control], dict[str, str]]:
    """The controls that a split allows.

    Args:
        table: The split.
        pairing: The references that the run is evaluated with; its seed draws those of
            the others.
        scale: s; `BLOCK * s` HR pixels are shuffled together.
        used: Whether the network takes a reference. Else all controls are the same.

    Returns:
        Control -> its references, and control -> why it is left out.
    """

    def shuffled(i: int) -> list[np.ndarray]:
        seed = number_of(f"{pairing.seed}/shuffled/{table.keys[i]}")
        return [
            shuffle_blocks(image, BLOCK * scale, seed=seed)
            for image in references(table, pairing, i)
        ]

    def noisy(i: int) -> list[np.ndarray]:
        rng = np.random.default_rng(number_of(f"{pairing.seed}/noisy/{table.keys[i]}"))
        return [
            np.clip(add_noise(image, NOISE, rng), 0.0, 1.0).astype(np.float32)
            for image in references(table, pairing, i)
        ]

    made = {
        "pair": Control(None, pairing=pairing),
        "shuffled": Control(shuffled),
        "noisy": Control(noisy),
        "black": Control(black(table, pairing.count)),
        "self": Control(itself(table, pairing.count)),
    }
    left_out = {}
    for name, (rule, reason) in _DRAWN.items():
        try:
            drawn = draw_pairing(
                table,
                **rule,
                distance_mm=pairing.distance_mm if name == "neighbour" else 0.0,
                count=pairing.count,
                seed=pairing.seed,
            )
        except DataError as error:
            left_out[name] = reason if error.code == "E312" else str(error.args[0])
            continue
        same = "pair" if same_references(drawn, pairing) else ""
        made[name] = Control(partial(references, table, drawn), same, drawn)
    if not used:
        made = {
            n: dataclasses.replace(c, same_as="pair" if c.images else "")
            for n, c in made.items()
        }
    return {name: made[name] for name in CONTROLS if name in made}, left_out


def same_references(a: Pairing, b: Pairing) -> bool:
    """Whether two pairings give every slice the same references."""
    kinds = [(x.of_contrasts, x.count) for x in (a, b)]
    drawn = [(x.references, x.further) for x in (a, b)]
    return kinds[0] == kinds[1] and all(map(np.array_equal, *drawn))


def black(table: SliceTable, count: int = 1) -> Images:
    """Slice -> zeros of its size: no reference."""
    return lambda i: [np.zeros_like(table.image(i))] * count


def itself(table: SliceTable, count: int = 1) -> Images:
    """Slice -> itself, as often as a slice has references."""
    return lambda i: [table.image(i)] * count


def shuffle_blocks(image: np.ndarray, side: int, *, seed: int) -> np.ndarray:
    """The whole square blocks of an image at each other's places.

    What is left at the right and below, less than a block, stays.

    Args:
        image: (H, W, C).
        side: Of a block.
        seed: Draws the places.
    """
    rows, columns = (n // side for n in image.shape[:2])
    order = np.random.default_rng(seed).permutation(rows * columns)
    whole = image[: rows * side, : columns * side]
    blocks = whole.reshape(rows, side, columns, side, -1).swapaxes(1, 2)
    blocks = blocks.reshape(rows * columns, side, side, -1)[order]
    blocks = blocks.reshape(rows, columns, side, side, -1).swapaxes(1, 2)
    out = image.copy()
    out[: rows * side, : columns * side] = blocks.reshape(whole.shape)
    return out


def uses_reference(
    model: SuperResolutionModel, variables: Any, *, scale: int, side: int = 16
) -> bool:
    """Whether the output of a network depends on the reference at all, by its graph.

    A network whose output does may still have learned to ignore it.

    Args:
        model: The network.
        variables: Its variables, or their shapes.
        scale: s.
        side: Of the LR image that it is traced with.
    """
    lr, ref = (
        jax.ShapeDtypeStruct((1, n, n, 1), jnp.float32) for n in (side, side * scale)
    )
    flat, tree = jax.tree.flatten(jax.eval_shape(lambda v: v, variables))

    def sr(ref: Array, lr: Array, *leaves: Array) -> Array:
        return model.apply(jax.tree.unflatten(tree, leaves), lr, ref, train=False).sr

    graph = jax.make_jaxpr(sr)(ref, lr, *flat).jaxpr
    reached = {id(graph.invars[0])}
    for step in graph.eqns:
        if any(id(x) in reached for x in step.invars):
            reached |= {id(x) for x in step.outvars}
    return any(id(x) in reached for x in graph.outvars)


def run_controls(
    predict: Predict,
    variables: Any,
    table: SliceTable,
    pairing: Pairing,
    controls: Mapping[str, Control],
    *,
    scale: int,
    positions: Sequence[int] | None = None,
    show_progress: bool = False,
) -> Iterator[dict[str, Prediction]]:
    """`run_split` under every control, slice by slice: control -> prediction.

    A control that is the same as another shares its prediction.
    """
    streams = {
        name: run_split(
            predict,
            variables,
            table,
            pairing,
            scale=scale,
            positions=positions,
            images=control.images,
            show_progress=show_progress and name == "pair",
        )
        for name, control in controls.items()
        if not control.same_as
    }
    for rows in zip(*streams.values(), strict=True):
        found = dict(zip(streams, rows, strict=True))
        yield {name: found[c.same_as or name] for name, c in controls.items()}


def evenly_spaced(count: int, most: int) -> list[int]:
    """At most so many of `count` positions, the first and the last among them."""
    places = np.linspace(0, count - 1, min(count, most)).round()
    return places.astype(int).tolist()
