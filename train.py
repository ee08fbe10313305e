"""Trains a model: `python train.py --config configs/fastmri_x4.py --workdir DIR`."""

from daasr_jax.train import main

if __name__ == "__main__":
    main()
