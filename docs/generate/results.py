"""Writes the results table of the README from `docs/results/table_1.json`:

    python docs/generate/results.py

It stands between two comments there. A cell is the mean of the test slices.
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
SHOWN = ("bicubic", "edsr", "hat", "mcmrsr", "without_sat", "daasr_fast")
_HEAD = """\
| network | reference | PSNR, dB | without it | DAASR `fast` minus this |
|---|---|--:|--:|--:|
"""


def table(record: dict[str, Any]) -> str:
    """The lines of the table.

    Args:
        record: Of Table 1, as `reproduce.py` writes it.
    """
    lines = []
    for group in record["groups"]:
        rows = {row["row"]: row for row in group["rows"]}
        for name in SHOWN:
            row = rows[name]
            alone = not row.get("uses_reference")
            if alone and group is not record["groups"][0]:
                continue
            lines.append(_line(row, "-" if alone else group["track"]))
    return _HEAD + "".join(lines)


def _line(row: dict[str, Any], reference: str) -> str:
    found = row["statistics"]
    if not found:
        return f"| {row['label']} | {reference} | {row['status']} | - | - |\n"
    black = "-" if reference == "-" else f"{found['black']['psnr']['mean']:.2f}"
    gap = found.get("base_minus", {}).get("psnr")
    words = "-"
    if gap:
        words = f"{gap['mean']:+.2f}"
        if gap["ci95"]:
            words += " [{:+.2f}, {:+.2f}]".format(*gap["ci95"])
    psnr = found["pair"]["psnr"]["mean"]
    return f"| {row['label']} | {reference} | {psnr:.2f} | {black} | {words} |\n"


def readme() -> str:
    """The README with the table as it is now."""
    before, begin, rest = README.read_text(encoding="utf-8").partition(BEGIN)
    _, end, after = rest.partition(END)
    if not end:
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
