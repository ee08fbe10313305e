"""What a run was made from: configuration, data and commit, recorded and compared."""

from __future__ import annotations

import copy
import json
import logging
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import jax

from daasr_jax.data import Shares
from daasr_jax.data.sources.base import some
from daasr_jax.errors import CheckpointError, ConfigError, DataError, unwritable
from daasr_jax.experiment.installation import command, commit_id
from daasr_jax.experiment.same_run import (
    FREE_ON_RESUME,
    config_sha256,
    differing_keys,
    flat_keys,
    under,
)
from daasr_jax.files import read_json, write_atomically

log = logging.getLogger("daasr_jax")

RECORD = "config.json"
# What names files and people stands beside it, so that the record names nobody.
LOCAL = "local.json"
NAMING = (
    "data.root",
    "data.usual_root",
    "data.cache_dir",
    "data.split_file",
    "data.subjects",
    "perceptual.weights",
    "train.start_from",
)

# What reading a damaged record raises.
_BAD_RECORD = (OSError, ValueError, LookupError, TypeError, AttributeError)

# Keys that came later, with what the runs before them did.
_LATER: dict[str, Any] = {
    "data.links_out": False,
    "degradation": "bicubic",
    "data.skip_bad": False,
    "model.data_consistency": False,
    "reference.distance_mm": 0.0,
    "reference.count": 1,
    "train.batch_per_device": 0,
    "train.validate_every": 0,
} | {f"reference.shares.{kind}": share for kind, share in asdict(Shares()).items()}


# What a run is made from beside its configuration, by the name in `config.json`.
_INPUTS = {
    "prepared_sha256": "the data differ from those",
    "companions_sha256": "the contrasts on the grids of others differ from those",
    "perceptual": "the perceptual network differs from the one",
}


def record_config(
    config: dict[str, Any],
    folder: Path,
    inputs: dict[str, Any],
    *,
    begun: bool = False,
    ended: bool = False,
    allow: bool = False,
    changed_files: Sequence[str] = (),
) -> None:
    """Writes `config.json`, after comparing it with the one of the run so far.

    What names files and people, such as the data root and lists of subjects, goes into
    `local.json` beside it. The run is opened with it, and without it where the run was
    given away.

    Args:
        config: The configuration.
        folder: Of the run.
        inputs: What else decides what is learned: `prepared_sha256` of the data,
            `perceptual`, the frozen network. `start`, the generator it begins with, and
            `batch`, how many images a step takes, are written when the run begins and
            stay. `deterministic`, whether a GPU computes the same bits again, is that
            of the last part; on a GPU another choice is a warning.
        begun: Whether the run has a checkpoint to go on from.
        ended: Whether that is its last one: the code of now trains nothing of it.
        allow: Go on with settings that differ; `changes` of the record names them.
        changed_files: Those whose voxels are not what the run began with.

    Raises:
        ConfigError: If a setting that decides what is learned has changed (E207), or
            there is no record to compare with (E208).
        DataError: If no setting has, and files are others (E334).
    """
    path = folder / RECORD
    commits: list[str] = []
    allowed: list[str] = []
    if begun:
        commits, allowed, inputs = _compared(
            config, folder, inputs, allow=allow, changed_files=changed_files
        )
    commit = commit_id()
    public, local = _parted(config)
    record = {
        "config": public,
        "config_sha256": config_sha256(config),
        "commit": commit,
        "commits": list(dict.fromkeys([*commits, *([] if ended else [commit])])),
        "changes": allowed,
    } | inputs
    if jax.process_index() == 0:
        try:
            if local:
                write_atomically(folder / LOCAL, json.dumps(local, indent=1))
            else:
                (folder / LOCAL).unlink(missing_ok=True)
            write_atomically(path, json.dumps(record, indent=1))
        except OSError as error:
            raise unwritable(path, error) from None


def _compared(
    config: dict[str, Any],
    folder: Path,
    inputs: dict[str, Any],
    *,
    allow: bool,
    changed_files: Sequence[str],
) -> tuple[list[str], list[str], dict[str, Any]]:
    """Compares with the record of the run so far, see `record_config`.

    Returns:
        Commits so far, changes that were allowed, and inputs that stay.
    """
    path = folder / RECORD
    if not path.exists():
        raise ConfigError(
            "E208",
            f"{path} is missing, so nothing tells whether this is the run that the "
            "checkpoints are of; restore it from a copy, or give another "
            "--workdir.",
        )
    flat = flat_keys(config)
    try:
        old = _read(path)
        before = flat_keys(completed(old["config"]))
        commits = list(old.get("commits") or [old["commit"]])
        allowed = list(old.get("changes") or [])
        batch = began_with(old)
    except _BAD_RECORD as error:
        raise ConfigError(
            "E208", f"{path} cannot be read ({type(error).__name__})."
        ) from None
    free = FREE_ON_RESUME
    optimisers = (config["optimiser"], config["adversarial"]["optimiser"])
    if any(o["schedule"] == "cosine" for o in optimisers):
        free = tuple(k for k in free if k not in ("train.epochs", "train.steps"))
    keys = differing_keys(before, flat, free)
    changes = [
        f"{k} was {before.get(k, 'absent')!r}, is {flat.get(k, 'absent')!r}"
        for k in keys
    ]
    kept = [
        f"{k} was another one" if under(k, NAMING) else words
        for k, words in zip(keys, changes, strict=True)
    ]
    if changed_files and not changes and not allow:
        files = some(changed_files)
        raise DataError(
            "E334",
            f"the voxels of {len(changed_files)} files are not those that the run "
            f"in {folder} began with, though their names and all settings are: "
            f"{files}. Restore them from a copy, or go on with them "
            "by --allow_config_change, which the record then tells.",
        )
    others = [
        f"{words} the run began with"
        for name, words in _INPUTS.items()
        if old.get(name) != inputs.get(name)
    ]
    changes, kept = [*changes, *others], [*kept, *others]
    inputs = inputs | {"start": old.get("start"), "batch": batch}
    _compare_operations(old.get("deterministic"), inputs.get("deterministic"))
    parts = before.get("train.accumulate", 1), flat["train.accumulate"]
    if parts[0] != parts[1]:
        log.warning(
            "train.accumulate was %d, is %d: batch normalisation now takes the "
            "statistics of parts of another size.",
            *parts,
        )
    if changes and not allow:
        raise ConfigError(
            "E207",
            f"{folder} holds a run with other settings: {'; '.join(changes)}. "
            "Give another --workdir, the settings it began with, or "
            "--allow_config_change, which the record then tells.",
        )
    if changes:
        log.warning("the run goes on with other settings: %s", "; ".join(changes))
    return commits, [*allowed, *kept], inputs


