"""A small DAASR x4 on a public set of heads, trained with good and bad references.

Reproduces: nothing of the paper; with public data anybody can repeat it.
Hardware: 2 CPU cores; the steps and the network are those of `brain_x4_small`.
Data: OpenNeuro ds002748 version 1.0.5, T1-weighted, skull-stripped, CC0, doi
    10.18112/openneuro.ds002748.v1.0.5, by default in `data/ds002748`. The split names
    24 of its 72 subjects: 16 train, 2 validate, 6 test. docs/data.md: how to get it.
Command:
    python train.py --config configs/brain_ds002748_x4_small.py --workdir=DIR
"""

from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from configs import brain_x4_small


def get_config(preset: str = "fast") -> ConfigDict:
    """`brain_x4_small` on middle slices 2 mm apart, with mixed references."""
    config: Any = brain_x4_small.get_config(preset)
    with config.unlocked():
        config.name = "brain_ds002748_x4_small"
        config.data.usual_root = "data/ds002748"
        config.data.split_file = str(Path(__file__).parent / "splits/ds002748.json")
        config.data.slice_first = 0.25
        config.data.slice_last = 0.85
        config.data.slice_step = 2
        config.reference.track = "mixed"
    return config
