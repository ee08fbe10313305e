"""Draws `docs/images/house.svg`, the rooms of the package and what each imports:

    python docs/generate/house.py

Names, lines and imports come from the source. `FLOORS` says which room lies above
which; an import that goes up is refused, and one between rooms of a floor, but for
the files on the ground.
"""

from __future__ import annotations

import argparse
import ast
import html
import textwrap
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "daasr_jax"
PICTURE = ROOT / "docs/images/house.svg"
COMMAND = "python docs/generate/house.py"

# From the top to the ground.
FLOORS = (
    ("experiment",),
    ("training", "evaluation", "enhancement"),
    ("losses", "metrics", "released"),
    ("weights",),
    ("models", "scans"),
    ("data", "matching", "runtime"),
    ("errors", "files", "forms", "registry", "resampling"),
)
# `python -m daasr_jax.train`: they stand on the roof, as `models/__main__.py` does.
DOORS = ("train", "eval", "enhance", "export", "reproduce")
COMMAND_OF_A_ROOM = "__main__.py"
_WIDTH, _ROOF, _FLOOR, _GAP, _EDGE = 960, 84, 96, 10, 16


def imports() -> dict[str, set[str]]:
    """Room -> the other rooms that any of its modules imports."""
    graph: dict[str, set[str]] = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        if path.name == COMMAND_OF_A_ROOM:
            continue
        room = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            graph.setdefault(room, set()).update(
                name.split(".")[1]
                for name in _imported(node)
                if name.startswith("daasr_jax.") and name.split(".")[1] != room
            )
    return {room: used for room, used in graph.items() if room[0] != "_"}


def upward(graph: dict[str, set[str]]) -> list[str]:
    """Every import that does not go down, as `"models -> training"`."""
    height = {room: -i for i, floor in enumerate(FLOORS) for room in floor}
    return [
        f"{room} -> {used}"
        for room in sorted(graph)
        for used in sorted(graph[room])
        if height[used] > height[room]
        or (height[used] == height[room] and height[room] > 1 - len(FLOORS))
    ]


def picture() -> str:
    """The text of the SVG file.

    Raises:
        ValueError: If a room is not in `FLOORS`, or imports one that is not below.
    """
    graph = imports()
    unknown = (set(graph) - set(DOORS)) ^ {x for floor in FLOORS for x in floor}
    if unknown:
        raise ValueError(f"FLOORS and daasr_jax/ differ in {sorted(unknown)}.")
    graph = {room: used for room, used in graph.items() if room not in DOORS}
    if bad := upward(graph):
        raise ValueError(f"these imports do not go down: {', '.join(bad)}.")
    height = _ROOF + len(FLOORS) * (_FLOOR + _GAP) + _EDGE
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" '
        'font-family="sans-serif">',
        f"<!-- Drawn by `{COMMAND}`. Do not edit. -->",
        f'<rect width="{_WIDTH}" height="{height}" fill="#ffffff"/>',
        f'<polygon points="{_EDGE},{_ROOF - 6} {_WIDTH // 2},6 {_WIDTH - _EDGE},'
        f'{_ROOF - 6}" fill="#5c6bc0"/>',
        _text(
            _WIDTH // 2,
            _ROOF - 18,
            "   ".join(f"{door}.py" for door in DOORS),
            17,
            "#ffffff",
            "middle",
        ),
    ]
    for i, floor in enumerate(FLOORS):
        top = _ROOF + i * (_FLOOR + _GAP)
        wide = (_WIDTH - 2 * _EDGE - (len(floor) - 1) * _GAP) / len(floor)
        for j, room in enumerate(floor):
            left = _EDGE + j * (wide + _GAP)
            lines += _room(room, left, top, wide, sorted(graph[room]))
    return "\n".join([*lines, "</svg>"]) + "\n"


def _room(
    room: str, left: float, top: float, wide: float, used: list[str]
) -> list[str]:
    path = PACKAGE / room / "__init__.py"
    folder = path.exists()
    path = path if folder else PACKAGE / f"{room}.py"
    about = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    about = about.splitlines()[0].replace("`", "")
    fill = "#e8eaf6" if folder else "#eceff1"
    name = f"{room}/" if folder else f"{room}.py"
    x = left + 12
    out = [
        f'<rect x="{left:.0f}" y="{top}" width="{wide:.0f}" height="{_FLOOR}" rx="4" '
        f'fill="{fill}" stroke="#5c6bc0"/>',
        _text(x, top + 24, name, 17, "#1a237e", weight="bold"),
    ]
    columns = int((wide - 24) / 6.5)
    rows = textwrap.wrap(about, columns)[:3]
    out += [_text(x, top + 44 + 16 * k, row, 13) for k, row in enumerate(rows)]
    if folder:
        words = f"uses {', '.join(used)}" if used else "uses no other room"
        y = top + 44 + 16 * len(rows) + 2
        rows = textwrap.wrap(words, int((wide - 24) / 6))
        out += [_text(x, y + 14 * k, r, 12, "#5c6bc0") for k, r in enumerate(rows)]
    return out


def _text(
    x: float, y: float, text: str, size: int, fill: str = "#212121",
    anchor: str = "start", weight: str = "normal",
) -> str:  # fmt: skip
    return (
        f'<text x="{x:.0f}" y="{y:.0f}" font-size="{size}" fill="{fill}" '
        f'text-anchor="{anchor}" font-weight="{weight}" xml:space="preserve">'
        f"{html.escape(text)}</text>"
    )


def _imported(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if not isinstance(node, ast.ImportFrom) or not node.module:
        return []
    if node.module == "daasr_jax":
        names = [alias.name for alias in node.names if alias.name[0] != "_"]
        return [f"daasr_jax.{name}" for name in names]
    return [node.module]


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog=COMMAND, description="Draws the house.")
    parser.parse_args()
    PICTURE.write_text(picture(), encoding="utf-8")


if __name__ == "__main__":
    main()
