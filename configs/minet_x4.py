"""MINet x4, repaired: multi-stage integration with a reference.

Reproduces: its rows of Table 1. Not run at that size here.
Source: C.-M. Feng et al., "Multi-contrast MRI super-resolution via a multi-stage
    integration network", MICCAI 2021.
Hardware: a GPU; hours are not measured yet. `small`: 2 CPU cores, minutes.
Data: as for `fastmri_x4`: `--config.data.root` is a fastMRI folder or a NIfTI tree.
Command:
    python train.py --config configs/minet_x4.py --config.data.root=DIR --workdir=DIR

`configs/minet_x4.py:common` (default), `:published` and `:small` are explained in
`configs/protocol.py`; x2 and x3 are `--config.scale=2` and `3`.
Published: L1 of both pictures, RMSprop 1e-5 (divided by 10 after 40 epochs, of which it
makes 35), batch 4, whole slices.

Its own objective gives 0.7 to the reconstruction of its own reference; set
`--config.losses.reference.weight` and `rec.weight` for another balance.
"""

from typing import Any

from ml_collections import ConfigDict

from configs import protocol


def get_config(preset: str = "common") -> ConfigDict:
    """The experiment; `preset` is "common", "published" or "small"."""
    config: Any = protocol.compared(
        "minet",
        preset or "common",
        small={"features": 24, "groups": 2, "blocks": 2},
        losses={
            "rec": ("pixel.rec", 0.3),
            "reference": ("multi_contrast.reference", 0.7),
        },
    )
    if config.preset == "published":
        config.train.batch_size = 4
        config.train.crop = 0
        config.train.epochs = 35
        config.optimiser.name = "rmsprop"
        config.optimiser.b2 = 0.99
        config.optimiser.learning_rate = 1e-5
        config.optimiser.schedule = "constant"
    return config.lock()
