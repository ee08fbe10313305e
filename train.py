"""Trains a model: `python train.py --config configs/fastmri_x4.py --workdir DIR`."""

from typing import Any

from daasr_jax import cli


def main(config: Any, workdir: str) -> None:
    """Runs the training that the configuration describes."""
    from daasr_jax.runs import train_run

    train_run(config, workdir)


if __name__ == "__main__":
    cli.run(main)
