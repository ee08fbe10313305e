"""Errors a user can act on: one line of cause, place and remedy, and an exit code."""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path
from typing import Any

FULL = (errno.ENOSPC, errno.EDQUOT)  # what a system says of a full disk
_QUOTED = 300  # characters of a library's message


class UserError(Exception):
    """An error whose message is the whole report: what, where, what to do.

    `code` names the error in documentation and issues; `exit_code` is what the process
    returns. The traceback is shown only with `--debug`.
    """

    exit_code = 1

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code

    def __str__(self) -> str:
        return f"error {self.code}: {_on_one_line(self.args[0])}"

    def __reduce__(self):
        return type(self), (self.code, self.args[0])


def _on_one_line(message: str) -> str:
    """The message, whatever texts of damaged files it quotes.

    Surrogates, of names that are no UTF-8, are left to the stream.
    """
    return "".join(
        c if c.isprintable() or "\ud800" <= c <= "\udfff" else ascii(c)[1:-1]
        for c in message
    )


class ConfigError(UserError):
    """The command line or the configuration cannot be used (exit code 2)."""

    exit_code = 2


class DataError(UserError):
    """The data cannot be used as it lies there (exit code 3)."""

    exit_code = 3


class CheckpointError(UserError):
    """No usable checkpoint where one is needed (exit code 4)."""

    exit_code = 4


class DivergedError(UserError):
    """Training left the finite numbers (exit code 5)."""

    exit_code = 5


class ResourceError(UserError):
    """Memory, disk or device is short (exit code 6)."""

    exit_code = 6


class Preempted(UserError):
    """Asked to stop; the state was saved and the same command resumes (code 75)."""

    exit_code = 75


def first_line(error: BaseException) -> str:
    """The first line of an exception's message, or its type where it has none.

    Libraries quote what they could not read, which may be long.
    """
    text = str(error).strip()
    return text.splitlines()[0][:_QUOTED] if text else type(error).__name__


def unwritable(place: Path | str, error: OSError) -> UserError:
    """The report of a file or folder of a run that the system refuses to write.

    It is a `ResourceError` where the disk is full (E617), else a `ConfigError` (E209).
    """
    words = error.strerror or str(error)
    if error.errno in FULL:
        return ResourceError(
            "E617",
            f"{place} cannot be written: {words}; free disk space and run the same "
            "command again.",
        )
    return ConfigError(
        "E209",
        f"{place} cannot be written: {words}; correct its permissions, or give another "
        "--workdir.",
    )


def checked(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Calls a library function whose complaint is about the configuration.

    Raises:
        ConfigError: Its complaint (E210); an error of a device, or one that a user can
            mend, stays what it is.
    """
    try:
        return function(*args, **kwargs)
    except UserError:
        raise
    except (ValueError, TypeError, ArithmeticError, RuntimeError) as error:
        from jax.errors import JaxRuntimeError  # slow to import, and rarely needed

        if isinstance(error, JaxRuntimeError):
            raise
        text = " ".join(str(error).split())
        raise ConfigError("E210", f"the configuration does not fit: {text}") from error
