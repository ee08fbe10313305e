"""The ablations of the paper's section 4.4 on fastMRI x4, one row by its name.

Reproduces: by argument, `configs/ablation_x4.py:ROW`,

    ROW                                        of the paper          x4 there, dB
    full (default)                             DAASR itself          33.41
    without_both                               Table 2, w/o CWT&SAT  32.82
    without_cwt, without_sat                   Table 2               33.09, 32.60
    cwt_to_conv, cwt_to_se, cwt_to_window      Table 3               31.96, 32.67, 32.93
    without_matching, without_f_cwt            Table 4               31.56, 32.12
    cross_attention                            Table 4               32.80
    without_p, without_c, without_p_c          Figure 6              pictures only
    crop_10, crop_20, crop_40                  Table 5               32.76, 33.03, full
    lambda_0.1_0.02, lambda_0.5_0.01           Table 6               31.56, 32.12
    lambda_0.01_0.1, lambda_0.3_0.09           Table 6               32.61, 32.40
    lambda_0.1_0.01                            Table 6               full

    Each row changes what its name says and nothing else: batch, epochs and learning
    rates stay. Names that are one network: `without_p_c` is `without_matching` (neither
    search nor score is left in either), `crop_40` and `lambda_0.1_0.01` are `full`.
    The paper draws Figure 6 and half of Table 5 from its private brain set; here all is
    fastMRI. Table 5's "patch size" is read as the LR training crop: `crop_10` sees a
    sixteenth of the pixels of `full` in each batch; evaluation is on whole slices.
    Table 6's pairs are (lambda_2, lambda_3), of the CWT and of the SAT term. Not run
    here: fastMRI needs its own licence; `ablation_x4_small` runs on small data.
Hardware: as `fastmri_x4`; hours of a run on a GPU: not measured yet.
Data: as `fastmri_x4`.
Command:
    python train.py --config configs/ablation_x4.py:ROW --config.data.root=DIR \
        --workdir=DIR

The preset is `paper`, whose groups hold nothing besides CWT and SAT: `without_both` is
the convolutions before and after them. x2 and x3 are `--config.scale=2` and `3`.
"""

from typing import Any

from ml_collections import ConfigDict

from configs import fastmri_x4


def _model(**names: str) -> dict[str, Any]:
    return {f"model.kwargs.{part}.name": name for part, name in names.items()}


def _lambdas(cwt: float, sat: float) -> dict[str, Any]:
    return {"losses.cwt.weight": cwt, "losses.sat.weight": sat}


ROWS: dict[str, dict[str, Any]] = {
    "full": {},
    "without_cwt": _model(structure="ablations.identity"),
    "without_sat": _model(align="none", detail="none"),
    "without_both": _model(structure="ablations.identity", align="none", detail="none"),
    "cwt_to_conv": _model(structure="ablations.conv"),
    "cwt_to_se": _model(structure="ablations.se"),
    "cwt_to_window": _model(structure="ablations.window"),
    "without_matching": _model(align="ablations.own_position"),
    "without_f_cwt": _model(fuse="ablations.without_f_cwt"),
    "cross_attention": _model(align="ablations.cross_attention"),
    "without_p": _model(align="ablations.without_p"),
    "without_c": _model(fuse="ablations.without_c"),
    "without_p_c": _model(align="ablations.own_position"),
    "crop_10": {"train.crop": 10},
    "crop_20": {"train.crop": 20},
    "crop_40": {"train.crop": 40},
    "lambda_0.1_0.02": _lambdas(0.1, 0.02),
    "lambda_0.5_0.01": _lambdas(0.5, 0.01),
    "lambda_0.01_0.1": _lambdas(0.01, 0.1),
    "lambda_0.3_0.09": _lambdas(0.3, 0.09),
    "lambda_0.1_0.01": _lambdas(0.1, 0.01),
}


def ablate(
    config: Any, name: str, row: str, rows: dict[str, dict[str, Any]]
) -> ConfigDict:
    """The base configuration, named `name`, with the edits of a row.

    Raises:
        ValueError: If no row has that name.
    """
    if row not in rows:
        raise ValueError(f"row must be one of {', '.join(rows)}, got {row!r}")
    with config.unlocked():
        config.name = name
        config.preset = row
        config.update_from_flattened_dict(rows[row])
    return config


def get_config(row: str = "full") -> ConfigDict:
    """The experiment; `row` is a key of `ROWS`."""
    base = fastmri_x4.get_config("paper")
    return ablate(base, "ablation_x4", row or "full", ROWS)
