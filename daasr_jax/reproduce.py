"""Makes the paper's tables and figures: trains what is missing, evaluates, reports.

    python reproduce.py --table 1 --data quickstart_x4 --budget smoke --workdir W
    python reproduce.py --all --data brain_ds002748_x4_small --workdir W --dry_run

The same command goes on where it was stopped. Several processes, also on several
machines with one file system, share the work when they are given the same command. W
then has table_N.md, .csv and .json, and report.html. In an installed package the
command is `python -m daasr_jax.reproduce`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence


def parser() -> argparse.ArgumentParser:
    """The options of the command."""
    from daasr_jax.experiment.arguments import command_parser
    from daasr_jax.experiment.places import place

    made = command_parser("reproduce.py", __doc__, trains=True)
    add = made.add_argument
    numbers = {"nargs": "+", "type": int, "default": [], "metavar": "N"}
    add("--table", choices=range(1, 7), help="1 to 6", **numbers)
    add("--figure", choices=range(4, 7), help="4 to 6", **numbers)
    add("--all", action="store_true", help="all tables and figures")
    add(
        "--data",
        required=True,
        metavar="CONFIG",
        help="configuration whose data and references all networks have",
    )
    add("--data_root", default="", metavar="DIR", help="where the data lie")
    add(
        "--workdir",
        required=True,
        type=place,
        metavar="W",
        help="folder of cells, tables and report",
    )
    add(
        "--budget",
        choices=("smoke", "short", "paper"),
        default="smoke",
        help="smoke, the default: 60 steps each on small slices; short: minutes each; "
        "paper: the paper's 200 epochs",
    )
    add("--minutes", type=float, default=0.0, help="of a cell with short; 10")
    add("--steps", type=int, default=0, help="of a cell, instead of the budget's")
    add(
        "--size",
        choices=("small", "published"),
        default="",
        help="of the networks; small with smoke, published with paper, with short "
        "published on a GPU",
    )
    add("--only", default="", help="rows to run, such as daasr,hat; see docs")
    add("--scales", default="", help="such as 4 or 2,4")
    add("--tracks", default="", help="of random, neighbour, contrast")
    add("--seeds", type=int, default=1, help="training seeds of each cell")
    add("--pairings", type=int, default=3, help="reference pairings that are evaluated")
    add(
        "--masks",
        default="",
        type=str,
        metavar="DIR",
        help="brain masks, a tree as that of the data: pictures without skull",
    )
    add(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="a key of every network's configuration, such as train.batch_size=4",
    )
    add("--dry_run", action="store_true", help="print cells, cost and time left")
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    from daasr_jax.experiment.arguments import run_command

    words = list(sys.argv[1:] if arguments is None else arguments)
    return run_command(
        parser(),
        lambda given: _reproduce(given, words),
        words,
        stopped="stopped; the same command goes on",
    )


def _reproduce(given: argparse.Namespace, words: list[str]) -> None:
    from daasr_jax.experiment.reproduce import reproduce
    from daasr_jax.experiment.reproduce_request import requested

    request = requested(given, words)
    made = reproduce(request, lambda x: print(x, flush=True), dry_run=given.dry_run)
    for name, path in made.files.items():
        print(f"{name + ':':<16}{path}", flush=True)
    made.check()


if __name__ == "__main__":
    sys.exit(main())
