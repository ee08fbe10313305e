"""Trains a model: DAASR, or a system that it is compared with.

    python train.py --config CONFIG [--config.KEY=VALUE ...] [--workdir RUN] [--dry_run]

The same command goes on from the last checkpoint in RUN. RUN is by default
runs/NAME_PRESET, by the configuration's name and preset. The data lie in
--config.data.root, else in $DAASR_DATA, else in the folder that the configuration
gives. In an installed package the command is `python -m daasr_jax.train`.
"""

from typing import Any

from absl import flags

from daasr_jax.experiment import cli

DRY_RUN = flags.DEFINE_bool(
    "dry_run", False, "Check the data, print memory, steps and speed; train nothing."
)
ALLOW_CHANGE = flags.DEFINE_bool(
    "allow_config_change",
    False,
    "Go on with settings that decide what is learned and are not those of the run.",
)
CHECK_DATA = flags.DEFINE_bool(
    "check_data",
    False,
    "Read every file, list those that cannot be used, prepare the others; train "
    "nothing.",
)


def train(config: Any, workdir: str | None) -> None:
    """Runs the training that the configuration describes.

    Args:
        config: The configuration.
        workdir: Folder of the run; None for the usual one.

    Raises:
        UserError: For anything a user can mend, see `daasr_jax.errors`.
    """
    from daasr_jax.experiment.check_data import check_data
    from daasr_jax.experiment.dry_run import dry_run
    from daasr_jax.experiment.train import train_run

    if CHECK_DATA.value:
        check_data(config)
    elif DRY_RUN.value:
        dry_run(config, workdir)
    else:
        train_run(
            config,
            workdir,
            names=cli.NAMES.value,
            allow_change=ALLOW_CHANGE.value,
        )


def main() -> None:
    """The command."""
    cli.run(train)


if __name__ == "__main__":
    main()
