"""The code of README and pages, and the commands that a shell finds in it."""

from __future__ import annotations

import dataclasses
import os
import re
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = (
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted((ROOT / "docs").rglob("*.md")),
)
# Programs of others that fetch public data: a page may name them, no test runs them.
FETCHERS = ("openneuro-py", "aws", "datalad")
# Every command that a page may use. Another one is not found by the shell.
COMMANDS = (
    *(f"bin/{name}" for name in FETCHERS),
    "bin/make",
    "bin/python",
    "bin/sbatch",
    "bin/mpirun",
    ".venv/bin/python",
    ".venv/bin/mkdocs",
    "scripts/launch.sh",
)
KINDS = ("bash", "python", "text")


@dataclasses.dataclass(frozen=True)
class Block:
    """A fenced block, or inline code (`kind` "inline")."""

    page: str
    line: int
    kind: str
    text: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def blocks(path: Path) -> list[Block]:
    """The fenced blocks of a page, and the inline code that is a command."""
    page = path.relative_to(ROOT).as_posix()
    text = path.read_text(encoding="utf-8")
    fence = re.compile(r"^( *)```(.*)\n((?:.*\n)*?)\1```$", re.MULTILINE)
    found = [
        Block(page, text.count("\n", 0, m.start()) + 1, m[2].strip(), m[3])
        for m in fence.finditer(text)
    ]
    rest = fence.sub(lambda m: "\n" * m[0].count("\n"), text)
    assert "```" not in rest, f"{page} has a fence that is not closed."
    found += [
        Block(
            page, rest.count("\n", 0, m.start()) + 1, "inline", m[1].replace("\n", " ")
        )
        for m in re.finditer(r"(?<!`)`((?:make|python)\s[^`]+)`", rest)
    ]
    return found


def looks_like_command(line: str) -> bool:
    """Whether a line of a text block should have been in a bash block."""
    others = "|".join(FETCHERS)
    words = rf"(python3?|pip|make|git|bash|sh|sbatch|srun|mpirun|{others}|\S+\.(sh|py))"
    return bool(re.match(rf"\s*(\$ )?(\.venv/bin/|scripts/)?{words}(\s|$)", line))


def commands(block: Block, folder: Path) -> list[list[str]]:
    """The commands of a block, with what the shell makes of them, none of them run.

    Bash runs the block in `folder`, where each of `COMMANDS` only writes down its
    arguments and no other command is found.
    """
    record = folder / "record"
    record.unlink(missing_ok=True)
    for name in COMMANDS:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        said = name.removeprefix("bin/")
        path.write_text(
            f"#!/bin/bash\n{{ printf '%s\\0' {said} \"$@\"; printf '\\1'; }} "
            f'>> "{record}"\n'
        )
        path.chmod(0o755)
    done = subprocess.run(
        ["/bin/bash", "-euo", "pipefail", "-c", block.text],
        cwd=folder,
        env={"PATH": str(folder / "bin"), "HOME": os.devnull},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, f"{block}: {done.stderr}"
    written = record.read_text(encoding="utf-8") if record.exists() else ""
    found = [part.split("\0")[:-1] for part in written.split("\1")[:-1]]
    assert found, f"{block}: no command in it"
    return found
