"""What the package prints, on any terminal: plain characters where it has no others."""

from __future__ import annotations

import codecs
import logging
import sys
import unicodedata

from absl import logging as absl_logging
from rich.console import Console
from rich.logging import RichHandler
from rich.text import Text

_PLAIN = {"±": "+-", "×": "x", "–": "-", "—": "-", "…": "...", "━": "-", "╸": "-"}


def console(*, stderr: bool = False, width: int | None = None) -> Console:
    """A console of rich on a standard stream.

    Args:
        stderr: On standard error instead of standard output.
        width: In columns; by default that of the terminal.
    """
    make_printable()
    made = _PlainConsole if _is_plain(sys.stderr if stderr else sys.stdout) else Console
    return made(stderr=stderr, width=width)


def make_printable() -> None:
    """Lets both standard streams take any text, also that of others' tracebacks.

    A character that the encoding lacks is printed as a plain one, or as `?`.
    """
    codecs.register_error(_replace.__name__, _replace)
    for stream in (sys.stdout, sys.stderr):
        if _is_plain(stream) and hasattr(stream, "reconfigure"):
            stream.reconfigure(errors=_replace.__name__)  # pyright: ignore


def start_logging() -> None:
    """Shows what the package logs, with the time, on standard error."""
    absl_logging.set_verbosity(absl_logging.ERROR)  # orbax reports every file it writes
    logger = logging.getLogger("daasr_jax")
    logger.setLevel(logging.INFO)
    logger.propagate = False
    out = console(stderr=True, width=None if sys.stderr.isatty() else 160)
    handler = RichHandler(
        console=out, show_path=False, show_level=False, log_time_format="%H:%M:%S"
    )
    logger.handlers = [handler]


class _PlainConsole(Console):
    """Replaces characters before rich measures them, so that columns stay aligned."""

    def render_str(self, text: str, **options) -> Text:  # pyright: ignore
        encoding = self.encoding
        return super().render_str(
            text.encode(encoding, _replace.__name__).decode(encoding), **options
        )


def _is_plain(stream: object) -> bool:
    encoding = getattr(stream, "encoding", None) or "utf-8"
    return not codecs.lookup(encoding).name.startswith("utf")


def _replace(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    lacking = error.object[error.start : error.end]
    return "".join(_plain(character) for character in lacking), error.end


def _plain(character: str) -> str:
    if character in _PLAIN:
        return _PLAIN[character]
    parts = unicodedata.normalize("NFKD", character)
    return parts.encode("ascii", "ignore").decode() or "?"
