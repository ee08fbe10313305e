"""Damages files of a reader by drawn mutations and asks what comes of them."""

from __future__ import annotations

import collections
import dataclasses
import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hypothesis
from hypothesis import HealthCheck, Phase

from tests.fuzz.mutations import chosen, mutations
from tests.fuzz.readers import READERS
from tests.fuzz.worker import Worker

FAILURES = ("wrong", "traceback", "hang", "crash")


class FoundError(AssertionError):
    """A damaged file that the program neither refused nor read rightly."""


@dataclasses.dataclass
class Campaign:
    """Damaged inputs of one reader.

    Attributes:
        name: Of the reader.
        folder: Where the cases lie.
        worker: Reads them.
        keep: Folder that takes the inputs that fail; None raises FoundError.
        counts: Inputs by what came of them.
        found: What failed, by the end of its traceback or its words.
    """

    name: str
    folder: Path
    worker: Worker
    keep: Path | None = None
    counts: collections.Counter[str] = dataclasses.field(
        default_factory=collections.Counter
    )
    found: dict[str, Path | None] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        self._originals = self.folder / "originals" / self.name
        self._damaged = self.folder / "damaged" / self.name
        READERS[self.name].make(self._originals)
        for case in self._originals.iterdir():
            here = self._damaged / case.name
            shutil.copytree(case, here)
            _restore(case, here, READERS[self.name].packed.get(case.name, bytes))

    def check_undamaged(self) -> None:
        """Every case is read as it is, so that damage alone is what fails.

        Raises:
            FoundError: If one is not.
        """
        for case in sorted(self._originals.iterdir()):
            said = self.worker.ask(self.name, self._damaged / case.name, case)
            if said[0] != "read":
                raise FoundError(f"{self.name}/{case.name}: {said[0]}: {said[1]}")

    def run(self, inputs: int, seed: int, until: Callable[[], bool] | None = None):
        """Draws inputs and reads them; with `until`, stops where that is so."""
        reader = READERS[self.name]
        quiet = self.keep is not None
        phases = [Phase.generate] if quiet else [Phase.generate, Phase.shrink]

        @hypothesis.seed(seed)
        @hypothesis.settings(
            max_examples=inputs,
            database=None,
            deadline=None,
            phases=phases,
            suppress_health_check=[*HealthCheck],
        )
        @hypothesis.given(mutations(json_files=reader.json_files))
        def one(drawn: tuple[int, int, list[Any]]) -> None:
            if until is None or not until():
                self._one(*drawn)

        one()

    def _one(self, case_at: int, file_at: int, changes: list[Any]) -> None:
        reader = READERS[self.name]
        case = chosen(case_at, sorted(self._originals.iterdir()))
        path = chosen(file_at, reader.files(case))
        before = path.read_bytes()
        data = before
        for change in changes:
            data = change(data)
        pack = reader.packed.get(case.name, bytes)
        here = self._damaged / case.name
        target = here / path.relative_to(case)
        target.write_bytes(pack(data))
        kind, words = self.worker.ask(self.name, here, case)
        self.counts[kind] += 1
        try:
            if kind in FAILURES:
                self._failed(kind, words, here)
        finally:
            _restore(case, here, reader.packed.get(case.name, bytes))

    def _failed(self, kind: str, words: str, here: Path) -> None:
        what = f"{kind}: {_ending(words)}"
        if self.keep is None:
            raise FoundError(f"{self.name}/{here.name}: {kind}: {words}")
        if what in self.found:
            return
        name = hashlib.sha256(what.encode()).hexdigest()[:12]
        kept = self.keep / self.name / f"{here.name}_{kind}_{name}"
        shutil.copytree(here, kept, dirs_exist_ok=True)
        kept.with_suffix(".txt").write_text(f"{kind}\n{words}\n", encoding="utf-8")
        self.found[what] = kept


def _restore(case: Path, here: Path, pack: Callable[[bytes], bytes]) -> None:
    """The undamaged files again, and no other."""
    for path in here.rglob("*"):
        original = case / path.relative_to(here)
        if path.is_file() and not original.exists():
            path.unlink()
    for original in case.rglob("*"):
        if original.is_file():
            target = here / original.relative_to(case)
            data = pack(original.read_bytes())
            if not target.is_file() or target.read_bytes() != data:
                target.write_bytes(data)


def _ending(words: str) -> str:
    """The last call in this project and the error, of a traceback."""
    lines = words.strip().splitlines()
    calls = [x.strip() for x in lines if "daasr_jax/" in x and x.strip()[:4] == "File"]
    return " | ".join([*calls[-1:], *lines[-1:]])[-400:]
