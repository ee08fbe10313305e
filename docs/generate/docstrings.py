"""What the docstrings of this package need to become pages.

An extension of griffe, which reads them. Pages load nothing from elsewhere, so formulas
are shown as code. `Example:` is griffe's `Examples:`. Arguments that share a line,
`height, width: ...`, get one each.
"""

from __future__ import annotations

import re
import textwrap
from typing import Any

import griffe


def formulas_as_code(text: str) -> str:
    """A docstring whose `:math:` and `.. math::` are Markdown code."""
    text = re.sub(r":math:`([^`]+)`", lambda m: f"`{' '.join(m[1].split())}`", text)
    lines, out, k = text.splitlines(), [], 0
    while k < len(lines):
        match = re.match(r"(\s*)\.\. math::\s*(.*)$", lines[k])
        k += 1
        if not match:
            out.append(lines[k - 1])
            continue
        formula = []
        while k < len(lines) and (
            not lines[k].strip() or lines[k].startswith(match[1] + "   ")
        ):
            formula.append(lines[k])
            k += 1
        body = textwrap.dedent("\n".join(formula)).strip().splitlines()
        body = [match[2], *body] if match[2] else body
        out += [
            f"{match[1]}```text",
            *(match[1] + x for x in body),
            f"{match[1]}```",
            "",
        ]
    return "\n".join(out)


def arguments_apart(text: str) -> str:
    """A docstring in which `a, b: text` below `Args:` is `a: text` and `b: text`."""
    lines, out, k = text.splitlines(), [], 0
    inside = False
    while k < len(lines):
        if lines[k].strip() and not lines[k].startswith(" "):
            inside = lines[k].strip() in ("Args:", "Attributes:")
        match = re.match(r"    (\w+(?:, \w+)+): (.*)$", lines[k]) if inside else None
        k += 1
        if not match:
            out.append(lines[k - 1])
            continue
        rest = []
        while k < len(lines) and lines[k].startswith(" " * 8):
            rest.append(lines[k])
            k += 1
        for name in match[1].split(", "):
            out += [f"    {name}: {match[2]}", *rest]
    return "\n".join(out)


class Docstrings(griffe.Extension):
    """Rewrites the docstring of every object that has one."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Called by griffe for every module, class, function and attribute."""
        if obj.docstring:
            text = arguments_apart(formulas_as_code(obj.docstring.value))
            text = re.sub(r"^Example:$", "Examples:", text, flags=re.MULTILINE)
            obj.docstring.value = text
