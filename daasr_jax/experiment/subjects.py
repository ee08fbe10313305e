"""Whose scans a run has seen: written beside it, compared with what is evaluated."""

from __future__ import annotations

import json
import logging
import secrets
from pathlib import Path
from typing import Any

from daasr_jax.data import Names, PreparedSet
from daasr_jax.data.pseudonyms import salted
from daasr_jax.errors import CheckpointError, DataError, unwritable
from daasr_jax.experiment.record import RECORD
from daasr_jax.files import file_hash, read_json, write_atomically

log = logging.getLogger("daasr_jax")

SPLIT = "split.json"
SEEN = "subjects.json"
_LEARNED_FROM = ("train", "val")


def record_subjects(
    prepared: PreparedSet, folder: Path, *, names: bool = False
) -> None:
    """Writes the split of a run and the subjects in it, both as salted hashes.

    `split.json` is a file for `data.split_file`. `subjects.json` has SHA-256 of salt
    and subject, and of the voxels of each volume. It is what `overlap` reads, so it can
    go with weights that are given to others. The salt is in both files: who has them
    can ask whether a name that he knows was there. Its `contents` are SHA-256 of salt
    and name of each volume, with that of its voxels, by which `changed_files` tells
    which file is another one.

    Args:
        prepared: The data of the run.
        folder: Of the run.
        names: Write the names into `split.json` instead.

    Raises:
        UserError: If they cannot be written (E209, E617).
    """
    old = read_seen(folder)
    salt = old["salt"] if old else secrets.token_hex(16)
    seen = {
        "dataset": Names(None if names else salt).dataset(prepared.dataset),
        "salt": salt,
        "subjects": prepared.subject_hashes(salt),
        "volumes": prepared.volume_hashes,
        "contents": {
            salted(key, salt): content for key, (_, content) in prepared.files.items()
        },
    }
    if old:  # those that were seen before stay so, where the data have changed
        for kind in ("subjects", "volumes"):
            for split, known in seen[kind].items():
                before = old[kind].get(split, [])
                seen[kind][split] = sorted({*known, *before})
        if all(seen[k] == old.get(k) for k in ("subjects", "volumes", "contents")):
            return
    try:
        prepared.write_split(folder / SPLIT, None if names else salt)
        write_atomically(folder / SEEN, json.dumps(seen, indent=1))
    except OSError as error:
        raise unwritable(folder, error) from None


def read_seen(folder: Path) -> dict[str, Any] | None:
    """`subjects.json` of a run; None where there is none, as of imported weights.

    Raises:
        CheckpointError: If it cannot be read (E416).
    """
    path = folder / SEEN
    if not path.exists():
        return None
    try:
        seen = read_json(path)
        lists = [x for k in ("subjects", "volumes") for x in seen[k].values()]
        texts = [seen["salt"], *(x for hashes in lists for x in hashes)]
        assert all(isinstance(x, list) for x in lists)
        assert all(isinstance(x, str) for x in texts)
        contents = seen.get("contents", {}).values()
        assert all(isinstance(x, str) for x in contents)
    except (
        OSError, ValueError, KeyError, TypeError, AttributeError, AssertionError
    ) as error:  # fmt: skip
        raise CheckpointError(
            "E416",
            f"{path} cannot be read ({type(error).__name__}), so nothing tells whom "
            "the run was trained on; restore it from a copy.",
        ) from None
    return seen


def changed_files(folder: Path, prepared: PreparedSet) -> list[str]:
    """Files whose voxels are not those that the run began with, by their names.

    A run from before contents were recorded knows none.

    Args:
        folder: Of the run.
        prepared: The data as they are now.

    Raises:
        CheckpointError: If `subjects.json` cannot be read (E416).
    """
    seen = read_seen(folder) or {}
    known, salt = seen.get("contents", {}), seen.get("salt", "")
    return [
        path
        for key, (path, content) in prepared.files.items()
        if known.get(salted(key, salt), content) != content
    ]


def salt_of(folder: Path) -> str:
    """The salt of the names in a run's results: that of its `subjects.json`.

    Of a run without that file, such as imported weights, it is the SHA-256 of its
    `config.json`.

    Raises:
        CheckpointError: If the file cannot be read (E416).
    """
    seen = read_seen(folder)
    return seen["salt"] if seen else file_hash(folder / RECORD)


def is_own(folder: Path, prepared: PreparedSet, split: str) -> bool:
    """Whether these are the voxels of a split of the run."""
    seen = read_seen(folder)
    if seen is None:
        return False
    return {*prepared.volume_hashes[split]} == {*seen["volumes"].get(split, ())}


def overlap(
    seen: dict[str, Any], prepared: PreparedSet, split: str
) -> dict[str, dict[str, int]]:
    """What is evaluated of those that the run learned from.

    Args:
        seen: From `read_seen`.
        prepared: The data that are evaluated.
        split: The one of it.

    Returns:
        Split of the run (`train`, `val`) -> number of `subjects` (by name) and
        `volumes` (by voxels) that are in both; splits without any are left out.
    """
    found = {}
    for learned in _LEARNED_FROM:
        counts = {
            "subjects": len(
                {*seen["subjects"].get(learned, ())}
                & {*prepared.subject_hashes(seen["salt"])[split]}
            ),
            "volumes": len(
                {*seen["volumes"].get(learned, ())} & {*prepared.volume_hashes[split]}
            ),
        }
        if any(counts.values()):
            found[learned] = counts
    return found


def refuse(found: dict[str, dict[str, int]], folder: Path) -> DataError:
    """The error of an overlap that is not allowed (E341)."""
    text = "; ".join(
        f"of its {split} split {n['subjects']} by name and {n['volumes']} volumes by "
        "voxels"
        for split, n in found.items()
    )
    return DataError(
        "E341",
        f"the run in {folder} learned from subjects that would be evaluated: {text}. "
        "Leave them out by --subjects, or say --allow_overlap, which the report names.",
    )
