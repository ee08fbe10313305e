"""Writes the results table of the README from `docs/results/table_1.json`:

    python docs/generate/results.py

It stands between two comments there. The numbers are those of Table 1 at equal time.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
RECORD = ROOT / "docs/results/table_1.json"
COMMAND = "python docs/generate/results.py"
BEGIN, END = "<!-- table 1 begins -->\n", "<!-- table 1 ends -->\n"
SHOWN = ("bicubic", "edsr", "swinir", "mcmrsr", "ttsr", "hat", "without_sat",
         "daasr_paper", "daasr_fast")  # fmt: skip
_HEAD = """\
| network | PSNR, dB | without reference | target as reference | DAASR minus this |
|---|--:|--:|--:|--:|
"""


def table(record: dict[str, Any]) -> str:
    """The lines of the table: the first group's rows of `SHOWN`.

    Args:
        record: Of Table 1, as `reproduce.py` writes it.
    """
    rows = {row["row"]: row for row in record["groups"][0]["rows"]}
    return _HEAD + "".join(_line(rows[name]) for name in SHOWN)


def _line(row: dict[str, Any]) -> str:
    found = row["statistics"]
    if not found:
        return f"| {row['label']} | {row['status']} | - | - | - |\n"
    cells = [row["label"], f"{found['pair']['psnr']['mean']:.2f}"]
    for control in ("black", "self"):
        used = row.get("uses_reference") and control in found
        cells.append(f"{found[control]['psnr']['mean']:.2f}" if used else "-")
    gap, words = found.get("base_minus", {}).get("psnr"), "-"
    if gap:
        words = f"{gap['mean']:+.2f}"
        if gap["ci95"]:
            words += " [{:+.2f}, {:+.2f}]".format(*gap["ci95"])
    return f"| {' | '.join([*cells, words])} |\n"


def readme() -> str:
    """The README with the table as it is now.

    Raises:
        ValueError: If it has not the two comments.
    """
    before, begin, rest = README.read_text(encoding="utf-8").partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{README} has not the comments {BEGIN!r} and {END!r}.")
    record = json.loads(RECORD.read_text(encoding="utf-8"))
    return before + begin + table(record) + end + after


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog=COMMAND, description="Writes README's table.")
    parser.parse_args()
    README.write_text(readme(), encoding="utf-8")


if __name__ == "__main__":
    main()
