"""DAASR x2 on a folder of brain scans: the place of the paper's private set.

Reproduces: the setting of Table 1, Brain, x2 (DAASR's own figure is blank in the text
    at hand). The set is private, so only the setting can be reproduced. Not run here.
Hardware: the paper used one RTX 4070 Ti Super (16 GB); hours of a run on a GPU: not
    measured yet.
Data: `--config.data.root` is a tree of NIfTI files, subject by folder
    (`patient01/study1_FLAIR.nii.gz`; other trees by `--config.data.pattern`), or a
    fastMRI folder.
Command:
    python train.py --config configs/brain_x2.py --config.data.root=DIR --workdir=DIR
"""

from typing import Any

from ml_collections import ConfigDict

from configs import fastmri_x2


def get_config(preset: str = "paper") -> ConfigDict:
    """`fastmri_x2` on all volumes of the folder."""
    config: Any = fastmri_x2.get_config(preset)
    with config.unlocked():
        config.name = "brain_x2"
        config.data.n_volumes = 0
        config.data.usual_root = "data/brain"
    return config
