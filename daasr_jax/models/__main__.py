"""Parameters of every registered model at every scale, or the weights at hand:

    python -m daasr_jax.models [--json]
    python -m daasr_jax.models --released [--json]

Counted on shapes alone: nothing is computed. Single-channel in and out, the fields at
their defaults. `--released` lists the weights that come with the package.
"""

from __future__ import annotations

import argparse
import json
import math
from importlib.resources import files

import jax
import jax.numpy as jnp
from rich.table import Table

from daasr_jax.registry import MODELS
from daasr_jax.runtime.console import console

SCALES = (2, 3, 4)
_SIDE = 16  # of the LR window that shapes the parameters; they do not depend on it


def parameters(name: str, scale: int) -> int:
    """Number of parameters of the model of that name; running statistics are none.

    Raises:
        ConfigError: If no model has that name.
    """
    model = MODELS.get(name)(scale=scale)
    lr = jax.ShapeDtypeStruct((1, _SIDE, _SIDE, 1), jnp.float32)
    ref = jax.ShapeDtypeStruct((1, _SIDE * scale, _SIDE * scale, 1), jnp.float32)
    shapes = jax.eval_shape(
        lambda a, b: model.init(jax.random.key(0), a, b, train=False), lr, ref
    )
    return sum(math.prod(x.shape) for x in jax.tree.leaves(shapes["params"]))


def rows() -> list[dict[str, str | int]]:
    """One row for each model and scale: system, variant, scale, parameters."""
    return [
        {
            "system": MODELS.get(name).__module__.rpartition(".")[2],
            "variant": name,
            "scale": scale,
            "parameters": parameters(name, scale),
        }
        for name in MODELS.names()
        for scale in SCALES
    ]


def print_released(*, as_json: bool) -> None:
    """The weights that come with the package, a row each."""
    folder = files("daasr_jax.released")  # a floor above: its index alone is read
    found = json.loads((folder / "index.json").read_text(encoding="utf-8"))
    if as_json:
        print(json.dumps(found, indent=1))
        return
    table = Table("name", "scale", "MiB", "sha256", "card")
    for name, entry in found.items():
        table.add_row(
            name,
            f"x{entry['scale']}",
            f"{entry['bytes'] / 2**20:.1f}",
            entry["sha256"][:12],
            str(folder / f"{name}.md"),
        )
    console().print(table if found else "no weights come with this package")


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(
        prog="python -m daasr_jax.models", description="Parameters of every model."
    )
    parser.add_argument("--json", action="store_true", help="rows as JSON")
    parser.add_argument(
        "--released", action="store_true", help="the weights that come with the package"
    )
    given = parser.parse_args()
    if given.released:
        print_released(as_json=given.json)
        return
    if given.json:
        print(json.dumps(rows(), indent=1))
        return
    table = Table("system", "variant", "scale", "parameters")
    table.columns[-1].justify = "right"
    for row in rows():
        table.add_row(
            str(row["system"]),
            str(row["variant"]),
            f"x{row['scale']}",
            f"{row['parameters']:,}",
        )
    console().print(table)


if __name__ == "__main__":
    main()
