"""The ablations of the paper's section 4.4 at a size that trains on a laptop.

Reproduces: which way each row of Tables 2 to 6 and Figure 6 moves, by the small network
    of `brain_x4_small`, not the paper's figures. The rows are those of `ablation_x4`,
    `configs/ablation_x4_small.py:ROW`, and mean the same, with two reservations: `full`
    has an LR crop of 16, so `crop_10`, `crop_20` and `crop_40` are compared among
    themselves; the perceptual term is off, so Table 6 weighs the L1 terms alone.
Hardware: 2 CPU cores, about 20 minutes a row, `crop_40` several times that. All rows by
    one command: docs/reproduce.md.
Data: `--config.data.root` is a NIfTI folder tree or a fastMRI folder.
Command:
    python train.py --config configs/ablation_x4_small.py:ROW \
        --config.data.root=DIR --workdir=DIR

Rows beyond the paper: `without_detail` (the reference's own pixels), `literal_gate`
(`T * C`), `literal_fusion` (C on all of Eq. 11), `shared_query` (search, gate and
fusion as the text has them, by one extractor; no pixels), `two_phases` (patches between
the cells too).

The preset is `fast`: the group block (Conv3, ReLU, Conv3) stays in every row, so that
`without_both` is a plain convolutional network. With `paper` nothing would be left in
its groups.
"""

from typing import Any

from ml_collections import ConfigDict

from configs import ablation_x4, brain_x4_small

_KWARGS = "model.kwargs."

ROWS: dict[str, dict[str, Any]] = ablation_x4.ROWS | {
    # The parts that stand in for those of the paper have their own.
    "without_f_cwt": {_KWARGS + "fuse.name": "ablations.gated_without_f_cwt"},
    "without_c": {
        _KWARGS + "fuse.name": "ablations.without_c",
        _KWARGS + "detail.name": "ablations.gain_without_c",
    },
    "without_detail": {_KWARGS + "detail.name": "none"},
    "two_phases": {_KWARGS + "phases": 2},
    "literal_gate": {_KWARGS + "fuse.gate": "literal"},
    "literal_fusion": {_KWARGS + "fuse.name": "sat.fusion"},
    "shared_query": {
        _KWARGS + "query": "shared",
        _KWARGS + "fuse.name": "sat.fusion",
        _KWARGS + "detail.name": "none",
    },
}


def get_config(row: str = "full") -> ConfigDict:
    """The experiment; `row` is a key of `ROWS`."""
    base = brain_x4_small.get_config("fast")
    return ablation_x4.ablate(base, "ablation_x4_small", row or "full", ROWS)
