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

from daasr_jax.errors import UserError


def size(text: str) -> tuple[int, int]:
    """`256x192` as height and width."""
    found = re.fullmatch(r"([1-9]\d{0,4})x([1-9]\d{0,4})", text)
    if found is None:
        raise argparse.ArgumentTypeError(f"{text!r} is no HEIGHTxWIDTH")
    return int(found[1]), int(found[2])


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    from daasr_jax.experiment.export import write_artefact, write_weights
    from daasr_jax.experiment.manual import command_parser
    from daasr_jax.experiment.places import place
    from daasr_jax.runtime import devices
    from daasr_jax.runtime.console import make_printable

    parser = command_parser("python -m daasr_jax.export", __doc__)
    add = parser.add_argument
    add("--checkpoint", required=True, help="a released name, a file or a run")
    add("--out", required=True, type=place, help="the file to write")
    add("--size", type=size, help="of the LR slices; by default any")
    add("--about", type=place, help="JSON, see above")
    make_printable()
    options = parser.parse_args(arguments)
    try:
        devices.find()
        if options.out.suffix == ".safetensors":
            sha256 = write_weights(options.checkpoint, options.out, options.about)
            last = f"sha256 {sha256}"
        else:
            last = write_artefact(options.checkpoint, options.out, options.size)
    except UserError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    print(f"wrote {options.out}: {last}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
