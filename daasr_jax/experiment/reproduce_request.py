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
from daasr_jax.experiment.cell_pictures import PICTURES, is_stripped
from daasr_jax.experiment.cell_setting import Setting
from daasr_jax.experiment.configuration import load
from daasr_jax.experiment.places import place
from daasr_jax.experiment.record import NAMING
from daasr_jax.experiment.same_run import flat_keys
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
        if self.setting.changes:
            self._check_changes()

    def _check_changes(self) -> None:
        instead: dict[str, str] = {}
        for part, rows in self.plan(shown=True).rows.items():
            own = [key for _, key in rows if key not in cells.SYSTEMS]
            name = part.replace("_", " ").capitalize()
            told = f"the rows of {name} differ in it, so leave that out"
            instead |= dict.fromkeys(_differing(own, self.setting.budget.size), told)
        instead |= _OF_A_CELL
        for key in self.setting.changes:
            if key in instead:
                raise ConfigError(
                    "E287",
                    f"--set {key} would make different cells alike: {instead[key]}.",
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
            tried_on=self.setting.tried_on or self.setting.track,
        )


def _differing(rows: Sequence[str], size: str) -> set[str]:
    """Keys in which the configurations of some rows differ."""
    configs = [flat_keys(load(ROWS[row].configuration(size)).to_dict()) for row in rows]
    found = {"train.crop"} if any(ROWS[row].crop for row in rows) else set()
    for key in {key for config in configs for key in config}:
        values = [config[key] for config in configs if key in config]
        if any(value != values[0] for value in values):
            found.add(key)
    return found


def of_tracks(
    request: ReproduceRequest, tracks: Sequence[str], lacking: Sequence[str]
) -> ReproduceRequest:
    """A request that named no track, with those that its data have."""
    setting = dataclasses.replace(request.setting, track=tracks[0])
    return dataclasses.replace(request, setting=setting, tracks=tracks, lacking=lacking)


def as_begun(request: ReproduceRequest) -> ReproduceRequest:
    """A request with what the commands before it fixed for all cells of its folder.

    The track of the trials is that of the first command, so all rates of a folder are
    chosen alike. The pairings are the most that any command asked for.
    """
    known, s = _known(request), request.setting
    setting = dataclasses.replace(
        s,
        tried_on=known.get("track", s.track),
        pairings=max(s.pairings, known.get("pairings", 1)),
    )
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


def _known(request: ReproduceRequest) -> dict[str, Any]:
    """What the folder was begun with; empty where it is new or damaged."""
    found = kept(request.workdir / IDENTITY)
    return found if isinstance(found, dict) else {}


def check_identity(request: ReproduceRequest) -> dict[str, Any]:
    """Refuses a folder whose cells have other data or another budget.

    What a folder of before does not tell is not compared. More pairings and masks may
    come later: what was finished without them is evaluated again.

    Returns:
        What its cells have in common.

    Raises:
        ConfigError: If it holds cells of another kind (E281).
    """
    s = request.setting
    places = ("root", "usual_root", "cache_dir", "split_file")  # machines have others
    rows = ("track", "aligned")  # each cell has its own
    source = s.data.to_dict()
    own: dict[str, Any] = {
        "data": {k: v for k, v in source["data"].items() if k not in places},
        "reference": {k: v for k, v in source["reference"].items() if k not in rows},
        "degradation": source["degradation"],
        "budget": dataclasses.asdict(s.budget),
        "changes": dict(s.changes),
        "masks": bool(s.masks),
    }
    known = _known(request)
    salt = str(known.get("salt", "" if known else secrets.token_hex(16)))
    own = _without_names(own, salt) | ({"salt": salt} if salt else {})
    if all(isinstance(known.get(k), dict) for k in ("data", "changes")):
        known = _without_names(known, salt)
    changed = ""
    if isinstance(before := known.get("budget"), dict):
        if "validations" not in before and s.budget.size == "published":
            changed = "schedule of the learning rate"  # it was by epochs
        known = known | {"budget": own["budget"] | before}
    fixed = own.keys() - ({"masks"} if s.masks else set())
    changed = changed or ", ".join(
        k for k in own if k in fixed & known.keys() and known[k] != own[k]
    )
    if changed:
        raise ConfigError(
            "E281",
            f"{request.workdir} holds cells of another {changed}: give another "
            "--workdir, or what it began with.",
        )
    return own


def keep_identity(request: ReproduceRequest) -> None:
    """Notes in the folder what its cells have, once the data were found to serve.

    Args:
        request: Whose tracks are known.

    Raises:
        ConfigError: As `check_identity`, if another command was first.
        UserError: If it cannot be written (E209, E617).
    """
    path, s = request.workdir / IDENTITY, as_begun(request).setting
    own = check_identity(request) | {"pairings": s.pairings, "track": s.tried_on}
    if own != _known(request):
        try:
            write_atomically(path, json.dumps(own, indent=1))
        except OSError as error:
            raise unwritable(path, error) from None


def done_record(
    request: ReproduceRequest, job: Trial | Cell, *, lpips: bool = False
) -> dict[str, Any] | None:
    """What a finished job left; None where it is not finished, or has no LPIPS.

    A cell is evaluated again where it has fewer pairings than are asked for, or no
    pictures by the masks. One of before on `neighbour` or `contrast` is too, where it
    does not say which slices it was scored on.
    """
    folder = request.workdir / job.name
    found = kept(folder / DONE)
    if found is None or (lpips and not found.get("lpips", True)):
        return None
    if isinstance(job, Trial):
        return found
    if request.setting.masks and not is_stripped(folder / PICTURES):
        return None
    if job.track == NO_TRACK:
        return found
    number = found.get("pairings", found["pairings_used"])
    whole = number >= request.setting.pairings
    if job.track != "random":
        whole = whole and found.get("by_place", False)
    return found if whole else None


def is_done(
    request: ReproduceRequest, job: Trial | Cell, *, lpips: bool = False
) -> bool:
    """Whether a job is finished; without LPIPS it is not where that is wanted."""
    return done_record(request, job, lpips=lpips) is not None


def lease_of(folder: Path, job: Trial | Cell) -> Path:
    """The file that says who has a job, see `runtime.lease`."""
    return folder / "leases" / job.name.replace("/", "-")


def equal_steps_file(folder: Path, scale: int) -> Path:
    """The steps that all equal cells of a scale have, once the first has begun."""
    return folder / f"equal_steps_x{scale}.json"
