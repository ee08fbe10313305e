"""What is asked of the paper's tables, and the folder that their cells lie in."""

from __future__ import annotations

import dataclasses
import json
import re
import secrets
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import jax

from daasr_jax.data.pseudonyms import salted
from daasr_jax.errors import ConfigError, unwritable
from daasr_jax.evaluation.tables import budgets, cells
from daasr_jax.evaluation.tables.cells import NO_TRACK, ROWS, Cell, TablePlan, Trial
from daasr_jax.experiment import checks
from daasr_jax.experiment.cell_setting import Setting
from daasr_jax.experiment.configuration import load
from daasr_jax.experiment.places import place
from daasr_jax.experiment.record import NAMING
from daasr_jax.files import kept, write_atomically
from daasr_jax.runtime import devices

_KEYS = "|".join(map(re.escape, NAMING))
_NAMED = re.compile(rf"((?:--set=)?(?:{_KEYS})(?:\.\w+)?=).*")
IDENTITY, DONE, FAILED = "reproduce.json", "done.json", "failed.json"
# Keys that tell one cell from another, and what to give instead of `--set`.
_OF_A_CELL = {
    "scale": "give --scales",
    "seed": "give --seeds",
    "reference.track": "give --tracks",
    "reference.aligned": "give --tracks",
    "train.steps": "give --steps or --minutes",
    "train.epochs": "give --steps",
    "optimiser.learning_rate": "trials choose it",
    "model.name": "give --only",
}
_OF_A_PART = {
    "train.crop": "table_5",
    "losses.cwt.weight": "table_6",
    "losses.sat.weight": "table_6",
}


