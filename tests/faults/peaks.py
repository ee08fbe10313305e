"""Reads files that declare too much, and tells what memory each of them took.

`python -m tests.faults.peaks CASE...`: a case is `data:ROOT`, a data root that is
scanned, `scan:PATH`, a scan that is read, or `take:MIB`, that much memory. For each the
error and by how many MiB the resident memory of this process grew at its peak are
printed as JSON.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pydicom  # noqa: F401  what the readers import is no part of what they take

from daasr_jax.data import DataSettings
from daasr_jax.data.sources import choose_source
from daasr_jax.errors import UserError
from daasr_jax.runtime.memory import restart_peak
from daasr_jax.scans import read_scan


def resident(field: str) -> float:
    """MiB of this process: `VmRSS` now, `VmHWM` at most since `restart_peak`."""
    lines = Path("/proc/self/status").read_text("ascii").splitlines()
    (line,) = [x for x in lines if x.startswith(f"{field}:")]
    return int(line.split()[1]) / 1024


def act(case: str) -> None:
    """Does what a case says."""
    kind, _, given = case.partition(":")
    if kind == "data":
        wanted = DataSettings(root=given)
        choose_source(wanted).scan(wanted)
    elif kind == "scan":
        read_scan(given)
    else:
        bytearray(b"x" * (int(given) * 2**20))


def main() -> None:
    """The command."""
    found = []
    for case in sys.argv[1:]:
        restart_peak()
        before, said = resident("VmRSS"), ""
        try:
            act(case)
        except UserError as error:
            said = str(error)
        found.append([said, resident("VmHWM") - before])
    print(json.dumps(found))


if __name__ == "__main__":
    main()
