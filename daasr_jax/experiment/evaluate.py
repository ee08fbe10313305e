"""Evaluation of runs: scores of a split, the report and the picture."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax

import daasr_jax
from daasr_jax import data
from daasr_jax.errors import CheckpointError, ConfigError, ResourceError
from daasr_jax.evaluation import predict as evaluation
from daasr_jax.evaluation.panel import draw_panel, typical
from daasr_jax.evaluation.report import make_report
from daasr_jax.experiment import checks, parts
from daasr_jax.experiment.installation import command, commit_id
from daasr_jax.experiment.places import place
from daasr_jax.experiment.record import (
    config_sha256,
    trained_with,
    warn_of_other_model,
)
from daasr_jax.experiment.saved_run import restore
from daasr_jax.files import write_atomically
from daasr_jax.metrics.lpips import SMALLEST, load_lpips
from daasr_jax.runtime import devices
from daasr_jax.runtime.failures import explained

Config = Any  # an ml_collections.ConfigDict, whose attributes no checker knows


@explained()
def evaluate_run(
    config: Config, workdir: str, split: str, out: str | None, *, lpips: bool = False
) -> tuple[dict[str, Any], Path, Path]:
    """Evaluates the best checkpoint of `workdir` on a split.

    Args:
        config: Configuration; its data and reference settings are those evaluated.
        workdir: Folder of the run.
        split: `"train"`, `"val"` or `"test"`.
        out: Result file; by default `workdir/eval_<split>.json`. The panel picture
            lies beside it with the ending `.png`.
        lpips: Measure LPIPS too, with both nets.

    Returns:
        The report, and the paths of result file and picture.

    Raises:
        UserError: If data or checkpoint cannot be used.
    """
    checks.setup(config)
    folder = place(workdir)
    if not (folder / "checkpoints").is_dir():
        raise CheckpointError(
            "E403",
            f"{folder} holds no checkpoints; train into it first: {command('train')}",
        )
    if split not in ("train", "val", "test"):
        raise ConfigError("E228", f"--split must be train, val or test, got {split!r}.")
    target = place(out) if out else folder / f"eval_{split}.json"
    if target.suffix != ".json":
        raise ConfigError("E229", f"--out must end in .json, got {target}.")
    border = checks.metric_border(config)
    side = config.data.size // config.scale * config.scale - 2 * border
    if lpips and side < max(SMALLEST.values()):
        raise ConfigError(
            "E231",
            f"slices less the border have {side} pixels a side and --lpips needs "
            f"{max(SMALLEST.values())}; raise --config.data.size or leave --lpips out.",
        )
    weights = {net: load_lpips(net) for net in SMALLEST} if lpips else None
    model = parts.make_model(config)
    prepared = data.prepare(parts.data_settings(config))
    table = prepared.splits[split]
    if not len(table):
        raise ConfigError(
            "E228",
            f"the {split} split is empty; give another --split or more subjects.",
        )
    pairing = parts.make_pairing(config, table)
    warn_of_other_model(config.to_dict(), folder)
    step, variables = restore(config, folder)
    method = config.model.name
    predict = evaluation.make_predict(
        model,
        scale=config.scale,
        border=border,
        method=method,
        lpips=weights,
        mesh=devices.local_mesh(config.train.devices),
    )

    def predictions(**kwargs: Any):
        return evaluation.run_split(
            predict, variables, table, pairing, scale=config.scale, **kwargs
        )

    rows = evaluation.of_all_processes(
        predictions(show_progress=config.evaluate.show_progress), len(table)
    )
    commit = commit_id()
    report = make_report(
        rows,
        table,
        pairing,
        method=method,
        scale=config.scale,
        border=border,
        resamples=config.evaluate.resamples,
        seed=config.evaluate.seed,
        provenance={
            "dataset": prepared.dataset,
            "prepared_sha256": prepared.key,
            "config": config.name,
            "preset": config.preset,
            "config_sha256": config_sha256(config.to_dict()),
            "commit": commit,
            "checkpoint_step": step,
            "parameters": sum(x.size for x in jax.tree.leaves(variables["params"])),
            "training": trained_with(folder),
            "device": devices.description(),
            "versions": {"daasr_jax": daasr_jax.__version__, "jax": jax.__version__},
        },
    )
    chosen = typical(rows, method)
    picture = target.with_suffix(".png")
    if jax.process_index():
        return report, target, picture
    shown = next(predictions(positions=[chosen.position]))
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(target, json.dumps(report, indent=1, allow_nan=False))
        pairing.save(target.with_suffix(".pairing.json"))
        draw_panel(
            shown,
            method=method,
            scale=config.scale,
            titles=(table.keys[shown.position], table.keys[shown.reference]),
            path=picture,
        )
    except OSError as error:
        raise ResourceError(
            "E604",
            f"cannot write beside {target}: {error.strerror}; give another --out.",
        ) from None
    return report, target, picture
