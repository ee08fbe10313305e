"""What both entry points share: flags, help, one-line errors, exit codes, logging."""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import re
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from absl import app, flags
from ml_collections import config_flags

from daasr_jax.errors import ConfigError, Preempted, UserError
from daasr_jax.experiment.configuration import load
from daasr_jax.experiment.manual import manual
from daasr_jax.experiment.places import place
from daasr_jax.runtime.console import make_printable, start_logging


class _ConfigParser(flags.ArgumentParser):
    """The value of `--config`; an error of the file is ours, of one line."""

    name = "config"

    def parse(self, argument: str) -> Any:
        return load(argument)


try:
    CONFIG = config_flags.DEFINE_config_file(
        "config",
        None,
        "Experiment file or name of a shipped one, perhaps with a preset: "
        "configs/brain_x4.py:fast, brain_x4:fast",
    )
except flags.Error as error:  # of a --flagfile, which is read here already
    text = " ".join(str(error).split()).removeprefix("ERROR:: ")
    print(ConfigError("E225", f"{text}; give --flagfile=FILE"), file=sys.stderr)
    sys.exit(ConfigError.exit_code)
flags.FLAGS["config"].parser = _ConfigParser()
WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run.")
COORDINATOR = flags.DEFINE_string(
    "coordinator", None, "HOST:PORT of process 0, without SLURM or Open MPI."
)
PROCESSES = flags.DEFINE_integer("processes", None, "Number of processes, likewise.")
PROCESS = flags.DEFINE_integer("process", None, "Number of this one from 0, likewise.")
NAMES = flags.DEFINE_bool(
    "names", False, "Write names of subjects and files; by default salted hashes."
)
DETERMINISTIC = flags.DEFINE_bool(
    "deterministic", False, "The same bits in every run on a GPU too; slower."
)
LINGER_SECONDS = 5
DEBUG = flags.DEFINE_bool("debug", False, "Show the traceback of an error.")


def given() -> dict[str, Any]:
    """Keys of the configuration that the command line sets, with their values."""
    return dict(config_flags.get_override_values(flags.FLAGS["config"]))


def run(main: Callable[[Any, str | None], None], *, of_run: bool = False) -> None:
    """Parses the flags, runs `main(config, workdir)` and exits; an error is one line.

    Exit codes: 0 done, 2 usage or configuration, 3 data, 4 checkpoint, 5 diverged,
    6 resources, 75 stopped and saved.

    Args:
        main: What the program does. `workdir` is None where none is given.
        of_run: Whether the run in `--workdir` has the configuration, where `--config`
            gives none. Then `config` is None, unless `--config` gives it.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    make_printable()
    named = _value("config") is not None
    if of_run and not named:
        _open_run()

    def guarded(argv: Sequence[str]) -> None:
        start_logging()
        try:
            if argv[1:]:
                raise ConfigError(
                    "E225", f"{argv[1]!r} is no option; options begin with --"
                )
            if CONFIG.value is None and not of_run:
                raise ConfigError(
                    "E223", "give --config=configs/NAME.py; --help has examples"
                )
            from daasr_jax.runtime import devices, hosts

            if DETERMINISTIC.value:
                devices.make_deterministic()
            hosts.connect(COORDINATOR.value, PROCESSES.value, PROCESS.value)
            if hosts.number():
                logging.getLogger("daasr_jax").setLevel(logging.ERROR)
            main(CONFIG.value if named else None, WORKDIR.value)
        except UserError as error:
            _stop(error)
        except KeyboardInterrupt:
            _leave(130)
        except Exception:
            if not _together():
                raise
            traceback.print_exc()
            _leave(1)

    for module in (main.__module__, __name__):
        for flag in flags.FLAGS.get_flags_for_module(module):
            flags.FLAGS.register_key_flag_for_module(sys.argv[0], flag)
    app.run(guarded, flags_parser=lambda argv: _parse(argv, main.__module__))


def _open_run() -> None:
    """Has the overrides on the command line read against the run's own record."""
    from daasr_jax.experiment.record import RECORD, no_run

    folder = _value("workdir")
    if not folder:
        return
    file = place(folder) / RECORD
    if not file.is_file():
        _stop(no_run(Path(folder)))
    sys.argv.insert(1, f"--config={file}")


def _value(flag: str) -> str | None:
    """What the command line gives for a flag, before it is parsed; None without."""
    found = None
    words = itertools.zip_longest(sys.argv[1:], sys.argv[2:], fillvalue="")
    for word, following in words:
        name, equals, value = word.partition("=")
        if name in (f"-{flag}", f"--{flag}"):
            found = value if equals else following
    return found


def _parse(argv: Sequence[str], module: str) -> list[str]:
    if any(word in ("-h", "--h", "-help", "--help") for word in argv[1:]):
        with contextlib.suppress(BrokenPipeError):  # of `| head`
            text = manual(module, [module, __name__], _value("config"))
            print(text, flush=True)
        os._exit(0)
    try:
        return flags.FLAGS(list(sys.argv))
    except UserError as error:
        _stop(error)
    except Exception as error:  # of absl or ml_collections, which raise many types
        _stop(ConfigError("E225", _parse_complaint(error)), error)
    raise AssertionError  # _stop does not return


def _parse_complaint(error: Exception) -> str:
    """One line from an error in the flags."""
    text = " ".join(str(error).replace("\\n", " ").split()).strip("'\"")
    mistyped = re.search(r"Did you mean \\?\"(\w+)\\?\" instead of \\?\"(\w+)", text)
    if mistyped:
        return (
            f"the configuration has no key {mistyped[2]!r}; "
            f"did you mean {mistyped[1]!r}?"
        )
    if isinstance(error, AttributeError | KeyError):
        return f"the configuration has no key {text}"
    return text or repr(error)


def _stop(error: UserError, cause: Exception | None = None) -> None:
    if "--debug" in sys.argv or (flags.FLAGS.is_parsed() and DEBUG.value):
        traceback.print_exception(cause or error)
    print(error, file=sys.stderr)
    # E702 may come out of a compilation, which the end of the interpreter can trip on.
    _leave(
        error.exit_code,
        together=isinstance(error, Preempted),
        at_once=error.code == "E702" and not _together(),
    )


def _leave(code: int, *, together: bool = False, at_once: bool = False) -> None:
    """Exits; one process of several at once, where the others do not leave with it.

    At a usual exit JAX waits for the other processes, which may wait for this one.
    """
    deserting = _together() and not together
    if not (deserting or at_once):
        sys.exit(code)
    sys.stdout.flush()
    sys.stderr.flush()
    if deserting:
        from daasr_jax.runtime import hosts

        if hosts.number() == 0:  # without it the others end by an abort, not by this
            time.sleep(LINGER_SECONDS)
    os._exit(code)


def _together() -> bool:
    """Whether this process has joined others."""
    jax = sys.modules.get("jax")
    return jax is not None and jax.distributed.is_initialized()
