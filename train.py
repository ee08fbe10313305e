"""Trains a model: `python train.py --config configs/fastmri_x4.py`."""

from daasr_jax.train import main

if __name__ == "__main__":
    main()
