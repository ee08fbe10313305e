"""Evaluates a run:

    python -m daasr_jax.eval --config CONFIG --workdir DIR [--split test]

`eval.py` in a checkout is the same command.
"""

from typing import Any

from absl import flags

from daasr_jax.experiment import cli

SPLIT = flags.DEFINE_string("split", "test", "Split: train, val or test.")
OUT = flags.DEFINE_string("out", None, "Result file (.json); the picture goes beside.")
LPIPS = flags.DEFINE_bool("lpips", False, "Measure LPIPS too, AlexNet and VGG-16.")


def evaluate(config: Any, workdir: str) -> None:
    """Measures the best checkpoint, prints the table and the paths of the results.

    Args:
        config: The configuration.
        workdir: Folder of the run.

    Raises:
        UserError: For anything a user can mend, see `daasr_jax.errors`.
    """
    from daasr_jax.evaluation.report import describe_training, make_table
    from daasr_jax.experiment.evaluate import evaluate_run
    from daasr_jax.runtime import hosts
    from daasr_jax.runtime.console import console

    report, result, picture = evaluate_run(
        config, workdir, SPLIT.value, OUT.value, lpips=LPIPS.value
    )
    if hosts.number():
        return  # the first process reports
    console(width=120 if LPIPS.value else 80).print(make_table(report))
    print(f"trained: {describe_training(report)}")
    print(f"result:  {result}\npicture: {picture}")


def main() -> None:
    """The command."""
    cli.run(evaluate)


if __name__ == "__main__":
    main()
