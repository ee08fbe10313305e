"""The paper's tables and figures: their cells run, resumed and shared, then written."""

from __future__ import annotations

import dataclasses
import gc
import json
import shlex
import time
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from daasr_jax.enhancement.page import Views, make_page
from daasr_jax.errors import ConfigError, Preempted, ResourceError, UserError
from daasr_jax.evaluation.tables import cells, comparison, page, paper, text
from daasr_jax.evaluation.tables.cells import BICUBIC, ROWS, Cell, Plan, Trial
from daasr_jax.experiment import cell as runs
from daasr_jax.experiment import checks
from daasr_jax.experiment.cell import Setting
from daasr_jax.experiment.configuration import load
from daasr_jax.experiment.installation import command, commit_id
from daasr_jax.experiment.places import place
from daasr_jax.files import write_atomically
from daasr_jax.runtime import devices
from daasr_jax.runtime.lease import holder, leased
from daasr_jax.training.progress import clock

IDENTITY, DONE, FAILED = "reproduce.json", "done.json", "failed.json"
WAIT_SECONDS = 5.0
VIEWER_BYTES = 2_000_000

Say = Callable[[str], None]


@dataclasses.dataclass(frozen=True)
class Request:
    """What is asked for.

    Attributes:
        parts: Keys of `cells.PARTS`.
        setting: Of all cells.
        data: Name of the data's configuration, for the record.
        workdir: Folder of cells and tables.
        only: Rows to run; empty for all. The tables show the others as not run.
        scales, tracks: To run and show; empty for those of the paper.
        seeds: Of training, from 0.
        arguments: Of the command, for the tables.
    """

    parts: Sequence[str]
    setting: Setting
    data: str
    workdir: Path
    only: Collection[str] = ()
    scales: Sequence[int] = ()
    tracks: Sequence[str] = ()
    seeds: int = 1
    arguments: Sequence[str] = ()

    def check(self) -> None:
        """Refuses names that no table has.

        Raises:
            ConfigError: If there is one (E280).
        """
        known = {
            "--only": ({*ROWS, "daasr", "full"}, self.only),
            "--scales": ({*cells.SCALES}, self.scales),
            "--tracks": ({*cells.TRACKS}, self.tracks),
        }
        for flag, (names, given) in known.items():
            for name in given:
                if name not in names:
                    raise ConfigError(
                        "E280",
                        f"{flag} names {name}; there are "
                        f"{', '.join(map(str, sorted(names)))}.",
                    )

    def plan(self, *, shown: bool = False) -> Plan:
        """What is run, or with `shown` what the tables show."""
        return cells.make_plan(
            self.parts,
            self.setting.budget,
            only=() if shown else self.only,
            scales=self.scales,
            tracks=self.tracks,
            seeds=self.seeds,
        )


def requested(given: Any, words: Sequence[str]) -> Request:
    """A request from the options of the command.

    Args:
        given: Options, see `daasr_jax.reproduce`.
        words: As they were typed, for the tables.

    Raises:
        ConfigError: If a part, a number or a key cannot be used.
    """
    parts = [f"table_{n}" for n in given.table] + [f"figure_{n}" for n in given.figure]
    parts = list(cells.PARTS) if given.all else list(dict.fromkeys(parts))
    if not parts:
        raise ConfigError("E284", "give --table N, --figure N or --all.")
    for name, least in (("seeds", 1), ("pairings", 1), ("steps", 0), ("minutes", 0)):
        if getattr(given, name) < least:
            raise ConfigError(
                "E285",
                f"--{name} is {getattr(given, name):g}; it must be {least} or more.",
            )
    source: Any = load(given.data).copy_and_resolve_references().unlock()
    source.data.root = given.data_root or source.data.root
    source = checks.place_of_data(source.lock())
    changes = {}
    for word in given.set:
        key, equals, value = word.partition("=")
        if not equals:
            raise ConfigError("E285", f"--set {word}: give --set KEY=VALUE.")
        changes[key] = value
    devices.find()
    gpu = jax.default_backend() != "cpu"
    budget = cells.budget(
        given.budget, size=given.size, steps=given.steps, minutes=given.minutes, gpu=gpu
    )
    masks = str(place(given.masks).absolute()) if given.masks else ""

    def listed(words: str) -> list[str]:
        return [word for word in words.split(",") if word]

    try:
        scales = [int(x) for x in listed(given.scales)]
    except ValueError:
        raise ConfigError("E285", f"--scales {given.scales}: give 2, 3 or 4.") from None
    return Request(
        parts=parts,
        setting=Setting(source, budget, changes, given.pairings, masks),
        data=given.data,
        workdir=given.workdir.absolute(),
        only=listed(given.only),
        scales=scales,
        tracks=listed(given.tracks),
        seeds=given.seeds,
        arguments=[w for w in words if w not in ("--debug", "--dry_run")],
    )


