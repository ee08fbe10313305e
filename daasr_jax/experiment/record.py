"""What a run was made from: configuration, data and commit, recorded and compared."""

from __future__ import annotations

import hashlib
import json
import logging
from pathlib import Path
from typing import Any

import jax
from flax import traverse_util

from daasr_jax.errors import ConfigError
from daasr_jax.experiment.installation import commit_id
from daasr_jax.files import write_atomically

log = logging.getLogger("daasr_jax")

# Settings of where and how long, which do not change what is learned on the way.
_PLACES = (
    "data.root",
    "data.cache_dir",
    "perceptual.weights",
    "perceptual.sha256",
    "perceptual.strict",
    "train.start_from",
)
_FREE_ON_RESUME = (
    *_PLACES,
    "name",
    "train.epochs",
    "train.steps",
    "train.devices",
    "train.accumulate",  # with a warning
    "train.num_threads",
    "train.workers",
    "train.watchdog",
    "train.log_every",
    "train.validate_every_epochs",
    "train.checkpoint_every",
    "evaluate",
    "model.kwargs.remat",
    "distributed",  # a key of earlier runs
)


def config_sha256(config: dict[str, Any]) -> str:
    """SHA-256 of the configuration without the places where data and cache lie."""
    flat = _flat(config)
    kept = {k: v for k, v in flat.items() if k not in _PLACES}
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()


# What a run is made from beside its configuration, by the name in `config.json`.
_INPUTS = {
    "prepared_sha256": "the data differ from those",
    "perceptual": "the perceptual network differs from the one",
}


def has_checkpoints(folder: Path) -> bool:
    """Whether there is a checkpoint of any kind, usable or not."""
    return any((folder / "checkpoints").glob("[0-9]*"))


def record_config(
    config: dict[str, Any], folder: Path, inputs: dict[str, Any], *, begun: bool = False
) -> None:
    """Writes `config.json`, after comparing it with the one of the run so far.

    Args:
        config: The configuration.
        folder: Of the run.
        inputs: What else decides what is learned: `prepared_sha256` of the data,
            `perceptual`, the frozen network. `start`, the generator it begins with, is
            written when the run begins and stays.
        begun: Whether the run has a checkpoint to go on from.

    Raises:
        ConfigError: If a setting that decides what is learned has changed.
    """
    path = folder / "config.json"
    flat = _flat(config)
    if path.exists() and begun:
        try:
            old = json.loads(path.read_text(encoding="utf-8"))
            before = _flat(old["config"])
        except (ValueError, KeyError, OSError) as error:
            raise ConfigError("E208", f"{path} cannot be read: {error!r}.") from None
        free = _FREE_ON_RESUME
        optimisers = (config["optimiser"], config["adversarial"]["optimiser"])
        if any(o["schedule"] == "cosine" for o in optimisers):
            free = tuple(k for k in free if k not in ("train.epochs", "train.steps"))
        changed = [
            f"{k} was {before.get(k, 'absent')!r}, is {flat.get(k, 'absent')!r}"
            for k in sorted(before.keys() | flat.keys())
            if before.get(k) != flat.get(k) and not _under(k, free)
        ]
        changed += [
            f"{words} the run began with"
            for name, words in _INPUTS.items()
            if old.get(name) != inputs[name]
        ]
        inputs = inputs | {"start": old.get("start")}
        parts = before.get("train.accumulate", 1), flat["train.accumulate"]
        if parts[0] != parts[1]:
            log.warning(
                "train.accumulate was %d, is %d: batch normalisation now takes the "
                "statistics of parts of another size.",
                *parts,
            )
        if changed:
            raise ConfigError(
                "E207",
                f"{folder} holds a run with other settings: {'; '.join(changed)}. "
                "Give another --workdir, or the settings it began with.",
            )
    record = {
        "config": config,
        "config_sha256": config_sha256(config),
        "commit": commit_id(),
    } | inputs
    if jax.process_index() == 0:
        try:
            write_atomically(path, json.dumps(record, indent=1))
        except OSError as error:
            raise ConfigError(
                "E209", f"{path} cannot be written: {error.strerror}."
            ) from None


def read_record(folder: Path) -> dict[str, Any]:
    """`config.json` of a run; empty where there is none that can be read."""
    try:
        record = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (ValueError, OSError):
        return {}
    known = isinstance(record, dict) and isinstance(record.get("config"), dict)
    return record if known else {}


def trained_with(folder: Path) -> dict[str, Any]:
    """What a run was trained with that its scores depend on, for the report."""
    record = read_record(folder)
    if not {"perceptual", "start"} <= record.keys():
        return {}
    config = record["config"]
    return {
        "losses": {name: term["weight"] for name, term in config["losses"].items()},
        "perceptual": record["perceptual"],
        "adversarial": config["adversarial"],
        "start": record["start"],
    }


def warn_of_other_model(config: dict[str, Any], folder: Path) -> None:
    """Some settings of a network change its result and no parameter's shape."""
    record = read_record(folder)
    if not record:
        return
    trained, flat = _flat(record["config"]), _flat(config)
    for key in sorted(k for k in trained.keys() | flat.keys() if _under(k, ("model",))):
        if not _under(key, _FREE_ON_RESUME) and trained.get(key) != flat.get(key):
            log.warning(
                "the run was trained with %s=%r and is evaluated with %r",
                key,
                trained.get(key, "absent"),
                flat.get(key, "absent"),
            )


def _flat(config: dict[str, Any]) -> dict[str, Any]:
    """Nested keys joined by dots; tuples become lists, as JSON has them."""
    return traverse_util.flatten_dict(json.loads(json.dumps(config)), sep=".")


def _under(key: str, names: tuple[str, ...]) -> bool:
    return any(key == n or key.startswith(f"{n}.") for n in names)
