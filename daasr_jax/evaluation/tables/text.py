"""A table as Markdown, as CSV, and as rows of words for the page."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any

from daasr_jax.evaluation.statistics import MIN_SUBJECTS
from daasr_jax.evaluation.tables.cells import BICUBIC

NOT_RUN = "not run"
OTHER_SLICES = "other slices: it lacks some of those of this table, so it has no part"
DIGITS = {"psnr": 2, "ssim": 4, "consistency": 1, "lpips_alex": 4, "lpips_vgg": 4}
# Columns that another run of the same plan has otherwise.
MEASURED_ONCE = ("images/s", "peak MiB", "training minutes")


def words(s: Mapping[str, Any] | None, digits: int, sign: str = "") -> str:
    """A mean with its interval, where subjects are enough for one."""
    if s is None:
        return "-"
    if s["mean"] is None:
        return "not finite"
    mean = f"{s['mean']:{sign}.{digits}f}"
    if s["ci95"] is None:
        return mean
    low, high = s["ci95"]
    return f"{mean} [{low:{sign}.{digits}f}, {high:{sign}.{digits}f}]"


def _number(x: Any, form: str) -> str:
    return "-" if x is None else format(x, form)


def _p(x: float | None) -> str:
    return "< 0.001" if x is not None and x < 0.001 else _number(x, ".3f")


def cells_of(row: Mapping[str, Any], *, lpips: bool, base: str) -> dict[str, str]:
    """Column -> words of one row.

    Args:
        row: Of a group of a table's record.
        lpips: Whether LPIPS is a column.
        base: Name of the row that all are compared with.
    """
    minus = f"{base} minus this, dB"
    metrics = ["psnr", "ssim", *(("lpips_alex", "lpips_vgg") if lpips else ())]
    titles = {"psnr": "PSNR, dB", "ssim": "SSIM", "lpips_alex": "LPIPS alex",
              "lpips_vgg": "LPIPS vgg"}  # fmt: skip
    status = "" if row["status"] in ("done", NOT_RUN) else f" ({row['status']})"
    found: dict[str, str] = {"network": row["label"] + status}
    stats = row.get("statistics") or {}
    shown = [
        f"{data}: " + " / ".join(_paper(x, i) for i, x in enumerate(numbers))
        for data, numbers in row.get("paper", {}).items()
    ]
    printed = "; ".join(shown) or "-"
    if stats:
        for m in metrics:
            found[titles[m]] = words(stats["pair"].get(m), DIGITS[m])
        found["the paper"] = printed
        gaps = stats.get("base_minus", {})
        found[minus] = words(gaps.get("psnr"), 2, "+")
        found["p (Holm)"] = _p(stats.get("p_holm"))
        for kind in ("black", "self"):
            found[kind] = words(stats[kind].get("psnr"), 2).partition(" [")[0]
        found["LR fit, dB"] = words(stats["pair"]["consistency"], 1).partition(" [")[0]
    else:
        word = str(row["status"]).partition(":")[0]
        found |= dict.fromkeys((titles[m] for m in metrics), word)
        found["the paper"] = printed
        names = (minus, "p (Holm)", "black", "self", "LR fit, dB")
        found |= dict.fromkeys(names, "-")
    if "equal_steps" in row:
        found["at equal steps, dB"] = words(row["equal_steps"], DIGITS["psnr"])
    found["parameters"] = _number(row.get("parameters"), ",")
    found["images/s"] = _number(row.get("images_per_second"), ".1f")
    found["peak MiB"] = _number(row.get("peak_mib"), ",.0f")
    found["steps"] = _number(row.get("steps"), ",")
    found["training minutes"] = _number(row.get("minutes"), ".1f")
    found["rate"] = _number(row.get("learning_rate"), "g")
    found["rates tried"] = str(len(row["trials"])) if row.get("trials") else "-"
    found["seeds x pairings"] = "-"
    if stats and row["row"] != BICUBIC:
        found["seeds x pairings"] = f"{stats['seeds']} x {stats['pairings']}"
    return found


def _paper(x: float, i: int) -> str:
    return f"{x:.{(2, 4, 3)[i]}f}"


def group_title(group: Mapping[str, Any]) -> str:
    """Scale, references and what is equal, in one line."""
    return f"x{group['scale']}, {group['track']} reference, equal {group['equal']}"


def grid(group: Mapping[str, Any], *, lpips: bool, base: str) -> list[list[str]]:
    """The words of a group of rows, the titles first."""
    rows = [cells_of(row, lpips=lpips, base=base) for row in group["rows"]]
    return [list(rows[0]), *(list(row.values()) for row in rows)] if rows else []


def made_with(records: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """What the runs of tables were made with: title -> words, each thing once."""
    rows = [row for r in records for group in r["groups"] for row in group["rows"]]
    made = [one for row in rows for one in row.get("made_with", [])]
    found = {
        "trained by commit": [
            by for one in made for by in one.get("trained_by") or [one["commit"]]
        ],
        "evaluated by commit": [one["commit"] for one in made],
        "objective beyond L1": [one["trained"] for one in made if "trained" in one],
        "devices": [one["device"] for one in made],
        "versions": [
            " ".join(f"{k} {v}" for k, v in one["versions"].items()) for one in made
        ],
    }
    told = {k: v for k, v in found.items() if v or not made}
    return {k: "; ".join(dict.fromkeys(v)) or NOT_RUN for k, v in told.items()}


def markdown(record: Mapping[str, Any]) -> str:
    """The page of a table or figure.

    Args:
        record: See `experiment.reproduce_tables`.
    """
    lines = [f"# {record['name']}: {record['title']}", "", f"`{record['command']}`", ""]
    lines += [line for note in record["notes"] for line in (note, "")]
    lines += [f"- {k}: {words}" for k, words in made_with([record]).items()] + [""]
    for group in record["groups"]:
        lines += [f"## {group_title(group)}", "", *facts(group), ""]
        first, *rest = grid(group, lpips=record["lpips"], base=record["base_label"])
        lines += [_line(first), "|---|" + "--:|" * (len(first) - 1), *map(_line, rest)]
        lines += ["", *_per_subject(group)]
    return "\n".join(lines).rstrip() + "\n"


def facts(group: Mapping[str, Any]) -> list[str]:
    """What a group of rows was measured on, a sentence each."""
    found = [r["statistics"] for r in group["rows"] if r.get("statistics")]
    if not found:
        return ["Nothing of it was run."]
    n = found[0]["n_subjects"]
    lines = [f"{found[0]['n_slices']} slices of {n} subject(s)."]
    if n < MIN_SUBJECTS:
        lines.append(f"No interval below {MIN_SUBJECTS} subjects: they say too little "
                     "of others.")  # fmt: skip
    else:
        lines.append("[95 % interval of the mean, subjects and training seeds "
                     "resampled].")  # fmt: skip
    lines.append(f"No p can be below {2.0 ** (1 - n):.2g} before the correction: there "
                 f"are {n} subject(s).")  # fmt: skip
    if group.get("equal_steps_of"):
        lines.append("The steps are those of the slowest of: "
                     f"{'; '.join(group['equal_steps_of'])}.")  # fmt: skip
    if group.get("equal_steps_without"):
        rows = "; ".join(group["equal_steps_without"])
        lines.append(f"Left out of these: {rows}, whose run of speed failed.")
    if group.get("pairing_sha256"):
        hashes = ", ".join(h[:12] for h in group["pairing_sha256"])
        lines.append(f"Pairing SHA-256: {hashes}.")
    return lines


def _per_subject(group: Mapping[str, Any]) -> list[str]:
    """PSNR of each subject."""
    rows = [r for r in group["rows"] if r.get("statistics")]
    if not rows:
        return []
    every = [r["statistics"]["pair"]["psnr"]["per_subject"] for r in rows]
    subjects = sorted({s for x in every for s in x}, key=lambda s: (len(s), s))
    lines = ["PSNR in dB, mean of each subject:", ""]
    lines.append(_line(["network", *(f"subject {s}" for s in subjects)]))
    lines.append("|---|" + "--:|" * len(subjects))
    for row, values in zip(rows, every, strict=True):
        told = ("-" if s not in values else "not finite" if (x := values[s]) is None
                else f"{x:.2f}" for s in subjects)  # fmt: skip
        lines.append(_line([row["label"], *told]))
    return [*lines, ""]


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def as_csv(record: Mapping[str, Any], *, once: bool = True) -> str:
    """All groups as one CSV table.

    Args:
        record: Of the table.
        once: With the columns of `MEASURED_ONCE`, which no second run repeats.
    """
    lines = [
        {name: group[name] for name in ("scale", "track", "equal")}
        | cells_of(row, lpips=record["lpips"], base=record["base_label"])
        for group in record["groups"]
        for row in group["rows"]
    ]
    columns = dict.fromkeys(name for line in lines for name in line)
    kept = [name for name in columns if once or name not in MEASURED_ONCE]
    out = io.StringIO()
    writer = csv.DictWriter(
        out, kept, restval="-", extrasaction="ignore", lineterminator="\n"
    )
    writer.writeheader()
    writer.writerows(lines)
    return out.getvalue()
