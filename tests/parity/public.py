"""Golden arrays of the public implementations: weights rebuilt, outputs stored.

A generator (`generate_<system>_golden.py`) imports a checkout of the public repository,
fills its state dict by `fill`, runs it in float64 where it can and writes `save`. The
file holds names and shapes of the state dict, not its values; a test rebuilds them by
`load`, converts them and compares outputs.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tests.parity.weights import uniform

GOLDEN = Path(__file__).parent / "golden_public"
SEED = 11


def fill(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Values of one tensor, float32, fixed by its name: fan-in scaled, none trivial.

    Vectors named `weight` (of norms) and variances are near 1, other vectors small.
    """
    u = 2 * uniform(shape, seed=SEED, name=name) - 1
    if len(shape) > 1:
        u *= np.sqrt(3 / max(1, np.prod(shape[1:])), dtype=np.float32)
    elif name.endswith(("weight", "running_var")):
        u = 1 + 0.3 * u
    else:
        u *= 0.2
    return u.astype(np.float32)


def image(shape: tuple[int, ...], name: str) -> np.ndarray:
    """An input image in [0, 1], float32, fixed by its name."""
    return uniform(shape, seed=SEED, name=name)


def save(
    file: str,
    state: Mapping[str, tuple[int, ...]],
    about: Mapping[str, Any],
    arrays: Mapping[str, np.ndarray],
) -> None:
    """Writes `golden_public/<file>.npz`.

    Args:
        file: Name without ending, such as `swinir_x4`.
        state: Names and shapes of the learned tensors.
        about: Repository, commit, configuration and versions of the generator.
        arrays: Outputs (and what cannot be rebuilt), small.
    """
    GOLDEN.mkdir(exist_ok=True)
    shapes = {name: list(shape) for name, shape in state.items()}
    np.savez_compressed(
        GOLDEN / f"{file}.npz",
        allow_pickle=False,
        state=np.array(json.dumps(shapes)),
        about=np.array(json.dumps(dict(about))),
        **arrays,
    )


def load(file: str) -> tuple[dict[str, np.ndarray], dict[str, Any], dict[str, Any]]:
    """`(state dict, arrays, about)` of a golden file."""
    with np.load(GOLDEN / f"{file}.npz", allow_pickle=False) as stored:
        arrays = {name: stored[name] for name in stored.files}
    shapes = json.loads(str(arrays.pop("state")))
    about = json.loads(str(arrays.pop("about")))
    return {n: fill(n, tuple(s)) for n, s in shapes.items()}, arrays, about