def _compare_operations(before: Any, now: Any) -> None:
    """Warns of a GPU that goes on in another way; a run of before did not say."""
    if None not in (before, now) and before != now and jax.default_backend() != "cpu":
        began, goes_on = ("with" if x else "without" for x in (before, now))
        log.warning(
            "the run was trained %s --deterministic and goes on %s it: the bits are "
            "not those of a run in one piece",
            began,
            goes_on,
        )


def no_run(folder: Path) -> CheckpointError:
    """The error of a folder without a record (E404)."""
    return CheckpointError(
        "E404",
        f"{folder} is no run: no {RECORD} there that can be read; "
        f"train into it first: {command('train')}",
    )


def read_record(folder: Path) -> dict[str, Any]:
    """`config.json` of a run; empty where there is none that can be read.

    Its configuration has the values of `local.json` too, where that is beside it.
    """
    try:
        record = _read(folder / RECORD)
        own = {"config": completed(record["config"]), "batch": began_with(record)}
        return record | own
    except _BAD_RECORD:
        return {}


def began_with(record: dict[str, Any]) -> dict[str, Any]:
    """The batch that a run began with; before it was recorded, the configuration's.

    Raises:
        TypeError: If it is no batch.
    """
    size = record["config"].get("train", {}).get("batch_size")
    before = {"images": size, "rates_of": size, "rates_times": 1.0}
    batch = record.get("batch") or before
    if not isinstance(batch["images"], int):
        raise TypeError("the batch has no number of images")
    return batch


def completed(config: dict[str, Any]) -> dict[str, Any]:
    """The configuration of a run with the keys that came after it, where it has none.

    Args:
        config: Nested, as `config.json` has it.
    """
    out = copy.deepcopy(config)
    later = _LATER
    if out.get("model", {}).get("name") == "daasr":
        later = later | {"model.kwargs.phases": 1, "model.kwargs.detail.name": "none"}
    for key, value in later.items():
        *path, name = key.split(".")
        inner = out
        for part in path:
            inner = inner.setdefault(part, {})
        inner.setdefault(name, value)
    return out


def trained_with(record: dict[str, Any]) -> dict[str, Any]:
    """What a run was trained with that its scores depend on, for the report."""
    if not {"perceptual", "start"} <= record.keys():
        return {}
    config = record["config"]
    return {
        "losses": {name: term["weight"] for name, term in config["losses"].items()},
        "perceptual": record["perceptual"],
        "adversarial": config["adversarial"],
        "start": record["start"],
        "batch": record["batch"],
        "changes": record.get("changes", []),
    }


def _read(path: Path) -> dict[str, Any]:
    """`config.json` as it stands, its configuration with the values of `local.json`."""
    record, beside = read_json(path), path.with_name(LOCAL)
    if path.name == RECORD and beside.exists():
        try:
            for key, value in read_json(beside).items():
                if under(key, NAMING):
                    _put(record["config"], key, value)
        except _BAD_RECORD as error:
            log.warning(
                "%s cannot be read (%s): give --config.data.root, and to go on "
                "--config.data.split_file=%s",
                beside,
                type(error).__name__,
                path.with_name("split.json"),
            )
    return record


def _parted(config: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The configuration without what names files and people, and that by its keys."""
    public = copy.deepcopy(config)
    local = {k: v for k, v in flat_keys(config).items() if v and under(k, NAMING)}
    for key, value in local.items():
        _put(public, key, type(value)())
    return public, local


def _put(config: dict[str, Any], key: str, value: Any) -> None:
    *above, name = key.split(".")
    for part in above:
        config = config[part]
    config[name] = value


def configuration_of(path: Path) -> dict[str, Any]:
    """The configuration of a `config.json`, nested, with the keys that came later.

    Raises:
        OSError, ValueError, LookupError, TypeError, AttributeError: If it is none.
    """
    return completed(_read(path)["config"])
