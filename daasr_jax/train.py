"""Trains a model:

    python -m daasr_jax.train --config fastmri_x4 --workdir DIR [--dry_run]

`train.py` in a checkout is the same command.
"""

from typing import Any

from absl import flags

from daasr_jax.experiment import cli

DRY_RUN = flags.DEFINE_bool(
    "dry_run", False, "Check the data, print memory, steps and speed; train nothing."
)


def train(config: Any, workdir: str) -> None:
    """Runs the training that the configuration describes.

    Args:
        config: The configuration.
        workdir: Folder of the run.

    Raises:
        UserError: For anything a user can mend, see `daasr_jax.errors`.
    """
    from daasr_jax.experiment.dry_run import dry_run
    from daasr_jax.experiment.train import train_run

    if DRY_RUN.value:
        dry_run(config)
    else:
        train_run(config, workdir)


def main() -> None:
    """The command."""
    cli.run(train)


if __name__ == "__main__":
    main()
