"""DAASR x3 on fastMRI as the paper trains it (section 4.2), without the GAN.

Reproduces: Table 1, FastMRI, x3 (DAASR's own figure is blank in the text at hand), with
    the pixel and perceptual terms of Eq. 12-14; whether the tables have adversarial
    training is not stated. Not run here: fastMRI needs its own licence.
Hardware: the paper used one RTX 4070 Ti Super (16 GB); hours of a run on a GPU: not
    measured yet.
Data: `--config.data.root` holds `*_train` and `*_val` folders of .h5 files, or NIfTI.
Command:
    python train.py --config configs/fastmri_x3.py --config.data.root=DIR --workdir=DIR
"""

from typing import Any

from ml_collections import ConfigDict

from configs import fastmri_x4


def get_config(preset: str = "paper") -> ConfigDict:
    """`fastmri_x4` at x3."""
    config: Any = fastmri_x4.get_config(preset)
    with config.unlocked():
        config.name = "fastmri_x3"
        config.scale = 3
    return config
