"""Places that a command line or a configuration names, as a shell means them."""

from __future__ import annotations

import os
from pathlib import Path


def place(text: str | Path) -> Path:
    """The path, `~` and `~user` in front replaced by that home.

    A shell does so in a word of its own, and not in `--workdir=~/run`. A home that
    nobody has stays as it is written.

    Example:
        >>> place("~nobody-of-that-name/run").as_posix()
        '~nobody-of-that-name/run'
    """
    return Path(os.path.expanduser(text))