def reproduce(request: Request, say: Say, *, dry_run: bool = False) -> dict[str, Path]:
    """Runs what is missing and writes tables and report.

    A cell that fails is left out, said, and tried again by the next command.

    Args:
        request: What is asked for.
        say: Takes a line of progress.
        dry_run: Say what would be run and how long it may take; run nothing.

    Returns:
        The files written, by name.

    Raises:
        ConfigError: If a name is unknown, or the folder holds cells of other settings.
        Preempted: If it was asked to stop; the same command goes on.
    """
    request.check()
    plan = request.plan()
    if request.setting.budget.name == "smoke":  # compiling would take most of its time
        jax.config.update("jax_disable_most_optimizations", True)
    _check_identity(request, write=not dry_run)
    if dry_run:
        for line in describe(request, plan):
            say(line)
        return {}
    _run(request, plan, say)
    return write_tables(request)


def _check_identity(request: Request, *, write: bool) -> None:
    """Refuses a folder whose cells have other data or another budget (E281)."""
    s = request.setting
    own = {
        "data": json.loads(json.dumps(s.data.to_dict()["data"])),
        "budget": dataclasses.asdict(s.budget),
        "changes": dict(s.changes),
        "pairings": s.pairings,
        "masks": s.masks,
    }
    own = json.loads(json.dumps(own))
    path = request.workdir / IDENTITY
    try:
        before = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        before = None
    if before is not None and before != own:
        changed = ", ".join(k for k in own if before.get(k) != own[k])
        raise ConfigError(
            "E281",
            f"{request.workdir} holds cells of another {changed}: give another "
            "--workdir, or what it began with.",
        )
    if before is None and write:
        try:
            write_atomically(path, json.dumps(own, indent=1))
        except OSError as error:
            raise ResourceError(
                "E616", f"{path} cannot be written: {error.strerror}."
            ) from None


def _jobs(plan: Plan, size: str) -> list[Trial | Cell]:
    """Trials, each before the first cell that needs it."""
    out: dict[Trial | Cell, None] = {}
    equal = [c for c in plan.cells if c.match == "steps"]
    timed = [c for c in plan.cells if c.match == "time"]
    for cell in [*timed, *equal]:
        out |= dict.fromkeys(plan.needed(cell, size))
        out[cell] = None
    return list(out)


def _run(request: Request, plan: Plan, say: Say) -> None:
    folder, jobs = request.workdir, _jobs(plan, request.setting.budget.size)
    begin, tried = time.monotonic(), set()
    waited = False

    def done(job: Trial | Cell) -> bool:
        return _done(folder, job, lpips=wants_lpips(plan, job))

    while True:
        missing = [j for j in jobs if not done(j) and j not in tried]
        if not missing:
            return
        moved = False
        for job in missing:
            with leased(folder / "leases" / f"{job.name.replace('/', '-')}") as mine:
                if not mine or done(job):
                    continue
                ready = _needs(request, plan, job, tried)
                if ready is None:
                    continue
                moved = True
                tried.add(job)
                said = _one(request, plan, job, ready)
                left = [j for j in jobs if not done(j) and j not in tried]
                rest = seconds_left(request, left)
                say(
                    f"{clock(time.monotonic() - begin):>8}  {job.name}: {said}; "
                    f"{len(left)} of {len(jobs)} left, "
                    + (f"about {clock(rest)}" if rest is not None else "time unknown")
                )
        if not moved:
            if not waited:
                names = [holder(folder / "leases" / j.name.replace("/", "-"))
                         for j in missing]  # fmt: skip
                others = ", ".join(sorted({n for n in names if n})) or "others"
                say(f"waiting for {len(missing)} cells of {others}")
            waited = True
            time.sleep(WAIT_SECONDS)


