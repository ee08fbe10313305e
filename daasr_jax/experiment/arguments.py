"""Commands without flags of a configuration: their options, and how they end."""

from __future__ import annotations

import argparse
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import NoReturn

from daasr_jax.errors import ConfigError, UserError
from daasr_jax.experiment.manual import exit_codes
from daasr_jax.runtime.console import make_printable, start_logging


class _OneLine(argparse.ArgumentParser):
    """Its complaints are one line, as all others of the package."""

    def error(self, message: str) -> NoReturn:
        """Raises the complaint."""
        raise ConfigError("E225", f"{message}; --help tells more")


def command_parser(
    prog: str, description: str | None, *, trains: bool = False
) -> argparse.ArgumentParser:
    """The parser of a command. It has `--debug`, and its help ends with the exit codes.

    Args:
        prog: The command.
        description: What it does.
        trains: Whether it has the exit codes of training too.
    """
    made = _OneLine(
        prog=prog,
        description=description,
        epilog="exit codes:\n" + exit_codes(trains=trains),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,  # what hides names knows whole options
    )
    made.add_argument(
        "--debug", action="store_true", help="show the traceback of an error"
    )
    return made


def run_command(
    parser: argparse.ArgumentParser,
    work: Callable[[argparse.Namespace], None],
    arguments: Sequence[str] | None = None,
    *,
    stopped: str = "stopped",
) -> int:
    """Runs a command; an error that a user can mend is one line on standard error.

    Args:
        parser: Of `command_parser`.
        work: What the command does with its options.
        arguments: Those of the process by default.
        stopped: Is printed after Ctrl-C.

    Returns:
        The exit code.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    make_printable()
    try:
        given = parser.parse_args(words)
        start_logging()
        work(given)
    except UserError as error:
        if "--debug" in words:
            traceback.print_exc()
        print(error, file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print(stopped, file=sys.stderr)
        return 130
    return 0
