"""DAASR x4 on the MNI152 template that comes with nilearn: the path, not the quality.

Shows: that training, evaluation and picture work on this machine, in minutes, offline.
    The data is one smooth average head, cut into three slabs of axial slices for
    training, validation and test with gaps between them, the reference another slice of
    the same slab. Its figures say nothing about patients.
Hardware: 2 CPU cores, under 6 minutes.
Command:
    make quickstart
"""

from typing import Any

from ml_collections import ConfigDict

from configs import brain_x4_small


def get_config(preset: str = "fast") -> ConfigDict:
    """`brain_x4_small` on the embedded template."""
    config: Any = brain_x4_small.get_config(preset)
    with config.unlocked():
        config.name = "quickstart_x4"
        config.data.layout = "template"
        config.data.resize = "pad"
        config.reference.exclude = "slice"
        config.train.steps = 1500
        config.train.log_every = 100
        config.train.validate_every_epochs = 100
    return config
