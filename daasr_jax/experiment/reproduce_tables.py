"""The tables and the report of a work folder, from the cells that are done."""

from __future__ import annotations

import dataclasses
import json
import shlex
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from daasr_jax.enhancement.page import Views, make_page
from daasr_jax.errors import unwritable
from daasr_jax.evaluation.tables import cells, comparison, page, paper, text
from daasr_jax.evaluation.tables.cells import BICUBIC, ROWS, TablePlan
from daasr_jax.evaluation.words import describe_training
from daasr_jax.experiment import cell as runs
from daasr_jax.experiment.cell_pictures import PICTURES
from daasr_jax.experiment.cell_setting import crop_of
from daasr_jax.experiment.installation import command, commit_id, without_places
from daasr_jax.experiment.reproduce_request import (
    FAILED,
    ReproduceRequest,
    done_record,
    equal_steps_file,
    is_done,
)
from daasr_jax.files import kept, write_atomically

VIEWER_BYTES = 2_000_000
# What a row of a table takes from the first of its runs.
_OF_A_RUN = (
    "parameters", "steps", "learning_rate", "uses_reference", "config_sha256",
    "trials", "checkpoint_step",
)  # fmt: skip
_MADE_WITH = ("commit", "device", "versions")
# Options that name a file or folder, and what the tables say instead.
_PLACES = {"--workdir": "W", "--data_root": "DIR", "--masks": "MASKS"}


@dataclasses.dataclass(frozen=True)
class Loaded:
    """What is known of a row.

    Attributes:
        runs: Scores by seed and pairing; none of a seed that is not done.
        about: Of each run that is done, see `cell.run_cell`.
        status: In words.
        pairings: SHA-256 of the pairings.
    """

    runs: list[list[comparison.Measured]]
    about: list[dict[str, Any]]
    status: str
    pairings: list[str]


def load_row(request: ReproduceRequest, wanted: Sequence[cells.Cell]) -> Loaded:
    """A row from its cells, one for each seed from 0."""
    folder = request.workdir
    found, about, pairings, trouble = [], [], [], ""
    for cell in wanted:
        own = done_record(request, cell)
        if own is None:
            failed = kept(folder / cell.name / FAILED)
            trouble = trouble or (failed or {}).get("error", "")
            found.append([])
            continue
        about.append(own)
        reports = [
            r
            for k in range(own["pairings_used"])
            if (r := kept(folder / cell.name / runs.SCORES.format(k)))
        ]
        pairings += [r["pairing_sha256"] for r in reports]
        found.append([comparison.measured_of(r, r["measured_as"]) for r in reports])
    done = sum(map(bool, found))
    status = "done" if done == len(wanted) else text.NOT_RUN
    if 0 < done < len(wanted):
        status = f"{done} of {len(wanted)} seeds"
    if trouble and not done:
        told = trouble.replace(str(folder), "W").replace("|", "/")
        status = f"failed: {told}"
    return Loaded(found, about, status, pairings)


