"""Which settings may differ within a run, and which beside it in an evaluation."""

from __future__ import annotations

import difflib
import hashlib
import json
from pathlib import Path
from typing import Any

from flax import traverse_util
from ml_collections import ConfigDict

from daasr_jax.errors import ConfigError

# Settings of where and how long, which do not change what is learned on the way.
PLACES = (
    "data.root",
    "data.usual_root",
    "data.links_out",
    "data.cache_dir",
    "data.split_file",
    "data.skip_bad",  # what it leaves out is in the hash of the data
    "perceptual.weights",
    "perceptual.sha256",
    "perceptual.strict",
    "train.start_from",
)
FREE_ON_RESUME = (
    *PLACES,
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
    "train.validate_every",
    "train.checkpoint_every",
    "evaluate",
    "model.kwargs.remat",
    "distributed",  # a key of earlier runs
)

# What an evaluation may be given beside the run: places, how data there are read, the
# references, its own settings.
EVALUATED = (
    "data.root",
    "data.links_out",
    "data.cache_dir",
    "data.layout",
    "data.folders",
    "data.target",
    "data.skip_bad",
    "data.pattern",
    "data.subject_from",
    "data.contrasts",
    "data.slice_axis",
    "data.slice_first",
    "data.slice_last",
    "data.slice_step",
    "reference",
    "evaluate",
    "train.devices",
)


def config_sha256(config: dict[str, Any]) -> str:
    """SHA-256 of the configuration without the places where data and cache lie."""
    flat = flat_keys(config)
    kept = {k: v for k, v in flat.items() if k not in PLACES}
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()


def with_given(record: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    """The configuration of a run with what an evaluation is given beside it.

    Args:
        record: Of the run. Imported weights learned from no data that it could name,
            so all settings of the data are the evaluation's.
        given: Key -> value, from the command line.

    Raises:
        ConfigError: If a key is not the evaluation's to set and has another value in
            the run (E250).
    """
    flat = flat_keys(record["config"])
    free = (*EVALUATED, *(() if record.get("prepared_sha256") else ("data",)))
    for key, value in given.items():
        if under(key, free) or flat.get(key) == _plain(value):
            continue
        allowed = [k for k in flat if under(k, free)]
        near = difflib.get_close_matches(key, allowed, n=1, cutoff=0)[0]
        raise ConfigError(
            "E250",
            f"--config.{key}={value} is not the evaluation's to set: the run was "
            f"trained with {flat.get(key)!r}; nearest that is: --config.{near}.",
        )
    config = ConfigDict(record["config"])
    config.update_from_flattened_dict(
        {key: value for key, value in given.items() if under(key, free)}
    )
    return config.to_dict()


def changed(before: dict[str, Any], after: dict[str, Any]) -> dict[str, Any]:
    """Keys with another value, but for the places where data and cache lie."""
    flat = flat_keys(after)
    return {
        key: flat.get(key) for key in differing_keys(flat_keys(before), flat, PLACES)
    }


def check_same(record: dict[str, Any], config: dict[str, Any], folder: Path) -> None:
    """Refuses a configuration that is not the one a run was trained by.

    Args:
        record: Of the run.
        config: What `--config` gives.
        folder: Of the run.

    Raises:
        ConfigError: If they differ in a key that decides what was learned (E251).
    """
    ran, flat = flat_keys(record["config"]), flat_keys(config)
    free = (*FREE_ON_RESUME, *EVALUATED)
    differing = [
        f"{key} is {ran.get(key, 'absent')!r} there and {flat.get(key, 'absent')!r} in "
        "--config"
        for key in sorted(differing_keys(ran, flat, free), key=lambda k: k.count("."))
    ]
    if differing:
        more = f" (and {len(differing) - 3} more)" if len(differing) > 3 else ""
        raise ConfigError(
            "E251",
            f"{folder} holds another run: {'; '.join(differing[:3])}{more}. Leave "
            "--config out: the run knows its own.",
        )


def differing_keys(
    before: dict[str, Any], after: dict[str, Any], free: tuple[str, ...]
) -> list[str]:
    """Keys with another value, sorted, but for those under the free ones."""
    return [
        key
        for key in sorted(before.keys() | after.keys())
        if before.get(key) != after.get(key) and not under(key, free)
    ]


def flat_keys(config: dict[str, Any]) -> dict[str, Any]:
    """Nested keys joined by dots; tuples become lists, as JSON has them."""
    return traverse_util.flatten_dict(_plain(config), sep=".")


def _plain(value: Any) -> Any:
    return json.loads(json.dumps(value))


def under(key: str, names: tuple[str, ...]) -> bool:
    """Whether a key is one of the names, or under one."""
    return any(key == n or key.startswith(f"{n}.") for n in names)
