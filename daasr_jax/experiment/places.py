"""Places that a command line or a configuration names, as a shell means them."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

Config = Any  # an ml_collections.ConfigDict, whose attributes no checker knows


def place(text: str | Path) -> Path:
    """The path, `~` and `~user` in front replaced by that home.

    A shell does so in a word of its own, and not in `--workdir=~/run`. A home that
    nobody has stays as it is written.

    Example:
        >>> place("~nobody-of-that-name/run").as_posix()
        '~nobody-of-that-name/run'
    """
    return Path(os.path.expanduser(text))


def given_place(text: str) -> Path:
    """`place` of an option's value, as the type of an argument.

    Raises:
        argparse.ArgumentTypeError: If it is empty, as of a variable that is not set.
    """
    if not text.strip():
        raise argparse.ArgumentTypeError("it is empty: give a path")
    return place(text)


def run_folder(config: Config, workdir: str | None) -> Path:
    """Where a run lies: in `workdir`, by default in `runs/<name>_<preset>`."""
    return place(workdir or f"runs/{config.name}_{config.preset}")
