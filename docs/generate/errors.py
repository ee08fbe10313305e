"""Writes `docs/errors.md`, every error code and exit code, from the source:

    python docs/generate/errors.py

Nothing is imported: the calls `SomeError("E123", "message")` are found in the syntax
tree. A `{name}` in a message is what the program fills in.
"""

from __future__ import annotations

import argparse
import ast
import dataclasses
import re
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs/errors.md"
COMMAND = "python docs/generate/errors.py"

# One code, one meaning. Codes that several modules raise, with that meaning:
SHARED = {
    "E201": "no data are named",
    "E204": "a name in data.contrasts fits no volume",
    "E210": "a setting of the configuration does not fit",
    "E211": "a setting of the data is outside its range",
    "E225": "the command line or the configuration file cannot be read",
    "E235": "weights cannot be imported",
    "E301": "the data root cannot be read",
    "E302": "a file of the data cannot be used",
    "E602": "the cache cannot be used",
}

_HEAD = f"""# Errors

<!-- Written by `{COMMAND}`. Do not edit. -->

A command that fails prints one line on standard error. The line has a code, the cause
and the remedy. Here a name in braces stands for what the program fills in. The option
`--debug` prints the traceback too. Files are those of `daasr_jax/`.

## Exit codes

| code | error | meaning |
|--:|---|---|
"""


@dataclasses.dataclass(frozen=True)
class Report:
    """One place that reports an error.

    Attributes:
        code: Such as `"E203"`.
        kind: Name of the exception class, or `"shell"`.
        message: With the filled-in parts as `{name}`.
        place: File, from `daasr_jax/`, or from the root of the repository (shell).
        line: In that file.
    """

    code: str
    kind: str
    message: str
    place: str
    line: int


def python_reports() -> list[Report]:
    """Every error that the package raises with a code."""
    found = []
    for path in sorted((ROOT / "daasr_jax").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            code = (
                _code(node.args[0]) if isinstance(node, ast.Call) and node.args else ""
            )
            if code:
                message = " ".join(_words(node.args[1]).split())
                place = path.relative_to(ROOT / "daasr_jax").as_posix()
                kind = ast.unparse(node.func).rpartition(".")[2]
                found.append(Report(code, kind, message, place, node.lineno))
    return found


def shell_reports() -> list[Report]:
    """Every error with a code that the Makefile and the shell scripts print."""
    found = []
    for path in (ROOT / "Makefile", *sorted((ROOT / "scripts").glob("*.sh"))):
        text = re.sub(r"\\\n\s*", "", path.read_text(encoding="utf-8"))
        for code, message in re.findall(r'"error (E\d{3}): ([^"]*)"', text):
            message = re.sub(r"\$[({](\w+)[)}]", r"{\1}", message)
            place = path.relative_to(ROOT).as_posix()
            found.append(Report(code, "shell", message, place, 0))
    return found


def exit_codes() -> list[tuple[int, str, str]]:
    """Exit code, class and meaning of every class in `daasr_jax/errors.py`."""
    rows = []
    tree = ast.parse((ROOT / "daasr_jax/errors.py").read_text(encoding="utf-8"))
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and node.name != "UserError":
            number = next(
                line.value.value
                for line in node.body
                if isinstance(line, ast.Assign)
                and isinstance(line.value, ast.Constant)
                and ast.unparse(line.targets[0]) == "exit_code"
            )
            meaning = (ast.get_docstring(node) or "").splitlines()[0]
            meaning = re.sub(r" \((?:exit )?code \d+\)", "", meaning)
            rows.append((int(str(number)), node.name, meaning))
    return rows


def page() -> str:
    """The text of `docs/errors.md`."""
    lines = [_HEAD + "| 0 | | Done. |"]
    lines += ["| 1 | | A fault of the program; it prints a traceback. |"]
    lines += [f"| {n} | `{name}` | {words} |" for n, name, words in exit_codes()]
    lines += ["| 130 | | Ctrl-C outside training. |"]
    reports = python_reports()
    for number, name, words in exit_codes():
        lines += ["", f"## {name}", "", f"{words} The exit code is {number}.", ""]
        lines += _table([r for r in reports if r.kind == name])
    lines += ["", "## Makefile and scripts", "", "The exit code is 2.", ""]
    lines += _table(shell_reports())
    return "\n".join(lines) + "\n"


def _table(reports: list[Report]) -> list[str]:
    by_code = defaultdict(list)
    for report in sorted(reports, key=lambda r: (r.code, r.place, r.line)):
        by_code[report.code].append(report)
    lines = ["| code | what it says | raised in |", "|---|---|---|"]
    for code, members in by_code.items():
        said = list(dict.fromkeys(f"`{r.message}`" for r in members))
        if code in SHARED:
            said.insert(0, f"**{SHARED[code][0].upper()}{SHARED[code][1:]}.**")
        places = list(dict.fromkeys(f"`{r.place}`" for r in members))
        anchor = f'<span id="{code}">{code}</span>'
        lines.append(f"| {anchor} | {'<br>'.join(said)} | {'<br>'.join(places)} |")
    return lines


def _code(node: ast.expr) -> str:
    value = node.value if isinstance(node, ast.Constant) else None
    good = isinstance(value, str) and re.fullmatch(r"E\d{3}", value)
    return str(value) if good else ""


def _words(node: ast.expr) -> str:
    """A message as the source has it, each part that is filled in as `{name}`."""
    if isinstance(node, ast.JoinedStr):
        return "".join(map(_words, node.values))
    if isinstance(node, ast.Constant):
        return str(node.value)
    inner = node.value if isinstance(node, ast.FormattedValue) else node
    if isinstance(inner, ast.Constant):
        return str(inner.value)
    return f"{{{_name(inner)}}}"


def _name(node: ast.expr) -> str:
    """One name for an expression: that of the thing it shows."""
    if isinstance(node, ast.Attribute):
        if node.attr == "__name__":
            return _name(node.value)
        owner = _name(node.value)
        name = node.attr.lstrip("_")
        return name if owner in ("self", "r", "jax") else f"{owner}.{name}"
    if isinstance(node, ast.Subscript):
        inner = node.slice
        if isinstance(inner, ast.Constant) and isinstance(inner.value, str):
            return inner.value
        return _name(node.value)
    if isinstance(node, ast.Call):
        return _name_of_call(node)
    if isinstance(node, ast.BinOp):
        return _name(node.left)
    if isinstance(node, ast.BoolOp):
        return _name(node.values[0])
    if isinstance(node, ast.IfExp):
        return _name(node.body)
    if isinstance(node, ast.ListComp | ast.GeneratorExp):
        return _name(node.elt)
    return ast.unparse(node).lstrip("_")


def _name_of_call(node: ast.Call) -> str:
    function = node.func
    if isinstance(function, ast.Attribute):  # `', '.join(names)`, `have.get(name)`
        if isinstance(function.value, ast.Constant):
            return _name(node.args[0])
        whole = ast.unparse(function.value) == "jax"  # `jax.process_index()`
        return function.attr if whole else _name(function.value)
    name = ast.unparse(function).lstrip("_")
    if name == "len":
        return f"number of {_name(node.args[0])}"
    shown = ("str", "sorted", "max", "min", "list", "first", "first_line")
    return _name(node.args[0]) if name in shown else name


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog=COMMAND, description="Writes docs/errors.md.")
    parser.parse_args()
    PAGE.write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()
