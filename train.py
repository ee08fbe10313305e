"""Trains a model: `python train.py --config configs/fastmri_x4.py --workdir DIR`."""

from typing import Any

from absl import flags

from daasr_jax.experiment import cli

DRY_RUN = flags.DEFINE_bool(
    "dry_run", False, "Check the data, print memory, steps and speed; train nothing."
)


def main(config: Any, workdir: str) -> None:
    """Runs the training that the configuration describes."""
    from daasr_jax.experiment.dry_run import dry_run
    from daasr_jax.experiment.train import train_run

    if DRY_RUN.value:
        dry_run(config)
    else:
        train_run(config, workdir)


if __name__ == "__main__":
    cli.run(main)
