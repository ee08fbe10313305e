"""SRCNN x4: three convolutions on the bicubic image.

Reproduces: its rows of Table 1. Not run at that size here.
Source: C. Dong et al., "Image super-resolution using deep convolutional networks",
    TPAMI 2016.
Hardware: a GPU; hours are not measured yet. `small`: 2 CPU cores, minutes.
Data: as for `fastmri_x4`: `--config.data.root` is a fastMRI folder or a NIfTI tree.
Command:
    python train.py --config configs/srcnn_x4.py --config.data.root=DIR --workdir=DIR

`configs/srcnn_x4.py:common` (default), `:published` and `:small` are explained in
`configs/protocol.py`; x2 and x3 are `--config.scale=2` and `3`.
`--config.model.name=` takes the variants too: `srcnn` (9-5-5) and `srcnn_915`.
Published: mean squared error, SGD with momentum 0.9, 1e-4 and a tenth of it for the
last layer, initial weights N(0, 0.001). Crop, batch and length are the common ones: its
sub-images of ImageNet have no counterpart here.
"""

from typing import Any

from ml_collections import ConfigDict

from configs import protocol


def get_config(preset: str = "common") -> ConfigDict:
    """The experiment; `preset` is "common", "published" or "small"."""
    config: Any = protocol.compared(
        "srcnn",
        preset or "common",
        small={},
    )
    if config.preset == "published":
        config.losses.rec.name = "pixel.mse"
        config.model.kwargs.start = "published"
        config.optimiser.name = "sgd"
        config.optimiser.learning_rate = 1e-4
        config.optimiser.schedule = "constant"
        config.optimiser.slow = "^reconstruct/"
        config.optimiser.slow_factor = 0.1
    return config.lock()
