"""Compares every checkpoint of a run with the SHA-256 from its writing.

    python -m daasr_jax.experiment.verify RUN

Prints a line for each and moves nothing. Exit code 4 where one cannot be used.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from daasr_jax.errors import CheckpointError
from daasr_jax.experiment.arguments import command_parser, run_command
from daasr_jax.experiment.places import place
from daasr_jax.training.checkpoints import Checkpoints


def verify_run(folder: Path, say: Callable[[str], None]) -> None:
    """Says of every checkpoint of a run whether it can be used.

    Args:
        folder: Of the run.
        say: Is told a line for each.

    Raises:
        CheckpointError: If there is none, or one is damaged or was not finished (E417).
    """
    if not (folder / "checkpoints").is_dir():
        raise CheckpointError(
            "E417", f"{folder} holds no checkpoints: give the folder of a run."
        )
    store = Checkpoints(folder, read_only=True)
    whole, bad = store.steps(), store.unusable()
    store.close()
    for step, words in sorted((dict.fromkeys(whole, "whole") | bad).items()):
        say(f"checkpoint {step}: {words}")
    if bad or not whole:
        left = f"step {whole[-1]} is the newest that can" if whole else "none can"
        raise CheckpointError(
            "E417",
            f"{len(bad)} of {len(bad) + len(whole)} checkpoints in {folder} cannot be "
            f"used, {left}: restore them from a copy, or go on from what is whole.",
        )


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = command_parser("python -m daasr_jax.experiment.verify", __doc__)
    parser.add_argument("run", type=place, metavar="RUN", help="folder of the run")
    return run_command(parser, lambda given: verify_run(given.run, print), arguments)


if __name__ == "__main__":
    sys.exit(main())
