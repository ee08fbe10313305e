"""Weights that come with the package: files of safetensors, a card each, their hashes.

`index.json` names them. `NAME.safetensors` holds the arrays and, under the key `about`,
what is needed to use them, as JSON; `NAME.md` is the card. A file is compared with the
SHA-256 in the index beside it before it is used.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from safetensors import SafetensorError, safe_open
from safetensors import numpy as tensors

import daasr_jax
from daasr_jax.errors import CheckpointError, UserError
from daasr_jax.files import read_json, write_atomically
from daasr_jax.models.network import make_network, variable_shapes

FOLDER = Path(str(files(__name__)))
INDEX = "index.json"
_TEXTS = ("file", "sha256")  # of an entry of the index
FORM = 1  # of the files
_TRAINING_ALONE = "params/head_"  # the pictures of Eq. 12 and 13: not kept
# What a user must know of weights, where whoever trained them has not said otherwise.
USUAL = {
    "data_consistency": False,  # SR's centre of k-space is LR's
    "normalisation": "each volume over its maximum",
    "spacing_mm": None,  # least and most pixel side of the training slices at HR
    "low_confidence": 0.5,  # C below it says that a place was found nowhere
    "training": {},  # data, split, commit, hours and figures, or where they stand
}


class Weights(NamedTuple):
    """A network that is ready to be applied.

    Attributes:
        model: Of `daasr_jax.models`.
        variables: `params` and `batch_stats`, float32.
        about: JSON-ready: `scale`, `model`, `kwargs`, `degradation`, those of `USUAL`,
            and `source`: what names the weights in a report, its SHA-256 included.
    """

    model: Any
    variables: dict[str, Any]
    about: dict[str, Any]


def names() -> dict[str, dict[str, Any]]:
    """Name -> file, SHA-256, bytes and scale of the weights of the package."""
    return _index(FOLDER)


def save(path: Path, variables: Mapping[str, Any], about: Mapping[str, Any]) -> str:
    """Writes weights, and their hash into `index.json` beside them.

    Parameters are kept in float16, statistics and what float16 cannot hold in float32.
    The heads of the auxiliary pictures are not kept: they are zero once loaded.

    Args:
        path: `NAME.safetensors`, replaced where it is there.
        variables: `params`, and `batch_stats` where there are any.
        about: `scale`, `model` (its registered name), `kwargs` (see
            `registry.resolved`) and `degradation`; those of `USUAL` where they differ.

    Returns:
        SHA-256 of the file.

    Raises:
        ValueError: If `about` lacks something, or a value is not finite.
    """
    lacking = {"scale", "model", "kwargs", "degradation"} - set(about)
    if lacking:
        raise ValueError(f"about lacks {', '.join(sorted(lacking))}.")
    written = {"form": FORM, "package": daasr_jax.__version__, **USUAL, **about}
    arrays = {
        name: _stored(name, x)
        for name, x in flatten_dict(variables, sep="/").items()
        if not name.startswith(_TRAINING_ALONE)
    }
    data = tensors.save(arrays, {"about": json.dumps(written, sort_keys=True)})
    write_atomically(path, data)
    sha256 = hashlib.sha256(data).hexdigest()
    entry = {"file": path.name, "sha256": sha256, "bytes": len(data)}
    index = _index(path.parent) | {path.stem: entry | {"scale": about["scale"]}}
    text = json.dumps(index, indent=1, sort_keys=True) + "\n"
    write_atomically(path.parent / INDEX, text)
    return sha256


def load(name: str | Path) -> Weights:
    """Released weights by name, or a file of that form by its path.

    Args:
        name: Such as `"x4"`, or the path of a `.safetensors` file.

    Raises:
        CheckpointError: If there are none (E420), or they are damaged, or of another
            version or network (E421).
    """
    path = Path(name)
    stamp = path.stat().st_mtime_ns if path.is_file() else 0
    return _load(str(name), stamp)


@functools.lru_cache(maxsize=4)
def _load(name: str, stamp: int) -> Weights:
    path = Path(name)
    if path.suffix != ".safetensors":
        known = names()
        if name not in known:
            there = ", ".join(known) or "none in this installation"
            raise CheckpointError(
                "E420",
                f"no weights are called {name!r}; released are: {there}. Give one "
                "of these, the folder of a run, or a .safetensors file.",
            )
        path = FOLDER / known[name]["file"]
    try:
        data = path.read_bytes()
    except OSError as error:
        raise _unusable(path, f"it cannot be read ({error.strerror})") from None
    sha256 = hashlib.sha256(data).hexdigest()
    wanted = _index(path.parent).get(path.stem, {}).get("sha256")
    if wanted is not None and sha256 != wanted:
        raise _unusable(
            path, f"its SHA-256 is {sha256[:12]}..., {INDEX} says {wanted[:12]}..."
        )
    try:
        arrays = tensors.load(data)
        with safe_open(path, "numpy") as file:
            about = {**USUAL, **json.loads(file.metadata()["about"])}
        if about.get("form") != FORM:
            raise ValueError(f"its form is {about.get('form')}, this version reads 1")
        model = make_network(
            about["model"],
            scale=about["scale"],
            kwargs=about["kwargs"],
            data_consistency=about["data_consistency"],
        )
        variables = _nested(arrays, variable_shapes(model, about["scale"]))
    except (SafetensorError, ValueError, KeyError, TypeError, UserError) as error:
        raise _unusable(path, " ".join(str(error).split())) from None
    source = {"weights": path.stem, "sha256": sha256}
    source |= {"hash_was_checked": wanted is not None}
    return Weights(model, variables, about | {"source": source})


def _stored(name: str, given: Any) -> np.ndarray:
    value = np.asarray(given)
    if not np.isfinite(value).all():
        raise ValueError(f"{name} is not finite.")
    fits = np.abs(value).max(initial=0.0) <= np.finfo(np.float16).max
    half = name.startswith("params/") and fits
    return np.asarray(value, np.float16 if half else np.float32, order="C")


def _nested(arrays: Mapping[str, np.ndarray], shapes: Any) -> dict[str, Any]:
    """The arrays as the model's variables.

    Raises:
        ValueError: If one is missing, left over, or of another shape.
    """
    leaves: dict[str, Any] = flatten_dict(shapes, sep="/")  # pyright: ignore
    wanted = {name: x.shape for name, x in leaves.items()}
    heads = {
        name: np.zeros(shape, np.float32)
        for name, shape in wanted.items()
        if name.startswith(_TRAINING_ALONE)
    }
    wrong = sorted(
        name
        for name in {*wanted, *arrays} - {*heads}
        if name not in wanted
        or name not in arrays
        or arrays[name].shape != wanted[name]
    )
    if wrong:
        raise ValueError(
            f"{len(wrong)} of its arrays are not those of the network, such as "
            f"{wrong[0]}"
        )
    values = {k: jnp.asarray(x, jnp.float32) for k, x in (heads | {**arrays}).items()}
    return unflatten_dict(values, sep="/")


def _index(folder: Path) -> dict[str, dict[str, Any]]:
    try:
        index = read_json(folder / INDEX)
        if not isinstance(index, dict):
            raise ValueError("it is no mapping of names")
        for name, entry in index.items():
            texts = [entry.get(k) for k in _TEXTS] if isinstance(entry, dict) else []
            if not texts or not all(isinstance(x, str) for x in texts):
                raise ValueError(f"{name!r} lacks {' or '.join(_TEXTS)}")
        return index
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise _unusable(folder / INDEX, f"it cannot be read ({error})") from None


def _unusable(path: Path, reason: str) -> CheckpointError:
    return CheckpointError(
        "E421",
        f"{path} cannot be used: {reason}; install the package again, or give another "
        "--checkpoint.",
    )
