"""Writes a network as one file.

    python -m daasr_jax.export --checkpoint RUN --out NAME.safetensors

With an --out that ends in .safetensors: the weights of a run in the form of those that
come with the package, and their SHA-256 in index.json beside them. --about adds what
the run does not tell: spacing_mm, low_confidence, training.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from daasr_jax.errors import UserError


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    from daasr_jax.experiment.export import write_weights
    from daasr_jax.experiment.manual import exit_codes
    from daasr_jax.experiment.places import place
    from daasr_jax.runtime import devices
    from daasr_jax.runtime.console import make_printable

    parser = argparse.ArgumentParser(
        prog="python -m daasr_jax.export",
        description=__doc__,
        epilog="exit codes:\n" + exit_codes(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--checkpoint", required=True, help="a released name or a run")
    parser.add_argument("--out", required=True, type=place, help="the file to write")
    parser.add_argument("--about", type=place, help="JSON, see above")
    make_printable()
    options = parser.parse_args(arguments)
    try:
        devices.find()
        sha256 = write_weights(options.checkpoint, options.out, options.about)
    except UserError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    print(f"wrote {options.out}\nsha256 {sha256}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