def _needs(
    request: Request, plan: Plan, job: Trial | Cell, tried: Collection[Any]
) -> list[dict[str, Any]] | None:
    """Results of the trials that a cell needs; None while another makes them."""
    if isinstance(job, Trial):
        return []
    needed = plan.needed(job, request.setting.budget.size)
    if job.match == "steps" and request.setting.budget.minutes:
        needed = [t for t in plan.trials if t.scale == job.scale]
    found = [_read(request.workdir / t.name / DONE) for t in needed]
    settled = all(f or t in tried for f, t in zip(found, needed, strict=True))
    return [f for f in found if f] if settled else None


def _one(
    request: Request, plan: Plan, job: Trial | Cell, ready: list[dict[str, Any]]
) -> str:
    """Runs one job, and notes that it is done or why not; what to say of it."""
    folder, setting = request.workdir / job.name, request.setting
    try:
        if isinstance(job, Trial):
            found = runs.run_trial(setting, job, folder)
            score = found["psnr"]
            said = found["diverged"] or f"validation {score:.2f} dB"
            found |= {"row": job.row, "scale": job.scale}
        else:
            found, said = _run_cell(request, plan, job, ready)
        write_atomically(folder / DONE, json.dumps(found, indent=1))
        (folder / FAILED).unlink(missing_ok=True)
    except Preempted:
        raise
    except UserError as error:
        if isinstance(error, ResourceError) and error.code == "E614":
            return f"another program has it: {error}"
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / FAILED, json.dumps({"error": str(error)}))
        said = f"FAILED: {error}"
    finally:
        jax.clear_caches()
        gc.collect()
    return said


def _run_cell(
    request: Request, plan: Plan, job: Cell, ready: list[dict[str, Any]]
) -> tuple[dict[str, Any], str]:
    setting, budget = request.setting, request.setting.budget
    tuned = ROWS[job.row].tuned_with(job.row, budget.size)
    own = [t for t in ready if (t["row"], t["scale"]) == (tuned, job.scale)]
    best, steps = runs.chosen(own), budget.steps
    if budget.minutes:
        by_row: dict[str, list[dict[str, Any]]] = {}
        for trial in ready:
            by_row.setdefault(trial["row"], []).append(trial)
        given = {r: runs.steps_in_time(t, budget.minutes) for r, t in by_row.items()}
        # What the slowest row gets in its minutes, so that all rows have as many.
        steps = given[job.row] if job.match == "time" else min(given.values())
    found = runs.run_cell(
        setting,
        job,
        request.workdir / job.name,
        steps=steps,
        rate=best["rate"],
        lpips=budget.name != "smoke" or wants_lpips(plan, job),
    )
    report = _read(request.workdir / job.name / runs.SCORES.format(0)) or {}
    pair = report["methods"]["pair"]["psnr"]["mean"]
    found["trials"] = {f"{t['rate']:g}": t["psnr"] for t in own}
    return found, "not finite" if pair is None else f"{pair:.2f} dB"


def wants_lpips(plan: Plan, job: Trial | Cell) -> bool:
    """Whether a table of the plan has LPIPS of a cell."""
    return any(
        cells.PARTS[part].lpips and job.row in {key for _, key in rows}
        for part, rows in plan.rows.items()
    )


def _done(folder: Path, job: Trial | Cell, *, lpips: bool = False) -> bool:
    """Whether a job is finished; without LPIPS it is not where that is wanted."""
    found = _read(folder / job.name / DONE)
    return found is not None and (found.get("lpips", True) or not lpips)


