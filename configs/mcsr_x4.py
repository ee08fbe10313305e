"""MCSR x4, our re-implementation: progressive fusion with a reference.

Reproduces: its rows of Table 1. Not run at that size here.
Source: Q. Lyu et al., "Multi-contrast super-resolution MRI through a progressive
    network", TMI 2020, of which the abstract was at hand and no code.
Hardware: a GPU; hours are not measured yet. `small`: 2 CPU cores, minutes.
Data: as for `fastmri_x4`: `--config.data.root` is a fastMRI folder or a NIfTI tree.
Command:
    python train.py --config configs/mcsr_x4.py --config.data.root=DIR --workdir=DIR

`configs/mcsr_x4.py:common` (default), `:published` and `:small` are explained in
`configs/protocol.py`; x2 and x3 are `--config.scale=2` and `3`.
Published: the abstract names the terms and no weights: mean squared error of both
levels, and adversarial, perceptual and textural terms with this project's weights.
"""

from typing import Any

from ml_collections import ConfigDict

from configs import protocol


def get_config(preset: str = "common") -> ConfigDict:
    """The experiment; `preset` is "common", "published" or "small"."""
    config: Any = protocol.compared(
        "mcsr",
        preset or "common",
        small={"features": 24, "blocks": 4},
        losses={
            "rec": ("pixel.rec", 1.0),
            "level1": ("multi_contrast.level1", 1.0),
        },
    )
    if config.preset == "published":
        config.losses.rec.name = "pixel.mse"
        config.perceptual.network = "vgg19"
        config.perceptual.texture = 0.1
        config.adversarial.objective = "wgan-gp"
    return config.lock()
