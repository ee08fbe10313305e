"""A progress bar on a terminal; one line at the start and one at the end elsewhere."""

import logging
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

from rich.console import Console
from rich.progress import track as rich_track

log = logging.getLogger("daasr_jax")
_T = TypeVar("_T")
_QUIET_BELOW_S = 1.0


def track(items: Iterable[_T], what: str, total: int) -> Iterator[_T]:
    """Yields the items and shows how far they have come, on standard error.

    Args:
        items: What to go through.
        what: Words in front of the bar or in the log line, such as "reading headers".
        total: Number of items.
    """
    console = Console(stderr=True)
    if console.is_terminal:
        yield from rich_track(
            items, description=what, total=total, console=console, transient=True
        )
        return
    start = time.monotonic()
    log.info("%s: %d", what, total)
    yield from items
    seconds = time.monotonic() - start
    if seconds > _QUIET_BELOW_S:
        log.info("%s: %d done in %.1f s", what, total, seconds)
