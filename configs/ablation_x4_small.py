"""The ablations of the paper's section 4.4 at a size that trains on a laptop.

Reproduces: which way each row of Tables 2 to 6 and Figure 6 moves, by the small network
    of `brain_x4_small`, not the paper's figures. The rows are those of `ablation_x4`,
    `configs/ablation_x4_small.py:ROW`, and mean the same, with two reservations: `full`
    has an LR crop of 16, so `crop_10`, `crop_20` and `crop_40` are compared among
    themselves; the perceptual term is off, so Table 6 weighs the L1 terms alone.
Hardware: 2 CPU cores, about 20 minutes a row, `crop_40` several times that; five
    minutes each: docs/results/ablations_small.md.
Data: `--config.data.root` is a NIfTI folder tree or a fastMRI folder.
Command:
    python train.py --config configs/ablation_x4_small.py:ROW \
        --config.data.root=DIR --workdir=DIR

The preset is `fast`: the group block (Conv3, ReLU, Conv3) stays in every row, so that
`without_both` is a plain convolutional network. With `paper` nothing would be left in
its groups.
"""

from ml_collections import ConfigDict

from configs import brain_x4_small
from configs.ablation_x4 import ablate


def get_config(row: str = "full") -> ConfigDict:
    """The experiment; `row` is a key of `ablation_x4.ROWS`."""
    return ablate(brain_x4_small.get_config("fast"), "ablation_x4_small", row or "full")
