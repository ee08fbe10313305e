"""Reads damaged files for some minutes: `python -m tests.fuzz --minutes 10`.

Prints the seed and a table. Inputs that fail are kept, and the exit code is 1. With
`--out=FILE.md` the table is a page too, with command, commit and versions.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import itertools
import platform
import secrets
import shlex
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.fuzz.campaign import FAILURES, Campaign
from tests.fuzz.readers import READERS
from tests.fuzz.worker import Worker

_AT_ONCE = 100
_PACKAGES = ("numpy", "h5py", "nibabel", "pydicom", "jax", "orbax-checkpoint")
_PAGE = """\
# Damaged files

`{command}`: {inputs} damaged files, {found}.
What did not fail was read as it is, or refused in one line with a code
([errors](../errors.md)). Commit {commit}; Python {python}, {versions}; seed {seed};
{minutes:.1f} minutes.

A file is damaged by one to four changes: bits flipped, bytes and numbers replaced,
blocks moved, taken out or put in, the end cut off, values of JSON exchanged. What is
read is compared with an independent reader of `tests/fuzz/readers.py`: to the bit where
nothing is scaled, else within 1e-6 of each value (1e-5 where k-space becomes an image).
A file whose damage lies where nothing is read is read right too. Two failures are one
kind where the same line ends in the same error. `tests/fuzz/test_found.py` has what was
found before, mended, with a test of each.

| files | damaged | read right | refused in one line | read wrong | traceback | \
no end | crash | kinds found | seconds |
|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|
"""


def page(
    campaigns: Sequence[Campaign],
    seconds: Mapping[str, float],
    *,
    seed: int,
    given: Sequence[str],
    commit: str,
) -> str:
    """The table of a campaign in Markdown, with what it was made by.

    Args:
        campaigns: That have run.
        seconds: Of each, by its name.
        seed: Of the first turn.
        given: The arguments of the command.
        commit: Of the code.
    """
    versions = ", ".join(f"{p} {importlib.metadata.version(p)}" for p in _PACKAGES)
    kinds = [what for one in campaigns for what in one.found]
    head = _PAGE.format(
        command=shlex.join(
            [
                "python",
                "-m",
                "tests.fuzz",
                *(w for w in given if not w.startswith("--keep=")),
            ]
        ),
        inputs=f"{sum(one.counts.total() for one in campaigns):,}",
        found=f"{len(kinds)} kind{'s' * (len(kinds) > 1)} of failure"
        if kinds
        else "no failure",
        commit=commit,
        python=platform.python_version(),
        versions=versions,
        seed=seed,
        minutes=sum(seconds.values()) / 60,
    )
    rows = [
        f"| {one.name} | {one.counts.total()} | "
        + "".join(f"{one.counts[c]} | " for c in ("read", "refused", *FAILURES))
        + f"{len(one.found)} | {seconds[one.name]:.0f} |\n"
        for one in campaigns
    ]
    told = [f"- {one.name}: `{what}`\n" for one in campaigns for what in one.found]
    return head + "".join(rows) + "".join(["\n", *told] if told else [])


def main() -> int:
    """Returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--inputs", type=int, default=0, help="of each; 0: no limit")
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--readers", default=",".join(READERS))
    parser.add_argument("--keep", type=Path, default=Path("fuzz_failures"))
    parser.add_argument("--out", type=Path, help="page in Markdown of the table")
    given = parser.parse_args()
    seed = secrets.randbits(32) if given.seed is None else given.seed
    print(f"seed {seed}; inputs that fail are kept in {given.keep}/", flush=True)
    from daasr_jax.experiment.installation import commit_id

    commit = commit_id()  # before anything is written
    end = time.monotonic() + 60 * given.minutes
    worker = Worker()
    with tempfile.TemporaryDirectory() as folder:
        campaigns = [
            Campaign(name, Path(folder), worker, given.keep)
            for name in given.readers.split(",")
        ]
        seconds = dict.fromkeys((c.name for c in campaigns), 0.0)
        for one in campaigns:
            one.check_undamaged()

        def over() -> bool:
            return time.monotonic() > end

        for turn in itertools.count():
            left = [
                c
                for c in campaigns
                if not given.inputs or c.counts.total() < given.inputs
            ]
            if over() or not left:
                break
            for one in left:
                begin = time.monotonic()
                one.run(_AT_ONCE, seed + turn, over)
                seconds[one.name] += time.monotonic() - begin
        worker.close()
    columns = ("read", "refused", *FAILURES)
    print(f"{'reader':<12}{'inputs':>8}" + "".join(f"{c:>10}" for c in columns), end="")
    print(f"{'kinds':>8}{'seconds':>9}")
    for one in campaigns:
        numbers = "".join(f"{one.counts[c]:>10}" for c in columns)
        print(
            f"{one.name:<12}{one.counts.total():>8}{numbers}{len(one.found):>8}"
            f"{seconds[one.name]:>9.0f}"
        )
    for one in campaigns:
        for what, kept in one.found.items():
            print(f"{one.name}: {what}\n    {kept}")
    if given.out:
        text = page(campaigns, seconds, seed=seed, given=sys.argv[1:], commit=commit)
        given.out.write_text(text, encoding="utf-8")
    return 1 if any(one.found for one in campaigns) else 0


if __name__ == "__main__":
    sys.exit(main())
