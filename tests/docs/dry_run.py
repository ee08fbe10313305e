"""Reads many Python commands of the pages from one start of the interpreter.

`python -m tests.docs.dry_run CASES.json`: as `tests.e2e.launcher`, but each command
stops where its work would begin. Until then all is real: the script or module, its
flags, the configuration with every override.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
from pathlib import Path
from typing import NoReturn

from daasr_jax.experiment import (
    check_data,
    checks,
    cli,
    controls,
    dry_run,
    evaluate,
    parts,
    same_run,
    train,
)
from daasr_jax.experiment.configuration import load
from daasr_jax.runtime import hosts
from tests.e2e.launcher import run

READ = "the command was read"
RUN = "fastmri_x4"  # what a run of the pages was trained by

_parse_args = argparse.ArgumentParser.parse_args


def read_config(config, *_, **__) -> NoReturn:
    """Stands for `train_run`, `dry_run` and `check_data`."""
    checks.check_ranges(config)
    parts.data_settings(config)
    parts.make_model(config)
    parts.make_losses(config)
    parts.make_training(config, steps=2, steps_per_epoch=1)
    print(READ)
    raise SystemExit(0)


def read_request(_, request, __) -> NoReturn:
    """Stands for `evaluate_tracks` and `control_run`, of a run of `RUN`."""
    config = load(RUN).to_dict()
    if request.config is not None:
        same_run.check_same({"config": config}, request.config.to_dict(), Path("RUN"))
    same_run.with_given({"config": config, "prepared_sha256": "x"}, request.given)
    print(READ)
    raise SystemExit(0)


def open_run() -> None:
    """Stands for the record of a run that a page calls RUN."""
    sys.argv.insert(1, f"--config={RUN}")


def read_arguments(self, *args, **kwargs) -> NoReturn:
    """Stands for `ArgumentParser.parse_args`."""
    _parse_args(self, *args, **kwargs)
    print(READ)
    raise SystemExit(0)


def script(argv: list[str]) -> list[str]:
    """`-m MODULE ...` as the file of the module."""
    if argv[0] != "-m":
        return argv
    name = argv[1]
    if importlib.util.find_spec(name) is None:
        return [f"no module {name}"]
    package = Path(*name.split("."))
    path = package / "__main__.py" if package.is_dir() else package.with_suffix(".py")
    return [str(path), *argv[2:]]


if __name__ == "__main__":
    train.train_run = dry_run.dry_run = check_data.check_data = read_config
    evaluate.evaluate_tracks = controls.control_run = read_request
    cli._open_run = open_run
    hosts.connect = lambda *_: None
    argparse.ArgumentParser.parse_args = read_arguments
    cases = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    print(json.dumps([run(script(argv)) for argv in cases]))