def _read(path: Path) -> dict[str, Any] | None:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def seconds_left(request: Request, left: Sequence[Trial | Cell]) -> float | None:
    """Seconds that jobs may take here, from those that are done; None if unknown.

    A job is taken to last as the mean of its row, else of all of its kind. Where no
    cell is done, minutes of the budget count, else the trials and the lengths.
    """
    budget = request.setting.budget
    spent: dict[tuple[type, str], list[float]] = {}
    for path in request.workdir.glob(f"*/*/{DONE}"):
        found = _read(path) or {}
        if "seconds" in found:
            kind = Trial if path.parts[-3] == "trials" else Cell
            for row in (found["row"], ""):
                spent.setdefault((kind, row), []).append(found["seconds"])
    total = 0.0
    for job in left:
        known = spent.get((type(job), job.row)) or spent.get((type(job), ""))
        if known:
            total += float(np.mean(known))
        elif isinstance(job, Cell) and budget.minutes:
            total += 60 * budget.minutes
        elif spent.get((Trial, "")) and budget.trial_steps:
            part = budget.steps / budget.trial_steps or 1.0
            total += part * float(np.mean(spent[Trial, ""]))
        else:
            return None
    return total


def describe(request: Request, plan: Plan) -> list[str]:
    """The lines of a dry run: every job with its state, the cost and the time left."""
    folder, jobs = request.workdir, _jobs(plan, request.setting.budget.size)
    lines, left = [], []
    for job in jobs:
        state = "missing"
        if _done(folder, job):
            state = (
                f"done in {clock((_read(folder / job.name / DONE) or {})['seconds'])}"
            )
        else:
            left.append(job)
            who = holder(folder / "leases" / job.name.replace("/", "-"))
            failed = _read(folder / job.name / FAILED)
            if who:
                state = f"held by {who}"
            elif failed:
                state = failed["error"]
            elif (folder / job.name).is_dir():
                state = "begun"
        lines.append(f"{job.name}: {state}")
    trials = sum(isinstance(j, Trial) for j in jobs)
    budget = request.setting.budget
    each = f"{budget.minutes:g} minutes" if budget.minutes else (
        f"{budget.steps:,} steps" if budget.steps else f"{budget.epochs} epochs"
    )  # fmt: skip
    rest = seconds_left(request, left)
    lines.append(
        f"{trials} trials and {len(jobs) - trials} cells of {each}, {len(left)} left: "
        + (f"about {clock(rest)} in one process" if rest is not None else
           "the time is known when the first of them is done")
    )  # fmt: skip
    return lines


def load_row(
    request: Request, plan: Plan, row: str, scale: int, track: str, match: str
) -> tuple[list[list[comparison.Measured]], list[dict[str, Any]], str]:
    """Scores of a row by seed and pairing, what is known of its runs, its status."""
    folder, found, about, trouble = request.workdir, [], [], ""
    for cell in plan.of(row, scale, track, match):
        own = _read(folder / cell.name / DONE)
        if own is None:
            failed = _read(folder / cell.name / FAILED)
            trouble = trouble or (failed or {}).get("error", "")
            continue
        about.append(own)
        reports = [
            _read(folder / cell.name / runs.SCORES.format(k))
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
        `label`, `row`, `status`, `paper`, and of runs `statistics`, see
        `comparison.compare`, `parameters`, `images_per_second` and so on.
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
    return {
        "name": part.replace("_", " ").capitalize(),
        "title": about.title,
        "lpips": about.lpips,
        "command": f"{command('reproduce')} {shlex.join(request.arguments)}".strip(),
        "base": base,
        "notes": notes(request),
        "groups": groups,
    }


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
            kept = (
                "parameters",
                "steps",
                "learning_rate",
                "uses_reference",
                "commit",
                "device",
                "config_sha256",
                "trials",
                "checkpoint_step",
            )
            row |= {k: first[k] for k in kept}  # fmt: skip
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
        ResourceError: If they cannot be written (E616).
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
        raise ResourceError(
            "E616",
            f"cannot write into {request.workdir}: {error.strerror}; give another "
            "--workdir.",
        ) from None
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
    """Of every part the images of its rows, at its first scale and track."""
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
            if path.is_file() and _done(request.workdir, cell):
                with np.load(path) as stored:
                    rows[label] = dict(stored)
        if rows:
            out.append(page.Pictures(part, scale, track, rows))
    return out
