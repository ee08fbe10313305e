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

import jax
from rich.table import Table

from daasr_jax import released
from daasr_jax.models.network import make_network, variable_shapes
from daasr_jax.registry import MODELS
from daasr_jax.resampling import SCALES
from daasr_jax.runtime.console import console


def parameters(name: str, scale: int) -> int:
    """Number of parameters of the model of that name; running statistics are none.

    Raises:
        ConfigError: If no model has that name.
    """
    shapes = variable_shapes(make_network(name, scale=scale, kwargs={}), scale)
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
    found = released.names()
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
            str(released.FOLDER / f"{name}.md"),
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
