"""McMRSR x4: contextual matching with a reference.

Reproduces: its rows of Table 1. Not run at that size here.
Source: G. Li et al., "Transformer-empowered multi-scale contextual matching and
    aggregation for multi-contrast MRI super-resolution", CVPR 2022.
Hardware: a GPU; hours are not measured yet. `small`: 2 CPU cores, minutes.
Data: as for `fastmri_x4`: `--config.data.root` is a fastMRI folder or a NIfTI tree.
Command:
    python train.py --config configs/mcmrsr_x4.py --config.data.root=DIR --workdir=DIR

`configs/mcmrsr_x4.py:common` (default), `:published` and `:small` are explained in
`configs/protocol.py`; x2 and x3 are `--config.scale=2` and `3`.
Published: L1 (its term in k-space needs k-space data), Adam 1e-4 (0.5, 0.999), batch 2,
whole slices, 200 epochs, constant.
"""

from typing import Any

from ml_collections import ConfigDict

from configs import protocol


def get_config(preset: str = "common") -> ConfigDict:
    """The experiment; `preset` is "common", "published" or "small"."""
    config: Any = protocol.compared(
        "mcmrsr",
        preset or "common",
        small={"features": 24, "groups": 1, "blocks": 2, "heads": 2},
    )
    if config.preset == "published":
        config.train.batch_size = 2
        config.train.crop = 0
        config.optimiser.learning_rate = 1e-4
        config.optimiser.b1 = 0.5
        config.optimiser.schedule = "constant"
    return config.lock()
