"""README is short, pages are fresh, links lead somewhere, the site builds."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from collections import defaultdict
from typing import Any

import pytest

from daasr_jax.evaluation.tables import text
from tests.docs.blocks import PAGES, ROOT


def load(name: str):
    """A script of `docs/generate`, which is no package."""
    spec = importlib.util.spec_from_file_location(
        f"generate_{name}", ROOT / f"docs/generate/{name}.py"
    )
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


errors, faults = load("errors"), load("faults")
house, results = load("house"), load("results")


def test_readme_is_short():
    assert len((ROOT / "README.md").read_bytes()) <= 8000


def test_readme_maps_every_room():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    readme = readme[readme.index("## Map") :]
    rooms = {p.parent.name for p in (ROOT / "daasr_jax").glob("*/__init__.py")}
    assert {room for room in rooms if f"{room}/`" not in readme} == set()


def test_errors_page_is_fresh():
    written = errors.PAGE.read_text(encoding="utf-8")
    assert written == errors.page(), f"docs/errors.md is old: {errors.COMMAND}"


def test_errors_page_has_every_code():
    page = errors.PAGE.read_text(encoding="utf-8")
    on_page = set(re.findall(r'<span id="(E\d{3})">', page))
    shell = set()
    scripts = [path for path in (ROOT / "scripts").iterdir() if path.is_file()]
    for path in (ROOT / "Makefile", *scripts):
        shell |= set(re.findall(r"error (E\d{3})", path.read_text(encoding="utf-8")))
    assert shell >= {"E101", "E102"}
    assert shell <= on_page
    for path in (ROOT / "daasr_jax").rglob("*.py"):
        codes = set(re.findall(r'"(E\d{3})"', path.read_text(encoding="utf-8")))
        assert codes <= on_page, path
    for number, name, _ in errors.exit_codes():
        assert f"| {number} | `{name}` |" in page


def test_an_error_code_has_one_meaning():
    where, types = defaultdict(set), defaultdict(set)
    for report in errors.python_reports():
        where[report.code].add(report.place)
        types[report.code].add(report.kind)
    assert len(where) > 30
    several = {code for code, places in where.items() if len(places) > 1}
    assert several == set(errors.SHARED), "SHARED in docs/generate/errors.py"
    assert {c: t for c, t in types.items() if len(t) > 1} == {}
    kinds = {"2": "ConfigError", "3": "DataError", "4": "CheckpointError"}
    kinds |= {"5": "DivergedError", "6": "ResourceError", "7": "Preempted"}
    assert {c: t for c, t in types.items() if t != {kinds[c[1]]}} == {}
    shell = {report.code for report in errors.shell_reports()}
    assert shell.isdisjoint(where)


def test_faults_page_is_fresh():
    written = faults.PAGE.read_text(encoding="utf-8")
    assert written == faults.page(), f"docs/faults.md is old: {faults.COMMAND}"


def test_every_fault_has_tests():
    numbers = [fault.number for fault in faults.faults()]
    assert numbers == list(range(1, faults.COUNT + 1))


def test_house_is_fresh():
    written = house.PICTURE.read_text(encoding="utf-8")
    assert written == house.picture(), f"docs/images/house.svg is old: {house.COMMAND}"


def test_readme_has_table_1():
    written = results.README.read_text(encoding="utf-8")
    assert written == results.readme(), f"README's table is old: {results.COMMAND}"
    record = json.loads(results.RECORD.read_text(encoding="utf-8"))
    page = results.RECORD.with_suffix(".md").read_text(encoding="utf-8")
    assert page == text.markdown(record)
    table = results.RECORD.with_suffix(".csv").read_text(encoding="utf-8")
    assert table == text.as_csv(record)
    assert results.table({"groups": [{"rows": _rows()}]}).splitlines()[2:5] == [
        "| bicubic | 36.35 | - | - | +3.00 [+2.00, +4.00] |",
        "| edsr | 39.00 | - | - | - |",
        "| swinir | not run | - | - | - |",
    ]


def test_the_page_has_the_means_of_the_cards():
    page = (ROOT / "docs/enhance.md").read_text(encoding="utf-8")
    kinds = ("bicubic", "black", "stranger", "neighbour", "contrast", "self")
    form = r"^\| (x[234]) \| (six|patient)[\w ]+ \| (.*) \|$"
    found = re.findall(form, page, re.MULTILINE)
    assert len(found) == 6
    for name, people, numbers in found:
        card = (ROOT / f"daasr_jax/released/{name}.md").read_text(encoding="utf-8")
        lines = [re.split(r" *\| *", line)[1:-1] for line in card.splitlines()]
        heads = [i for i, line in enumerate(lines) if line[:1] == ["person"]]
        with_contrast = [i for i in heads if "contrast" in lines[i]]
        at = heads[0] if people == "six" else with_contrast[0]
        means = dict(zip(lines[at], lines[at + 2], strict=True))
        assert means["person"] == "all"
        known = [means.get(kind, "-").partition(" / ")[0] for kind in kinds]
        assert numbers.split(" | ") == known, (name, people)


def _rows() -> list[dict[str, Any]]:
    """Rows of Table 1 as the README takes them."""

    def row(name: str, psnr: float, **more: Any) -> dict[str, Any]:
        mean = {"psnr": {"mean": psnr}}
        found = {"pair": mean, "black": mean, "self": mean} | more
        return {"row": name, "label": name, "statistics": found, "status": "done"}

    gap = {"psnr": {"mean": 3.0, "ci95": [2.0, 4.0]}}
    rows = [row("bicubic", 36.35, base_minus=gap)]
    rows += [row(name, 39.0) for name in results.SHOWN[1:]]
    rows[2] |= {"statistics": None, "status": "not run"}
    return rows


def test_an_import_that_goes_up_is_noticed():
    graph = {"models": {"training", "matching"}, "losses": {"metrics"}}
    graph |= {"registry": {"errors"}, "data": {"files"}}
    assert house.upward(graph) == ["losses -> metrics", "models -> training"]


@pytest.mark.parametrize("path", PAGES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(path):
    words = path.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)\s]+)\)", words):
        if not target.startswith(("http", "#")):
            place = (path.parent / target.partition("#")[0]).resolve()
            assert place.exists(), target
            inside = place.is_relative_to(ROOT / "docs")
            assert inside or path.parent == ROOT, f"{target} is not on the site"


def test_site_builds_and_loads_nothing_from_elsewhere(tmp_path):
    site = tmp_path / "site"
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "-d", str(site)],
        cwd=ROOT,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr + done.stdout
    pages = list(site.rglob("*.html"))
    assert len(pages) > 25
    loaded = re.compile(
        r'<(?:script|link|img|iframe)[^>]+(?:src|href)="?(https?://[^">]+)'
    )
    for page in pages:
        found = loaded.findall(page.read_text(encoding="utf-8"))
        assert not found, (page.name, found)


def test_every_module_is_in_the_reference():
    """By itself, or by a package that shows what it exports."""
    shown = {
        name
        for page in (ROOT / "docs/api").glob("*.md")
        for name in re.findall(r"^::: (\S+)$", page.read_text("utf-8"), re.MULTILINE)
    }
    folder = ROOT / "daasr_jax"
    lacking = []
    for path in sorted(folder.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        if parts[-1] in ("__init__", "__main__") or parts[1] in house.DOORS:
            continue
        if not {".".join(parts[: n + 1]) for n in range(1, len(parts))} & shown:
            lacking.append(".".join(parts))
    assert not lacking
