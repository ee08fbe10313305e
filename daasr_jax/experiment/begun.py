"""Whether a run has been in a folder: nothing begins again in silence."""

from __future__ import annotations

import logging
from pathlib import Path

import jax

from daasr_jax.errors import CheckpointError, unwritable
from daasr_jax.training.manifest import NONE_YET

log = logging.getLogger("daasr_jax")

# Signs that a run had a checkpoint; the others may be of its first save, cut short.
_PROOFS = ("manifests/*.json", "checkpoints_set_aside/*_damaged_*", "eval_*.json")
_UNFINISHED = ("checkpoints_set_aside/*", "checkpoints/*.orbax-checkpoint-tmp*")


def has_checkpoints(folder: Path) -> bool:
    """Whether there is a checkpoint of any kind, usable or not."""
    return any((folder / "checkpoints").glob("[0-9]*"))


def check_new(folder: Path, first_save: int) -> None:
    """Refuses to begin at step 1 where a run has been that had checkpoints.

    A new run gets the file `NONE_YET`, which its first checkpoint removes. While it is
    there, a run that was killed at or within its first save begins anew.

    Args:
        folder: Of a run without a usable checkpoint.
        first_save: The step of its first checkpoint: a log that comes to it proves that
            there was one.

    Raises:
        CheckpointError: If manifests, a log, results or a save that was not finished
            prove it (E415).
    """
    from daasr_jax.training.writers import read_log  # evaluation needs no TensorBoard

    none_yet = folder / NONE_YET

    steps = sorted(int(row.get("step", 0)) for row in read_log(folder))
    signs = [
        path.relative_to(folder).as_posix()
        for pattern in (*_PROOFS, *(() if none_yet.exists() else _UNFINISHED))
        for path in sorted(folder.glob(pattern))
    ]
    if steps and steps[-1] >= first_save and not none_yet.exists():
        signs.append(f"metrics.jsonl up to step {steps[-1]}")
    if signs:
        raise CheckpointError(
            "E415",
            f"{folder} holds a run without a usable checkpoint ({signs[0]}); restore "
            "its checkpoints and manifests from a copy, or give another --workdir.",
        )
    if steps:
        log.warning(
            "the run in %s was ended at step %d, before its first checkpoint: it "
            "begins anew",
            folder,
            steps[-1],
        )
    if jax.process_index() == 0:
        try:
            none_yet.touch()
        except OSError as error:
            raise unwritable(none_yet, error) from None
