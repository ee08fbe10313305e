"""The tables and the report of a work folder, from the cells that are done."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from daasr_jax.enhancement.page import Views, make_page
from daasr_jax.errors import unwritable
from daasr_jax.evaluation.tables import cells, comparison, page, paper, text
from daasr_jax.evaluation.tables.cells import BICUBIC, ROWS, Plan
from daasr_jax.experiment import cell as runs
from daasr_jax.experiment.installation import command, commit_id
from daasr_jax.experiment.reproduce_request import (
    DONE,
    FAILED,
    Request,
    is_done,
    kept,
)
from daasr_jax.files import write_atomically
from daasr_jax.runtime import devices

VIEWER_BYTES = 2_000_000
# What a row of a table takes from the first of its runs.
_OF_A_RUN = (
    "parameters", "steps", "learning_rate", "uses_reference", "commit", "device",
    "config_sha256", "trials", "checkpoint_step",
)  # fmt: skip


def load_row(
    request: Request, plan: Plan, row: str, scale: int, track: str, match: str
) -> tuple[list[list[comparison.Measured]], list[dict[str, Any]], str]:
    """Scores of a row by seed and pairing, what is known of its runs, its status."""
    folder, found, about, trouble = request.workdir, [], [], ""
    for cell in plan.of(row, scale, track, match):
        own = kept(folder / cell.name / DONE)
        if own is None:
            failed = kept(folder / cell.name / FAILED)
            trouble = trouble or (failed or {}).get("error", "")
            continue
        about.append(own)
        reports = [
            kept(folder / cell.name / runs.SCORES.format(k))
            for k in range(own["pairings_used"])
        ]
        found.append(
            [comparison.measured_of(r, r["measured_as"]) for r in reports if r]
        )
    status = "done" if len(found) == plan.seeds else text.NOT_RUN
    if found and len(found) < plan.seeds:
        status = f"{len(found)} of {plan.seeds} seeds"
    if trouble and not found:
        status = f"failed: {trouble.replace('|', '/')}"
    return found, about, status


def table_record(request: Request, plan: Plan, part: str) -> dict[str, Any]:
    """A table or figure as one JSON-ready dictionary.

    Returns:
        `name`, `title`, `command`, `notes`, `lpips` and `groups`, of which each has
        `scale`, `track`, `match`, `pairing_sha256`, `protocol` and `rows`; a row has
        `label`, `row`, `status`, `paper`, at equal time `equal_steps`, and of runs
        `statistics`, see `comparison.compare`, `parameters`, `images_per_second` and
        so on.
    """
    size, about = request.setting.budget.size, cells.PARTS[part]
    full = cells.full(size)
    rows = plan.rows[part]
    base = full if full in {key for _, key in rows} else rows[-1][1]
    groups = []
    for match in request.setting.budget.matches():
        for scale in plan.scales[part]:
            for track in plan.tracks[part]:
                groups.append(
                    _group(request, plan, part, rows, base, scale, track, match)
                )
    _beside_equal_time(groups)
    return {
        "name": part.replace("_", " ").capitalize(),
        "title": about.title,
        "lpips": about.lpips,
        "command": f"{command('reproduce')} {shlex.join(request.arguments)}".strip(),
        "base": base,
        "notes": notes(request),
        "groups": groups,
    }


def _beside_equal_time(groups: list[dict[str, Any]]) -> None:
    """Adds to each row of equal time what it has at equal steps, `equal_steps`."""
    steps = {(g["scale"], g["track"]): g for g in groups if g["match"] == "steps"}
    for group in groups:
        if group["match"] != "time":
            continue
        other = {r["row"]: r for r in steps[group["scale"], group["track"]]["rows"]}
        for row in group["rows"]:
            found = other[row["row"]]["statistics"]
            row["equal_steps"] = found["pair"]["psnr"] if found else None


def _group(
    request: Request,
    plan: Plan,
    part: str,
    rows: list[tuple[str, str]],
    base: str,
    scale: int,
    track: str,
    match: str,
) -> dict[str, Any]:
    loaded = {key: load_row(request, plan, key, scale, track, match) for _, key in rows}
    with_runs = {key: found for key, (found, _, _) in loaded.items()}
    any_runs = next((r for r in (with_runs[base], *with_runs.values()) if any(r)), [])
    with_runs = {BICUBIC: comparison.of_bicubic(any_runs)} | with_runs
    resamples = request.setting.budget.resamples
    statistics = comparison.compare(with_runs, base, resamples=resamples)
    full = cells.full(request.setting.budget.size)
    lines, hashes, protocol = [], [], {}
    for label, key in [("bicubic", BICUBIC), *rows]:
        _, about, status = loaded.get(key, ([], [], "done" if any_runs else ""))
        row = {
            "label": label,
            "row": key,
            "status": status or text.NOT_RUN,
            "paper": paper.beside(part, key, scale, full=full),
            "statistics": statistics.get(key),
        }
        if about:
            first = about[0]
            row |= {name: first[name] for name in _OF_A_RUN}
            row["curves"] = [a["curve"] for a in about]
            for name in ("images_per_second", "minutes", "peak_mib"):
                values = [a[name] for a in about if a[name] is not None]
                row[name] = float(np.mean(values)) if values else None
            row["seconds"] = sum(a["seconds"] for a in about)
            protocol = protocol or first["protocol"]
            if ROWS[key].guided:
                hashes.append(first["pairing_sha256"])
        lines.append(row)
    return {
        "scale": scale,
        "track": track,
        "match": match,
        "pairing_sha256": list(dict.fromkeys(hashes)),
        "protocol": protocol,
        "rows": lines,
    }


def notes(request: Request) -> list[str]:
    """What every table says of itself, a paragraph each."""
    s, b = request.setting, request.setting.budget
    long = f"{b.minutes:g} minutes each" if b.minutes else (
        f"{b.steps:,} steps each" if b.steps else f"{b.epochs} epochs each"
    )  # fmt: skip
    size = {"small": "Small networks", "published": "Networks of published size"}
    return [
        f"{size[b.size]} on the data of `{request.data}`, budget `{b.name}`, {long}. "
        f"DAASR itself is the row `{ROWS[cells.full(b.size)].label}`. "
        f"Learning rate of each among {', '.join(f'{r:g}' for r in b.rates)}, by the "
        "PSNR of validation after trials of equal length, the same for every network. "
        "Images/s, minutes and peak memory are those of training.",
        "`black` and `self` are PSNR with no reference and with the target itself as "
        "reference, an upper bound. LR fit: the output made small again, against the "
        f"input. {s.pairings} reference pairings of the random track, one of others. "
        "p: paired permutation test over subjects of the PSNR of DAASR less that of "
        "the row, two-sided, corrected by Holm for the rows beside it.",
        "The paper's numbers are of its own data and sizes. "
        + paper.printed()["prose"],
    ]


def write_tables(request: Request) -> dict[str, Path]:
    """Writes every table as Markdown, CSV and JSON, and the report.

    Returns:
        The files by name.

    Raises:
        UserError: If they cannot be written (E209, E617).
    """
    plan = request.plan(shown=True)
    records = {part: table_record(request, plan, part) for part in plan.parts}
    files: dict[str, str] = {}
    for part, record in records.items():
        files[f"{part}.md"] = text.markdown(record)
        files[f"{part}.csv"] = text.as_csv(record)
        files[f"{part}.json"] = json.dumps(record, indent=1)
    files["report.html"] = page.make_report_page(
        list(records.values()),
        pictures=(shown := _pictures(request, plan)),
        viewer=_viewer(shown),
        environment={
            "code": commit_id(),
            "device": devices.description(),
            "jax": jax.__version__,
            "commands": "; ".join({r["command"] for r in records.values()}),
        },
    )
    try:
        for name, content in files.items():
            write_atomically(request.workdir / name, content)
    except OSError as error:
        raise unwritable(request.workdir, error) from None
    return {name: request.workdir / name for name in files}


def _viewer(pictures: Sequence[page.Pictures]) -> str:
    """The viewer of enhancements with the last row that has matches, else the last."""
    rows = [(p, label, r) for p in pictures for label, r in p.rows.items()]
    if not rows:
        return ""
    shown, label, found = ([x for x in rows if "index" in x[2]] or rows)[-1]
    n = len(found["hr"]) - 2
    lr, sr, hr, ref = (
        np.asarray(found[k][:n], np.float32) for k in ("lr", "sr", "hr", "ref")
    )
    whole = ref.shape == hr.shape
    matched = whole and "index" in found and found["confidence"].shape[1:] == (
        found["lr"].shape[1:]
    )  # fmt: skip
    return make_page(
        Views(
            lr=lr,
            sr=sr,
            references=ref[:, None] if whole else None,
            confidence=np.asarray(found["confidence"][:n], np.float32)
            if matched
            else None,
            index=found["index"][:n].astype(np.int32) if matched else None,
            names=[[str(k)] for k in found["references"][:n]],
            spacing=(1.0, 1.0),
            unit="pixels",
            hr=hr,
        ),
        title=f"{label} x{shown.scale}",
        subtitle=f"{n} test slices, {shown.track} reference",
        facts=[("slices", ", ".join(map(str, found["keys"][:n])))],
        warnings=[],
        limit=VIEWER_BYTES,
    )


def _pictures(request: Request, plan: Plan) -> list[page.Pictures]:
    """Of each part the images of its rows, at its largest scale and first track."""
    out = []
    match = request.setting.budget.matches()[0]
    for part in plan.parts:
        if not plan.scales[part] or not plan.tracks[part]:
            continue
        scale, track = plan.scales[part][-1], plan.tracks[part][0]
        rows: dict[str, dict[str, np.ndarray]] = {}
        for label, key in plan.rows[part]:
            cell = plan.of(key, scale, track, match)[0]
            path = request.workdir / cell.name / runs.PICTURES
            if path.is_file() and is_done(request.workdir, cell):
                with np.load(path) as stored:
                    rows[label] = dict(stored)
        if rows:
            out.append(page.Pictures(part, scale, track, rows))
    return out