@dataclasses.dataclass(frozen=True)
class ReproduceRequest:
    """What is asked for.

    Attributes:
        parts: Keys of `cells.PARTS`.
        setting: Of all cells.
        data: Name of the data's configuration, for the record.
        workdir: Folder of cells and tables.
        only: Rows to run; empty for all. The tables show the others as not run.
        scales, tracks: To run and show; empty for those of the paper.
        lacking: Tracks of the paper that were not asked for, as the data lack them.
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
    lacking: Sequence[str] = ()
    seeds: int = 1
    arguments: Sequence[str] = ()

    def check(self) -> None:
        """Refuses names that no table has, and changes that would undo its rows.

        Raises:
            ConfigError: If there is one (E280, E287).
        """
        for key in self.setting.changes:
            instead = _OF_A_CELL.get(key, "")
            if (part := _OF_A_PART.get(key)) in self.parts:
                name = str(part).replace("_", " ").capitalize()
                instead = f"the rows of {name} differ in it, so leave that table out"
            if instead:
                raise ConfigError(
                    "E287", f"--set {key} would make different cells alike: {instead}."
                )
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

    def plan(self, *, shown: bool = False) -> TablePlan:
        """What is run, or with `shown` what the tables show."""
        return cells.plan_tables(
            self.parts,
            self.setting.budget,
            only=() if shown else self.only,
            scales=self.scales,
            tracks=self.tracks,
            seeds=self.seeds,
            tried_on=self.setting.track,
        )


def of_tracks(
    request: ReproduceRequest, tracks: Sequence[str], lacking: Sequence[str]
) -> ReproduceRequest:
    """A request that named no track, with those that its data have."""
    setting = dataclasses.replace(request.setting, track=tracks[0])
    return dataclasses.replace(request, setting=setting, tracks=tracks, lacking=lacking)


def as_begun(request: ReproduceRequest, *, write: bool) -> ReproduceRequest:
    """A request with what the commands before it fixed for all cells of its folder.

    The track of the trials is that of the first command, so all rates of a folder are
    chosen alike. The pairings are the most that any command asked for.

    Args:
        request: Whose tracks are known, and whose folder is checked.
        write: Keep its own track where it is the first.

    Raises:
        UserError: If that cannot be written (E209, E617).
    """
    path = request.workdir / IDENTITY
    found, s = kept(path), request.setting
    known = found if isinstance(found, dict) else {}
    track = known.get("track", s.track)
    if write and "track" not in known:
        _write_identity(path, known | {"track": track})
    pairings = max(s.pairings, known.get("pairings", 1))
    setting = dataclasses.replace(s, track=track, pairings=pairings)
    return dataclasses.replace(request, setting=setting)


def requested(given: Any, words: Sequence[str]) -> ReproduceRequest:
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
    budget = budgets.budget(
        given.budget, size=given.size, steps=given.steps, minutes=given.minutes, gpu=gpu
    )
    masks = str(place(given.masks).absolute()) if given.masks else ""

    def listed(words: str) -> list[str]:
        return [word for word in words.split(",") if word]

    try:
        scales = [int(x) for x in listed(given.scales)]
    except ValueError:
        raise ConfigError("E285", f"--scales {given.scales}: give 2, 3 or 4.") from None
    tracks = listed(given.tracks)
    first = next(iter(cells.asked_tracks(tracks)), "")
    return ReproduceRequest(
        parts=parts,
        setting=Setting(source, budget, changes, given.pairings, masks, first),
        data=given.data,
        workdir=given.workdir.absolute(),
        only=listed(given.only),
        scales=scales,
        tracks=tracks,
        seeds=given.seeds,
        arguments=_unnamed([w for w in words if w not in ("--debug", "--dry_run")]),
    )


def _unnamed(words: Sequence[str]) -> list[str]:
    """The arguments without places and lists of people that `--set` gives."""
    return [_NAMED.sub(r"\1...", word) for word in words]


def _without_names(identity: dict[str, Any], salt: str) -> dict[str, Any]:
    """With a salted SHA-256 for each list of people and each place."""
    out = json.loads(json.dumps(identity))
    lists = out["data"].get("subjects")
    named = [lists] if isinstance(lists, dict) else []
    for values in (*named, out["changes"]):
        for key, value in values.items():
            hides = values is lists or _NAMED.match(f"{key}=")
            if hides and value and not str(value).startswith("sha256:"):
                values[key] = f"sha256:{salted(json.dumps(value), salt)}"
    return out


def check_identity(request: ReproduceRequest, *, write: bool) -> None:
    """Refuses a folder whose cells have other data or another budget (E281).

    What a folder of before does not tell is not compared. More pairings and masks may
    come later: what was finished without them is evaluated again.
    """
    s = request.setting
    places = ("root", "usual_root", "cache_dir", "split_file")  # machines have others
    rows = ("track", "aligned")  # each cell has its own
    source = s.data.to_dict()
    own = {
        "data": {k: v for k, v in source["data"].items() if k not in places},
        "reference": {k: v for k, v in source["reference"].items() if k not in rows},
        "degradation": source["degradation"],
        "budget": dataclasses.asdict(s.budget),
        "changes": dict(s.changes),
        "masks": bool(s.masks),
    }
    path = request.workdir / IDENTITY
    before = kept(path)
    known = before if isinstance(before, dict) else {}
    salt = str(known.get("salt", "" if known else secrets.token_hex(16)))
    own = _without_names(own, salt) | ({"salt": salt} if salt else {})
    if all(isinstance(known.get(k), dict) for k in ("data", "changes")):
        known = _without_names(known, salt)
    if isinstance(known.get("budget"), dict):
        known = known | {"budget": own["budget"] | known["budget"]}
    own["pairings"] = max(s.pairings, known.get("pairings", 1))
    added = ["pairings", *(["masks"] if s.masks else [])]
    changed = ", ".join(
        k for k in own if k in known and known[k] != own[k] and k not in added
    )
    if changed:
        raise ConfigError(
            "E281",
            f"{request.workdir} holds cells of another {changed}: give another "
            "--workdir, or what it began with.",
        )
    own |= {k: known[k] for k in ("track",) if k in known}
    if before != own and write:
        _write_identity(path, own)


def _write_identity(path: Path, identity: dict[str, Any]) -> None:
    try:
        write_atomically(path, json.dumps(identity, indent=1))
    except OSError as error:
        raise unwritable(path, error) from None


def done_record(
    folder: Path, job: Trial | Cell, *, lpips: bool = False
) -> dict[str, Any] | None:
    """What a finished job left; None where it is not finished, or has no LPIPS.

    A cell is evaluated again where it has fewer pairings than its folder, or no
    pictures by its masks. One of before on `neighbour` or `contrast` is too, where it
    does not say which slices it was scored on.
    """
    found = kept(folder / job.name / DONE)
    if found is None or (lpips and not found.get("lpips", True)):
        return None
    if isinstance(job, Trial):
        return found
    asked = kept(folder / IDENTITY) or {}
    if asked.get("masks", False) and not found.get("masks", False):
        return None
    if job.track == NO_TRACK:
        return found
    number = found.get("pairings", found["pairings_used"])
    whole = number >= asked.get("pairings", 1)
    if job.track != "random":
        whole = whole and found.get("by_place", False)
    return found if whole else None


def is_done(folder: Path, job: Trial | Cell, *, lpips: bool = False) -> bool:
    """Whether a job is finished; without LPIPS it is not where that is wanted."""
    return done_record(folder, job, lpips=lpips) is not None


def lease_of(folder: Path, job: Trial | Cell) -> Path:
    """The file that says who has a job, see `runtime.lease`."""
    return folder / "leases" / job.name.replace("/", "-")


def equal_steps_file(folder: Path, scale: int) -> Path:
    """The steps that all equal cells of a scale have, once the first has begun."""
    return folder / f"equal_steps_x{scale}.json"
