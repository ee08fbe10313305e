"""Trains a model: `python train.py --config configs/fastmri_x4.py --workdir DIR`."""

from daasr_jax import cli


def main(config) -> None:
    """Runs the training that the configuration describes."""
    from daasr_jax.build import train_run

    train_run(config, cli.WORKDIR.value)


if __name__ == "__main__":
    cli.run(main)
