"""What both entry points share: flags, one-line errors, exit codes, logging."""

from __future__ import annotations

import logging
import os
import re
import sys
from collections.abc import Callable, Sequence
from typing import Any

from absl import app, flags
from absl import logging as absl_logging
from ml_collections import config_flags
from rich.console import Console
from rich.logging import RichHandler

from daasr_jax.errors import ConfigError, UserError

CONFIG = config_flags.DEFINE_config_file(
    "config", None, "Experiment file, perhaps with a preset: configs/brain_x4.py:fast"
)
WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run.")
DEBUG = flags.DEFINE_bool("debug", False, "Show the traceback of an error.")


def run(main: Callable[[Any, str], None]) -> None:
    """Parses the flags, runs `main(config, workdir)` and exits; an error is one line.

    Exit codes: 0 done, 2 usage or configuration, 3 data, 4 checkpoint, 5 diverged,
    6 resources, 75 stopped and saved.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

    def guarded(_: Sequence[str]) -> None:
        _start_logging()
        try:
            if CONFIG.value is None:
                raise ConfigError("E201", "give --config=configs/NAME.py")
            if not WORKDIR.value:
                raise ConfigError("E202", "give --workdir=DIR, the folder of the run")
            main(CONFIG.value, WORKDIR.value)
        except UserError as error:
            _stop(error)
        except KeyboardInterrupt:
            sys.exit(130)

    app.run(guarded, flags_parser=_parse)


def _parse(argv: Sequence[str]) -> list[str]:
    try:
        return flags.FLAGS(list(argv))
    except (flags.Error, AttributeError, KeyError, TypeError, ValueError) as error:
        text = " ".join(str(error).replace("\\n", " ").split()).strip("'\"")
        mistyped = re.search(
            r"Did you mean \\?\"(\w+)\\?\" instead of \\?\"(\w+)", text
        )
        if mistyped:
            text = (
                f"the configuration has no key {mistyped[2]!r}; "
                f"did you mean {mistyped[1]!r}?"
            )
        elif isinstance(error, AttributeError | KeyError):
            text = f"the configuration has no key {text}"
        _stop(ConfigError("E203", text))
    except OSError as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        _stop(ConfigError("E203", f"cannot load the configuration: {lines[-1]}"))
    raise AssertionError  # _stop does not return


def _stop(error: UserError) -> None:
    if flags.FLAGS.is_parsed() and DEBUG.value:
        raise error
    print(error, file=sys.stderr)
    sys.exit(error.exit_code)


def _start_logging() -> None:
    absl_logging.set_verbosity(absl_logging.ERROR)  # orbax reports every file it writes
    logger = logging.getLogger("daasr_jax")
    logger.setLevel(logging.INFO)
    logger.propagate = False
    console = Console(stderr=True, width=None if sys.stderr.isatty() else 160)
    handler = RichHandler(
        console=console, show_path=False, show_level=False, log_time_format="%H:%M:%S"
    )
    logger.handlers = [handler]
