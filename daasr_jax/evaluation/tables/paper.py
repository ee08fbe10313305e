"""The numbers that the paper prints, from `paper.json`."""

from __future__ import annotations

import functools
import json
from importlib.resources import files
from typing import Any


@functools.cache
def printed() -> dict[str, Any]:
    """All of the file: `source`, `page`, `prose`, and `tables`.

    A table is data set -> row -> scale -> PSNR in dB, SSIM and, in Table 6, LPIPS, as
    many as are known.
    """
    file = files("daasr_jax.evaluation.tables") / "paper.json"
    return json.loads(file.read_text(encoding="utf-8"))


def beside(part: str, row: str, scale: int, *, full: str = "") -> dict[str, list]:
    """What the paper has for a row: data set -> its numbers.

    Args:
        part: Such as `table_2`; a figure has none.
        row: Key of `cells.ROWS`, or `bicubic`.
        scale: s.
        full: The row that is DAASR itself.

    Example:
        >>> beside("table_2", "without_sat", 4)
        {'FastMRI': [32.6, 0.8732]}
    """
    found = {}
    for data in printed()["data"]:
        rows = printed()["tables"].get(part, {}).get(data, {})
        own = rows.get(row) or (rows.get("full") if row == full else None) or {}
        if str(scale) in own:
            found[data] = own[str(scale)]
    return found