def table_record(
    request: ReproduceRequest, plan: TablePlan, part: str
) -> dict[str, Any]:
    """A table or figure as one JSON-ready dictionary.

    Returns:
        `name`, `title`, `command`, `notes`, `lpips`, `base`, the row that all are
        compared with, `base_label`, its name, and `groups`, of which each has `scale`,
        `track`, `match`, `equal`, what its rows have equal, `pairing_sha256`,
        `protocol`, at equal steps `equal_steps_of` and `equal_steps_without`, names of
        rows, and `rows`; a row has `label`, `row`, `status`, `paper`, at equal time
        `equal_steps`, and of runs `made_with`, `statistics`, see `comparison.compare`,
        `parameters`, `images_per_second` and so on.
    """
    size, about = request.setting.budget.size, cells.PARTS[part]
    full = cells.full(size)
    rows = plan.rows[part]
    arguments = without_places(request.arguments, _PLACES)
    names = {key: label for label, key in rows}
    base = full if full in names else rows[-1][1]
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
        "command": f"{command('reproduce')} {shlex.join(arguments)}".strip(),
        "base": base,
        "base_label": "DAASR" if base == full else names[base],
        "notes": [
            *notes(request),
            *_lacking(request, part),
            *_of_part(request, part, names),
            *_compared_with(part, base, names[base], full),
        ],
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
    request: ReproduceRequest,
    plan: TablePlan,
    part: str,
    rows: list[tuple[str, str]],
    base: str,
    scale: int,
    track: str,
    match: str,
) -> dict[str, Any]:
    # A figure shows the first of several seeds.
    seeds = 1 if part.startswith("figure") else plan.seeds
    loaded = {
        key: load_row(request, plan.of(key, scale, track, match, seeds))
        for _, key in rows
    }
    with_runs, others = comparison.on_equal_slices(
        {key: found.runs for key, found in loaded.items()},
        [key for key in (base, *loaded) if ROWS[key].guided],
    )
    any_runs = next((r for r in (with_runs[base], *with_runs.values()) if any(r)), [])
    with_runs = {BICUBIC: comparison.of_bicubic(any_runs)} | with_runs
    resamples = request.setting.budget.resamples
    statistics = comparison.compare(with_runs, base, resamples=resamples)
    full = cells.full(request.setting.budget.size)
    lines, hashes, protocol = [], [], {}
    of_none = Loaded([], [], "done" if any_runs else text.NOT_RUN, [])
    for label, key in [("bicubic", BICUBIC), *rows]:
        own = loaded.get(key, of_none)
        about = own.about
        row = {
            "label": label,
            "row": key,
            "status": text.OTHER_SLICES if key in others else own.status,
            "paper": paper.beside(part, key, scale, full=full),
            "statistics": statistics.get(key),
        }
        if about:
            first = about[0]
            row |= {name: first[name] for name in _OF_A_RUN}
            row["made_with"] = _distinct(map(_made_with, about))
            row["curves"] = [a["curve"] for a in about]
            for name in ("images_per_second", "minutes", "peak_mib"):
                values = [a[name] for a in about if a[name] is not None]
                row[name] = float(np.mean(values)) if values else None
            row["seconds"] = sum(a["seconds"] for a in about)
            if ROWS[key].guided:  # a network without reference serves all tracks
                hashes += own.pairings
                protocol = first["protocol"]
            protocol = protocol or first["protocol"]
        lines.append(row)
    shared = kept(equal_steps_file(request.workdir, scale)) or {}
    shared = shared if match == "steps" else {}
    return {
        "scale": scale,
        "track": track,
        "match": match,
        "equal": "epochs" if request.setting.budget.epochs else match,
        "pairing_sha256": _distinct(hashes),
        "equal_steps_of": [ROWS[key].label for key in shared.get("of", [])],
        "equal_steps_without": [ROWS[key].label for key in shared.get("without", [])],
        "protocol": protocol,
        "rows": lines,
    }


def _made_with(about: Mapping[str, Any]) -> dict[str, Any]:
    """Code, device, versions and objective of a run, for the record of its row."""
    trained = {"trained": describe_training({**about})} if "training" in about else {}
    by = {"trained_by": about["trained_by"]} if "trained_by" in about else {}
    return {name: about[name] for name in _MADE_WITH} | by | trained


def _distinct(values: Iterable[Any]) -> list[Any]:
    out: list[Any] = []
    for value in values:
        if value not in out:
            out.append(value)
    return out


def _lacking(request: ReproduceRequest, part: str) -> list[str]:
    """The tracks that a table lacks, because its data do."""
    if not request.lacking or len(cells.PARTS[part].tracks) == 1:
        return []
    return [f"Not run, as the data have none: {', '.join(request.lacking)} reference."]


def _of_part(request: ReproduceRequest, part: str, names: Collection[str]) -> list[str]:
    """What a table says of its own rows."""
    found = []
    if part == "table_2" and "without_sat" in names:
        found.append(
            f"The rate of `{ROWS['without_sat'].label}` is its own, not that of DAASR: "
            "Table 1 has this row as a system, and the two tables share it."
        )
    if part == "table_5":
        s = request.setting
        crops = {
            ROWS[key].label: crop_of(ROWS[key].crop, s.budget.side or s.data.data.size)
            for key in names
        }
        if any(ROWS[key].crop != crops[ROWS[key].label] for key in names):
            told = ", ".join(f"`{label}`: {x} x {x}" for label, x in crops.items())
            found.append(
                "The slices are below 256 pixels, so the LR crops are smaller in the "
                f"same part, 4 pixels at least. {told}."
            )
    return found


def _compared_with(part: str, base: str, label: str, full: str) -> list[str]:
    """What a table says of its base where that is not DAASR itself."""
    if base == full:
        return []
    name = part.replace("_", " ").capitalize()
    return [f"{name} has no row of DAASR: its rows are compared with `{label}`."]


