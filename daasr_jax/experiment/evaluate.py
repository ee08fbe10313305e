"""Evaluation of runs: scores of a split, the report and the picture."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax

from daasr_jax.errors import ResourceError
from daasr_jax.evaluation import predict as evaluation
from daasr_jax.evaluation.panel import draw_panel, typical
from daasr_jax.evaluation.report import make_report
from daasr_jax.experiment.opening import (
    EvaluationRequest,
    Opened,
    by_track,
    open_split,
    result_files,
)
from daasr_jax.files import replacing, write_atomically
from daasr_jax.runtime.failures import explained

# Is called with a report before it is written.
Show = Callable[[dict[str, Any]], None]


def evaluate_tracks(
    workdir: str, request: EvaluationRequest, show: Show | None = None
) -> Iterator[tuple[dict[str, Any], Path, Path]]:
    """Evaluates a run on its track; one of the track `mixed` on each of the others.

    These are `random`, `aligned` and, where the data have another contrast, `aligned`
    with `contrast`. Each has a result of its own. A file that is asked for gets the
    name of the track before its ending.

    Args:
        workdir: Folder of the run.
        request: What is asked.
        show: Is called with each report, before anything is written.

    Yields:
        What `evaluate_run` returns, for each track.

    Raises:
        UserError: If data or checkpoint cannot be used.
    """
    for one in by_track(workdir, request):
        yield evaluate_run(workdir, one, show)


@explained(evaluating=True)
def evaluate_run(
    workdir: str, request: EvaluationRequest, show: Show | None = None
) -> tuple[dict[str, Any], Path, Path]:
    """Evaluates the best checkpoint of a run.

    The run's own `config.json` is the experiment. What is evaluated is a split of its
    own data, wherever they lie now, or all subjects of other data.

    Args:
        workdir: Folder of the run.
        request: What is asked.
        show: Is called with the report, before anything is written: what was measured
            outlasts a disk that refuses it.

    Returns:
        The report, and the paths of result file and picture. The pairs lie beside them
        in a file that ends in `.pairing.json`.

    Raises:
        UserError: If data or checkpoint cannot be used.
    """
    run = open_split(workdir, request)

    def predictions(**kwargs: Any):
        return evaluation.run_split(
            run.predict,
            run.variables,
            run.table,
            run.pairing,
            scale=run.config.scale,
            **kwargs,
        )

    rows = evaluation.of_all_processes(
        predictions(show_progress=run.config.evaluate.show_progress), len(run.table)
    )
    report = make_report(rows, run.table, run.pairing, **run.measured())
    if show:
        show(report)
    chosen = typical(rows, run.method)

    def draw(path: Path) -> None:
        shown = next(predictions(positions=[chosen.position]))
        draw_panel(
            shown,
            method=run.method,
            scale=run.config.scale,
            titles=(run.label(shown.position), run.label(shown.reference)),
            path=path,
        )

    return report, run.target, save(run, report, draw)


def save(run: Opened, report: dict[str, Any], draw: Callable[[Path], None]) -> Path:
    """Writes report, pairs and picture, in the first process.

    Args:
        run: What was evaluated.
        report: JSON-ready.
        draw: Draws the picture into a file.

    Returns:
        Path of the picture.

    Raises:
        ResourceError: If they cannot be written (E604).
    """
    target, pairs, picture = result_files(run.target)
    if jax.process_index():
        return picture
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(target, json.dumps(report, indent=1, allow_nan=False))
        run.pairing.save(pairs, run.names.slices(run.table))
        with replacing(picture, ".png") as temporary:
            draw(temporary)
    except OSError as error:
        raise ResourceError(
            "E604",
            f"the result cannot be written to {target}: {error.strerror or error}; "
            "give --out=FILE.json in a folder that can be written.",
        ) from None
    return picture
