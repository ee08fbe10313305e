"""EDSR x4: residual blocks without normalisation.

Reproduces: its rows of Table 1. Not run at that size here.
Source: B. Lim et al., "Enhanced deep residual networks for single image
    super-resolution", CVPRW 2017; the recipe is BasicSR's.
Hardware: a GPU; hours are not measured yet. `small`: 2 CPU cores, minutes.
Data: as for `fastmri_x4`: `--config.data.root` is a fastMRI folder or a NIfTI tree.
Command:
    python train.py --config configs/edsr_x4.py --config.data.root=DIR --workdir=DIR

`configs/edsr_x4.py:common` (default), `:published` and `:small` are explained in
`configs/protocol.py`; x2 and x3 are `--config.scale=2` and `3`.
`--config.model.name=` takes the variants too: `edsr` (M) and `edsr_l`.
Published: L1, Adam 1e-4 (0.9, 0.99), batch 16, LR crop 48, 300,000 steps, halved at
200,000, EMA 0.999.
"""

from typing import Any

from ml_collections import ConfigDict

from configs import protocol


def get_config(preset: str = "common") -> ConfigDict:
    """The experiment; `preset` is "common", "published" or "small"."""
    config: Any = protocol.compared(
        "edsr",
        preset or "common",
        small={"features": 24, "blocks": 8},
    )
    if config.preset == "published":
        config.train.batch_size = 16
        config.train.crop = 48
        config.train.steps = 300000
        config.train.ema_decay = 0.999
        config.optimiser.learning_rate = 0.0001
        config.optimiser.b2 = 0.99
        config.optimiser.schedule = "milestones"
        config.optimiser.milestones = (200000,)
    return config.lock()
