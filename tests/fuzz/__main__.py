"""Reads damaged files for some minutes: `python -m tests.fuzz --minutes 10`.

Prints the seed and a table. Inputs that fail are kept, and the exit code is 1.
"""

from __future__ import annotations

import argparse
import itertools
import secrets
import sys
import tempfile
import time
from pathlib import Path

from tests.fuzz.campaign import FAILURES, Campaign
from tests.fuzz.readers import READERS
from tests.fuzz.worker import Worker

_AT_ONCE = 100


def main() -> int:
    """Returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--inputs", type=int, default=0, help="of each; 0: no limit")
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--readers", default=",".join(READERS))
    parser.add_argument("--keep", type=Path, default=Path("fuzz_failures"))
    given = parser.parse_args()
    seed = secrets.randbits(32) if given.seed is None else given.seed
    print(f"seed {seed}; inputs that fail are kept in {given.keep}/", flush=True)
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
    return 1 if any(one.found for one in campaigns) else 0


if __name__ == "__main__":
    sys.exit(main())