def notes(request: ReproduceRequest) -> list[str]:
    """What every table says of itself, a paragraph each."""
    s, b = request.setting, request.setting.budget
    long = f"planned for {b.minutes:g} minutes each at equal time" if b.minutes else (
        f"{b.steps:,} steps each" if b.steps else f"{b.epochs} epochs each"
    )  # fmt: skip
    if b.minutes:
        long += ", and at equal steps those of the row that makes the fewest in them"
    tried = "equal length"
    if b.minutes:
        tried = f"a tenth of the minutes, {b.trial_steps} steps at least,"
    size = {"small": "Small networks", "published": "Networks of published size"}
    data = Path(request.data).name if Path(request.data).is_absolute() else request.data
    return [
        f"{size[b.size]} on the data of `{data}`, budget `{b.name}`, {long}. "
        f"DAASR itself is the row `{ROWS[cells.full(b.size)].label}`. "
        f"Learning rate of each system among {', '.join(f'{r:g}' for r in b.rates)}, "
        f"by the PSNR of validation after trials of {tried} on the track "
        f"{s.tried_on or s.track}; an ablation takes that of DAASR. Images/s, minutes "
        "and peak memory are those of training: compiling, validation and the "
        "evaluation come on top of the minutes.",
        "`black` and `self` are PSNR with no reference and with the target itself as "
        "reference, an upper bound. LR fit: the output made small again, against the "
        f"input. At most {s.pairings} reference pairing(s). "
        "`.. minus this` is between runs of equal seeds, the mean over slices: a "
        "subject counts by its slices. p: paired permutation test of the same "
        "differences over the means of subjects, where each subject has equal weight, "
        "however many its slices; "
        "two-sided, corrected by Holm for the rows beside it.",
        "The paper's numbers are of its own data and sizes. "
        + paper.printed()["prose"],
    ]


def write_tables(request: ReproduceRequest) -> dict[str, Path]:
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
        files[f"{part}.json"] = json.dumps(record, indent=1, allow_nan=False)
    files["report.html"] = page.make_report_page(
        list(records.values()),
        pictures=(shown := _pictures(request, plan)),
        viewer=_viewer(shown),
        environment=text.made_with(list(records.values()))
        | {
            "report written by": commit_id(),
            "commands": "; ".join(_distinct(r["command"] for r in records.values())),
        },
    )
    try:
        for name, content in files.items():
            write_atomically(request.workdir / name, content)
    except OSError as error:
        raise unwritable(request.workdir, error) from None
    return {name: request.workdir / name for name in files}


def _viewer(pictures: Sequence[page.Pictures]) -> str:
    """The viewer of enhancements with DAASR, else the last row that has matches."""
    rows = [(p, label, r) for p in pictures for label, r in p.rows.items()]
    if not rows:
        return ""
    own = [(p, label, r) for p, label, r in rows if label == p.base and "index" in r]
    shown, label, found = (own or [x for x in rows if "index" in x[2]] or rows)[-1]
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


def _pictures(request: ReproduceRequest, plan: TablePlan) -> list[page.Pictures]:
    """Images of the rows of each part, at its largest scale, on its first track."""
    out = []
    match = request.setting.budget.matches()[0]
    for part in plan.parts:
        if not plan.scales[part] or not plan.tracks[part]:
            continue
        scale, track = plan.scales[part][-1], plan.tracks[part][0]
        rows: dict[str, dict[str, np.ndarray]] = {}
        for label, key in plan.rows[part]:
            cell = plan.of(key, scale, track, match)[0]
            path = request.workdir / cell.name / PICTURES
            if path.is_file() and is_done(request, cell):
                with np.load(path) as stored:
                    rows[label] = dict(stored)
        guided = [x for x, key in plan.rows[part] if x in rows and ROWS[key].guided]
        if rows:
            same = _of_equal_slices(rows, guided[0] if guided else next(iter(rows)))
            full = cells.full(request.setting.budget.size)
            base = next((x for x, key in plan.rows[part] if key == full), "")
            out.append(page.Pictures(part, scale, track, same, base))
    return out


def _of_equal_slices(
    rows: Mapping[str, Mapping[str, np.ndarray]], first: str
) -> dict[str, Mapping[str, np.ndarray]]:
    """The rows that picture the slices of `first`; a row of another track does not."""
    hr = rows[first]["hr"][:-2]
    return {x: own for x, own in rows.items() if np.array_equal(own["hr"][:-2], hr)}
