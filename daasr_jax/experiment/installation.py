"""Where this package runs from, a checkout or an installed wheel, and what follows."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

import daasr_jax


def package_folder() -> Path:
    """Folder of the package `daasr_jax`."""
    return Path(daasr_jax.__file__).resolve().parent


def is_wheel() -> bool:
    """Whether the configurations lie inside the package, as only a wheel has them."""
    return (package_folder() / "configs").is_dir()


def shipped_folder() -> Path:
    """Folder of the configurations that come with the package.

    `configs/` of the checkout, or its copy inside the installed package.
    """
    inside = package_folder() / "configs"
    return inside if is_wheel() else package_folder().parent / "configs"


def command(door: str) -> str:
    """What starts a door from the current folder.

    Args:
        door: `"train"` or `"eval"`.

    Returns:
        `python train.py` in the checkout, `python -m daasr_jax.train` elsewhere.
    """
    if not is_wheel() and Path.cwd() == package_folder().parent:
        return f"python {door}.py"
    return f"python -m daasr_jax.{door}"


def without_places(arguments: Sequence[str], places: Mapping[str, str]) -> list[str]:
    """A command line for others: where files lie here is told by a word instead.

    Args:
        arguments: The command line.
        places: Option -> the word, such as `--out` -> `DIR`. Any other path from the
            root or the home is `PATH`.

    Example:
        >>> without_places(["--out=a", "--set", "b=/c"], {"--out": "DIR"})
        ['--out=DIR', '--set', 'b=PATH']
    """
    said = list(arguments)
    for i, word in enumerate(said):
        option, equals, value = word.partition("=")
        if option in places and equals:
            said[i] = f"{option}={places[option]}"
        elif option in places and i + 1 < len(said):
            said[i + 1] = places[option]
        elif os.path.isabs(os.path.expanduser(value if equals else word)):
            said[i] = f"{option}=PATH" if equals else "PATH"
    return said


def commit_id() -> str:
    """Commit of the code, marked when it has uncommitted changes.

    An installed package may lie inside a repository of the user's own, as in a virtual
    environment in a project: its commit says nothing of this code.

    Returns:
        40 digits, perhaps with `-dirty`; `"daasr_jax 0.1.0 (wheel)"` of an installed
        wheel; `"unknown"` where no repository holds this file.
    """
    if is_wheel():
        return f"daasr_jax {daasr_jax.__version__} (wheel)"
    here = Path(__file__).resolve()
    if not _git(here.parent, "ls-files", "--error-unmatch", here.name):
        return "unknown"
    describe = ("describe", "--always", "--abbrev=40", "--dirty", "--exclude=*")
    return _git(here.parent, *describe) or "unknown"


def _git(folder: Path, *arguments: str) -> str:
    """What git prints, nothing where it fails."""
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments],
            capture_output=True,
            text=True,
            timeout=20,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
