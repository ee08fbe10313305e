"""Reference controls of a run: the same weights with other references."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from daasr_jax.evaluation.controls import draw_controls, run_controls, uses_reference
from daasr_jax.evaluation.controls_panel import draw_controls_panel
from daasr_jax.evaluation.controls_report import make_controls_report
from daasr_jax.evaluation.controls_scores import measured
from daasr_jax.evaluation.panel import typical
from daasr_jax.evaluation.predict import Prediction, of_all_processes
from daasr_jax.experiment.evaluate import Show, save
from daasr_jax.experiment.opening import EvaluationRequest, open_split
from daasr_jax.runtime.failures import explained


@explained(evaluating=True)
def control_run(
    workdir: str, request: EvaluationRequest, show: Show | None = None
) -> tuple[dict[str, Any], Path, Path]:
    """Evaluates the best checkpoint of a run with each of `controls.CONTROLS`.

    Run, data and result follow the rules of `evaluate_run`. A control that the data
    cannot give is left out, and the report says why.

    Args:
        workdir: Folder of the run.
        request: What is asked.
        show: Is called with the report, before anything is written.

    Returns:
        The report, and the paths of result file and picture.

    Raises:
        UserError: If data or checkpoint cannot be used.
    """
    run = open_split(workdir, request, "controls")
    scale = run.config.scale
    used = uses_reference(run.model, run.variables, scale=scale)
    controls, left_out = draw_controls(run.table, run.pairing, scale=scale, used=used)

    def predictions(**kwargs: Any) -> Iterator[dict[str, Prediction]]:
        return run_controls(
            run.predict,
            run.variables,
            run.table,
            run.pairing,
            controls,
            scale=scale,
            **kwargs,
        )

    shown = predictions(show_progress=run.config.evaluate.show_progress)
    rows = of_all_processes(
        (measured(found, run.method) for found in shown), len(run.table)
    )
    report = make_controls_report(
        rows,
        run.table,
        run.pairing,
        controls,
        left_out,
        used=used,
        **run.measured(),
    )
    if show:
        show(report)
    chosen = typical(rows, "pair")

    def draw(path: Path) -> None:
        draw_controls_panel(
            next(predictions(positions=[chosen.position])),
            report,
            titles=(run.label(chosen.position), run.label(chosen.reference)),
            path=path,
        )

    return report, run.target, save(run, report, draw)
