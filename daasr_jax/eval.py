"""Evaluates a run: its own configuration is the experiment.

    python eval.py --workdir RUN [--split test] [--config.data.root=DIR] \\
        [--config.reference.KEY=VALUE ...] [--config.evaluate.KEY=VALUE ...]

Beside the run only places, references and settings of the evaluation can be given. A
data root without the run's subjects is other data: all its subjects are evaluated, or
those of --subjects. Without --workdir the runs that lie here are listed. --controls
asks whether the network uses its reference: it evaluates the same weights with other
references. In an installed package the command is `python -m daasr_jax.eval`.
"""

from pathlib import Path
from typing import Any

from absl import flags

from daasr_jax.experiment import cli

SPLIT = flags.DEFINE_string("split", "test", "Split: train, val or test.")
SUBJECTS = flags.DEFINE_string(
    "subjects", "", "Evaluate these instead, comma-separated."
)
OVERLAP = flags.DEFINE_bool(
    "allow_overlap",
    False,
    "Evaluate subjects that the run learned from; it is reported.",
)
OUT = flags.DEFINE_string(
    "out",
    "",
    "Result file (.json), by default RUN/eval_SPLIT_TRACK.json, with --controls "
    "RUN/eval_SPLIT_controls.json; picture beside.",
)
CONTROLS = flags.DEFINE_bool(
    "controls",
    False,
    "Evaluate with other references too: of another subject, the neighbouring slice, "
    "another contrast, shuffled, noisy, none, and the target itself.",
)
FORCE = flags.DEFINE_bool("force", False, "Replace a result that is there.")
LPIPS = flags.DEFINE_bool("lpips", False, "Measure LPIPS too, AlexNet and VGG-16.")


def evaluate(config: Any, workdir: str | None) -> None:
    """Measures the best checkpoint, prints the table and the paths of the results.

    Args:
        config: What `--config` gives, to be compared with the run's; None without.
        workdir: Folder of the run; None lists the runs.

    Raises:
        UserError: For anything a user can mend, see `daasr_jax.errors`.
    """
    from daasr_jax.evaluation.controls_report import (
        describe_controls,
        make_controls_table,
    )
    from daasr_jax.evaluation.report import make_table
    from daasr_jax.evaluation.words import describe_run
    from daasr_jax.experiment.controls import control_run
    from daasr_jax.experiment.evaluate import evaluate_tracks
    from daasr_jax.experiment.opening import EvaluationRequest
    from daasr_jax.experiment.saved_run import list_runs
    from daasr_jax.runtime import hosts
    from daasr_jax.runtime.console import console

    if not workdir:
        print(list_runs(Path()))
        return
    request = EvaluationRequest(
        given=cli.given(),
        config=config,
        split=SPLIT.value,
        subjects=SUBJECTS.value,
        allow_overlap=OVERLAP.value,
        out=OUT.value,
        force=FORCE.value,
        lpips=LPIPS.value,
        names=cli.NAMES.value,
    )

    def show(report: dict[str, Any]) -> None:
        if hosts.number():
            return  # the first process reports
        table = make_controls_table if CONTROLS.value else make_table
        console(width=120 if LPIPS.value else 80).print(table(report))
        lines = describe_controls(report) if CONTROLS.value else {}
        for name, text in (lines | describe_run(report)).items():
            print(f"{name + ':':<12}{text}")

    if CONTROLS.value:
        results = iter([control_run(workdir, request, show)])
    else:
        results = evaluate_tracks(workdir, request, show)
    for _, result, picture in results:
        if not hosts.number():
            print(f"result:     {result}\npicture:    {picture}")


def main() -> None:
    """The command."""
    cli.run(evaluate, of_run=True)


if __name__ == "__main__":
    main()
