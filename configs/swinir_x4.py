"""SwinIR x4: shifted-window attention.

Reproduces: its rows of Table 1. Not run at that size here.
Source: J. Liang et al., "SwinIR: image restoration using Swin Transformer", ICCVW 2021.
Hardware: a GPU; hours are not measured yet. `small`: 2 CPU cores, minutes.
Data: as for `fastmri_x4`: `--config.data.root` is a fastMRI folder or a NIfTI tree.
Command:
    python train.py --config configs/swinir_x4.py --config.data.root=DIR --workdir=DIR

`configs/swinir_x4.py:common` (default), `:published` and `:small` are explained in
`configs/protocol.py`; x2 and x3 are `--config.scale=2` and `3`.
`--config.model.name=` takes the variants too: `swinir` (classical) and `swinir_light`.
Published: L1, Adam 2e-4 (0.9, 0.99), batch 32, LR crop 48, 500,000 steps, halved at
250,000, 400,000, 450,000 and 475,000, EMA 0.999.
"""

from typing import Any

from ml_collections import ConfigDict

from configs import protocol


def get_config(preset: str = "common") -> ConfigDict:
    """The experiment; `preset` is "common", "published" or "small"."""
    config: Any = protocol.compared(
        "swinir",
        preset or "common",
        small={"features": 24, "groups": 2, "blocks": 2, "heads": 2},
    )
    if config.preset == "published":
        config.train.batch_size = 32
        config.train.crop = 48
        config.train.steps = 500000
        config.train.ema_decay = 0.999
        config.optimiser.learning_rate = 0.0002
        config.optimiser.b2 = 0.99
        config.optimiser.schedule = "milestones"
        config.optimiser.milestones = (250000, 400000, 450000, 475000)
    return config.lock()
