"""A DAASR x2 that trains in minutes on a laptop: 24 features, 3 groups.

Reproduces: nothing of the paper; it is the smallest network that shows its parts at
    work on real scans.
Hardware: 2 CPU cores, under 20 minutes.
Data: `--config.data.root` is a NIfTI folder tree or a fastMRI folder.
Command:
    python train.py --config configs/brain_x2_small.py --config.data.root=DIR \
        --workdir=DIR
"""

from typing import Any

from ml_collections import ConfigDict

from configs import brain_x4_small


def get_config(preset: str = "fast") -> ConfigDict:
    """`brain_x4_small` at x2, with a larger LR window and fewer steps."""
    config: Any = brain_x4_small.get_config(preset)
    with config.unlocked():
        config.name = "brain_x2_small"
        config.scale = 2
        config.train.crop = 20
        config.train.steps = 4000
    return config
