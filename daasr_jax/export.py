"""Writes a network as one file.

    python -m daasr_jax.export --checkpoint NAME --out FILE.jaxexport
    python -m daasr_jax.export --checkpoint RUN --out NAME.safetensors

The first is a program of jax.export with the weights in it, for CPUs and CUDA GPUs. It
runs with JAX alone: jax.export.deserialize(FILE's bytes).call(lr, ref) gives
(sr, C, P). Batch, height and width are free; with --size the height and width of the
LR slices are fixed, which is quicker on a CPU.

The second, by an --out that ends in .safetensors, is the weights of a run in the form
of those that come with the package; index.json beside them gets their SHA-256. --about
adds what the run does not tell: spacing_mm, low_confidence, training.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence

from daasr_jax.errors import ConfigError


def size(text: str) -> tuple[int, int]:
    """`256x192` as height and width."""
    from daasr_jax.enhancement.arrays import LEAST, MOST

    found = re.fullmatch(r"([1-9]\d{0,4})x([1-9]\d{0,4})", text)
    if found is None:
        raise argparse.ArgumentTypeError(f"{text!r} is no HEIGHTxWIDTH")
    sides = int(found[1]), int(found[2])
    if not (min(sides) >= LEAST and max(sides) <= MOST):
        raise argparse.ArgumentTypeError(f"{text}: sides are {LEAST} to {MOST}")
    return sides


def parser() -> argparse.ArgumentParser:
    """The options of the command."""
    from daasr_jax.experiment.arguments import command_parser
    from daasr_jax.experiment.places import given_place

    made = command_parser("python -m daasr_jax.export", __doc__)
    add = made.add_argument
    add("--checkpoint", required=True, help="a released name, a file or a run")
    add("--out", required=True, type=given_place, help="the file to write")
    add("--size", type=size, help="of the LR slices; by default any")
    add("--about", type=given_place, help="JSON, see above")
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    from daasr_jax.experiment.arguments import run_command

    return run_command(parser(), _export, arguments)


def _export(given: argparse.Namespace) -> None:
    from daasr_jax.experiment.export import write_artefact, write_weights
    from daasr_jax.runtime import devices

    devices.find()
    weights = given.out.suffix == ".safetensors"
    if not weights and given.out.suffix != ".jaxexport":
        raise ConfigError(
            "E225",
            f"--out={given.out} has an unknown ending: .jaxexport for a program, "
            ".safetensors for the weights of a run.",
        )
    other = ("--size", ".jaxexport") if weights else ("--about", ".safetensors")
    if given.size if weights else given.about:
        raise ConfigError("E225", "{} is for an --out that ends in {}.".format(*other))
    if weights:
        last = f"sha256 {write_weights(given.checkpoint, given.out, given.about)}"
    else:
        last = write_artefact(given.checkpoint, given.out, given.size)
    print(f"wrote {given.out}: {last}")


if __name__ == "__main__":
    sys.exit(main())
