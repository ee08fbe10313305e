"""The plan of the house: rooms, floors, arrows, and who reads a configuration."""

from __future__ import annotations

import ast
import functools
import re
from pathlib import Path

import pytest

from tests.docs.test_pages import house

PACKAGE = Path(__file__).parents[2] / "daasr_jax"
DOORS = set(house.DOORS)
GRAPH = {room: used for room, used in house.imports().items() if room not in DOORS}


@functools.cache
def modules() -> dict[str, ast.Module]:
    return {
        ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts): ast.parse(
            path.read_text(encoding="utf-8")
        )
        for path in sorted(PACKAGE.rglob("*.py"))
    }


def imported(tree: ast.Module, known: set[str]) -> set[str]:
    """Modules of the package that a module imports, at its top or in a function."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert not node.level, "imports name the whole path"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
            names.add(node.module)
    return {name for name in names if name in known}


def test_no_import_goes_up():
    assert set(GRAPH) == {room for floor in house.FLOORS for room in floor}
    assert house.upward(GRAPH) == []


def test_few_arrows_floors_and_loose_modules():
    assert sum(len(used) for used in GRAPH.values()) < 60
    assert len(house.FLOORS) <= 7
    loose = {path.stem for path in PACKAGE.glob("*.py")} - {"__init__"}
    assert len(loose - DOORS) <= 5


def test_no_module_imports_itself_by_a_circle():
    trees = modules()
    uses = {
        name.removesuffix(".__init__"): imported(tree, set(trees))
        for name, tree in trees.items()
    }
    done: set[str] = set()

    def walk(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, " -> ".join([*path[path.index(name) :], name])
        if name not in done:
            for other in sorted(uses[name]):
                walk(other, (*path, name))
            done.add(name)

    for name in uses:
        walk(name, ())


def test_no_name_in_quotes_goes_up():
    """What is imported by name is below too, but for what a registry finds."""
    rooms = {room for floor in house.FLOORS for room in floor}
    named: dict[str, set[str]] = {}
    for name, tree in modules().items():
        room = (*name.split("."), "")[1]
        if room not in rooms - {"registry"} or name.endswith(".__main__"):
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                used = re.match(r"daasr_jax\.(\w+)", node.value)
                if used and used[1] in rooms - {room}:
                    named.setdefault(room, set()).add(used[1])
    assert house.upward(named) == []


@pytest.mark.parametrize(
    "name",
    # The doors hand theirs on.
    [n for n in modules() if n.split(".")[1] not in {"experiment", *DOORS}],
)
def test_only_the_experiment_reads_a_configuration(name):
    """Elsewhere nothing imports ml_collections, or takes or reads a `config`."""
    for node in ast.walk(modules()[name]):
        if isinstance(node, ast.Import):
            assert not any("ml_collections" in a.name for a in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not (node.module or "").startswith(("ml_collections", "configs"))
        elif isinstance(node, ast.arg):
            assert node.arg != "config", node.lineno
        elif isinstance(node, ast.Name):
            assert node.id != "config", node.lineno
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            assert not node.value.startswith("configs."), node.lineno
