"""Writes `docs/faults.md`, the faults that the program survives, from their tests:

    python docs/generate/faults.py

Nothing is imported. The tests of a fault are one module of `tests/faults/`, named by
its number. Its docstring says the fault, and what comes out.
"""

from __future__ import annotations

import argparse
import ast
import dataclasses
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
TESTS = ROOT / "tests/faults"
PAGE = ROOT / "docs/faults.md"
COMMAND = "python docs/generate/faults.py"
COUNT = 30

_HEAD = f"""# Faults

<!-- Written by `{COMMAND}`. Do not edit. -->

What goes wrong around a run, and what then comes out. Each fault is injected by a test
of `tests/faults/`, whose name begins with its number. `make test` runs them, and
`make test-all` those that take long. An error is one line with a code
([Errors](errors.md)); the exit codes are 2 usage, 3 data, 4 checkpoint, 5 diverged,
6 resources and 75 stopped and saved.

| # | fault | what comes out | tests |
|--:|---|---|---|
"""


@dataclasses.dataclass(frozen=True)
class Fault:
    """The tests of one fault.

    Attributes:
        number: From 1.
        name: The fault in words.
        expected: What comes out.
        tests: Names of the test functions without their number, in their order.
        file: From the root of the repository.
    """

    number: int
    name: str
    expected: str
    tests: list[str]
    file: str


def faults() -> list[Fault]:
    """Every fault that has tests, by number.

    Raises:
        ValueError: If a module, its docstring or a test has not the agreed form.
    """
    return [_fault(path) for path in sorted(TESTS.glob("test_*.py"))]


def page() -> str:
    """The text of `docs/faults.md`."""
    rows = [
        f'| <span id="{f.number:02d}">{f.number}</span> | {f.name} | {f.expected} | '
        + "<br>".join(f"`{name}`" for name in f.tests)
        + f"<br>in `{f.file}` |"
        for f in faults()
    ]
    return _HEAD + "\n".join(rows) + "\n"


def _fault(path: Path) -> Fault:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    words = " ".join((ast.get_docstring(tree) or "").split())
    form = re.fullmatch(r"Fault (\d+): (.+?)\. Expected: (.+)", words)
    number = path.stem.split("_")[1]
    if not form or f"{int(form[1]):02d}" != number:
        raise ValueError(
            f"{path}: its docstring is to begin with 'Fault {number}: ...' and to go "
            "on with 'Expected: ...'"
        )
    tests = [
        node.name
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    ]
    others = [name for name in tests if not name.startswith(f"test_{number}_")]
    if others or not tests:
        raise ValueError(f"{path}: a test is named test_{number}_..., not {others}")
    shown = [name.removeprefix(f"test_{number}_") for name in tests]
    file = path.relative_to(ROOT).as_posix()
    fault = form[2][0].upper() + form[2][1:]
    expected = form[3][0].upper() + form[3][1:]
    return Fault(int(number), fault, expected, shown, file)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog=COMMAND, description="Writes docs/faults.md.")
    parser.parse_args()
    PAGE.write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()
