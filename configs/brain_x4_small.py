"""A DAASR x4 that trains in minutes on a laptop: 24 features, 3 groups.

Reproduces: nothing of the paper; it is the smallest network that shows its parts at
    work on real scans.
Hardware: 2 CPU cores, under 20 minutes.
Data: `--config.data.root` is a NIfTI folder tree or a fastMRI folder.
Command:
    python train.py --config configs/brain_x4_small.py --config.data.root=DIR \
        --workdir=DIR
"""

from typing import Any

from ml_collections import ConfigDict

from configs import fastmri_x4


def get_config(preset: str = "fast") -> ConfigDict:
    """The experiment; `preset` is "fast" or "paper"."""
    config: Any = fastmri_x4.get_config(preset or "fast")
    with config.unlocked():
        config.name = "brain_x4_small"
        config.data.n_volumes = 0
        config.data.usual_root = "data/brain"
        config.model.kwargs.features = 24
        config.model.kwargs.groups = 3
        config.train.batch_size = 8
        config.train.crop = 16
        config.train.steps = 6000
        config.train.log_every = 100
        config.train.validate_every_epochs = 10
        config.perceptual.network = "none"  # it would take most of the time
        config.optimiser.learning_rate = 2e-3
        config.optimiser.schedule = "cosine"
        config.optimiser.warmup_steps = 200
    return config
