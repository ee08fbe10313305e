"""DAASR x4 on fastMRI with the adversarial term (section 4.2 of the paper).

Reproduces: section 4.2, which adopts adversarial training; whether the rows of the
    paper's tables have it is not stated. Both learning rates are 1e-4, as the paper
    gives them for this case, and stay there: it names no decay. Not run here: fastMRI
    needs its own licence.
Hardware: one GPU; hours of a run: not measured yet. A generator that was trained
    without the term is a good start: `--config.train.start_from=RUN`.
Data: as `fastmri_x4`.
Command:
    python train.py --config configs/fastmri_x4_gan.py --config.data.root=DIR \
        --workdir=DIR
"""

from typing import Any

from ml_collections import ConfigDict

from configs import fastmri_x4


def get_config(preset: str = "paper") -> ConfigDict:
    """The experiment; `preset` is "paper" or "fast"."""
    config: Any = fastmri_x4.get_config(preset)
    with config.unlocked():
        config.name = "fastmri_x4_gan"
        config.optimiser.learning_rate = 1e-4
        config.optimiser.schedule = "constant"
        config.adversarial.objective = "bce"
        config.train.best_by = "last"  # PSNR is no measure of what the term does
    return config
