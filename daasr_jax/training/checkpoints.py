"""Checkpoints of a run: the latest two, the best, the last clean one, all verified."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils
from orbax.checkpoint.checkpoint_managers import preservation_policy

from daasr_jax.errors import (
    FULL,
    CheckpointError,
    ResourceError,
    first_line,
    unwritable,
)
from daasr_jax.training.disk import quiet, refused, remedy, require
from daasr_jax.training.manifest import NONE_YET, seal, verify

log = logging.getLogger("daasr_jax")

# What "best" is by: name -> rank of a step from its number and validation metrics.
BEST_BY: dict[str, Callable[[int, Mapping[str, float]], float]] = {
    "psnr": lambda step, scores: scores.get("psnr", math.nan),
    "ssim": lambda step, scores: scores.get("ssim", math.nan),
    "lpips": lambda step, scores: -scores.get("lpips_alex", math.nan),
    "last": lambda step, scores: step,
}
# Kept beside the metrics of a step: its rank, or that it was saved in trouble.
_RANK = "rank"
SKIPPED = "skipped_in_a_row"
# What orbax raises for files that agree with their manifest and are no checkpoint.
_DAMAGE = (ValueError, LookupError, TypeError, AttributeError, NotImplementedError)
_SMOOTHED = "ema_batch_stats"  # a field of the state that earlier checkpoints lack


def _rank(metrics: Any) -> float:
    """Value that decides "best"; a missing or non-finite one never wins."""
    value = (metrics or {}).get(_RANK)
    return value if value is not None and math.isfinite(value) else -math.inf


def _clean(metrics: Any) -> bool:
    """Whether the update before a save was made, so that a run can go back to it."""
    return not (metrics or {}).get(SKIPPED)


class Checkpoints:
    """Saves and restores the train state under `workdir/checkpoints`.

    The place in the data is the number of steps, so nothing else is kept of it. On
    several processes every one makes every call; the folder is one that all see.

    A step saved while updates are left out (`skipped_in_a_row` of the state) is marked,
    and the newest step before the trouble is kept, however many follow.

    Every finished save gets a manifest of SHA-256 in `workdir/manifests`; a step is
    used only when its files agree with it. A damaged step is moved aside, never
    deleted, and the one before it is used; where none is left, all stay in place.

    Args:
        workdir: Folder of the run.
        best_by: Name in `BEST_BY` by which steps that are saved are ranked.
        best_from: Steps before this one are never the best.
        read_only: Open for evaluation: nothing is created or moved.

    Raises:
        CheckpointError: If the system refuses to read or move a file (E410), which
            is no damage: nothing is set aside then.
    """

    def __init__(
        self,
        workdir: str | Path,
        *,
        best_by: str = "psnr",
        best_from: int = 0,
        read_only: bool = False,
    ) -> None:
        self._best_by, self._best_from = best_by, best_from
        self._root = Path(workdir).absolute() / "checkpoints"
        self._manifests = Path(workdir).absolute() / "manifests"
        self._bad: dict[int, str] = {}
        for turn in (True, False):  # the first process moves what the others then miss
            if (jax.process_index() == 0) == turn:
                with self._system():
                    self._find_unusable(read_only)
            multihost_utils.sync_global_devices("checkpoints are examined")
        if not read_only and jax.process_index() == 0:
            with self._system():
                self._manifests.mkdir(parents=True, exist_ok=True)
        with self._system():
            self._manager = self._open(read_only)

    def _open(self, read_only: bool) -> ocp.CheckpointManager:
        policy = preservation_policy.AnyPreservationPolicy(
            [
                preservation_policy.LatestN(2),
                preservation_policy.BestN(
                    get_metric_fn=_rank, n=1, keep_checkpoints_without_metrics=False
                ),
                preservation_policy.BestN(  # the newest of those that are equal
                    get_metric_fn=_clean, n=1, keep_checkpoints_without_metrics=False
                ),
            ]
        )
        return ocp.CheckpointManager(
            self._root,
            options=ocp.CheckpointManagerOptions(
                preservation_policy=policy,
                best_fn=_rank,
                # the metrics of a damaged step, which stays in place then, are not read
                lightweight_initialize=read_only,
                create=not read_only,
                read_only=read_only,
                enable_async_checkpointing=False,
            ),
            item_names=("state",),
            item_handlers={"state": ocp.StandardCheckpointHandler()},
        )

    def steps(self) -> list[int]:
        """Usable steps, ascending."""
        return sorted(s for s in self._manager.all_steps() if s not in self._bad)

    def unusable(self) -> dict[int, str]:
        """Steps that are there and cannot be used, with the reason."""
        return {s: why or "was not finished" for s, why in self._bad.items()}

    def latest(self) -> int | None:
        """Newest usable step, None in a new run.

        Raises:
            CheckpointError: If there are checkpoints and none is usable.
        """
        steps = self.steps()
        damaged = [s for s, reason in self._bad.items() if reason]
        if not steps and damaged:
            raise CheckpointError(
                "E401",
                f"no usable checkpoint in {self._root}: step {max(damaged)}: "
                f"{self._bad[max(damaged)]}; restore it from a copy, or give another "
                "--workdir to start anew.",
            )
        return _agreed(steps[-1] if steps else None)

    def best(self) -> int | None:
        """Usable step of the highest rank; the newest where none has one."""
        ranked = [(_rank(self._stored(s)), s) for s in self.steps()]
        measured = [pair for pair in ranked if pair[0] > -math.inf]
        return _agreed(max(measured)[1] if measured else self.latest())

    def metrics(self, step: int) -> dict[str, float]:
        """Validation metrics stored with a step."""
        stored = self._stored(step)
        return {k: v for k, v in stored.items() if k not in (_RANK, SKIPPED)}

    def _stored(self, step: int) -> dict[str, float]:
        """All that is stored beside the state of a step."""
        with self._system():
            return dict(self._manager.metrics(step) or {})

    def scored(self, step: int) -> bool:
        """Whether validation metrics are stored with a step; one answer to all."""
        return _agreed(step if self.metrics(step) else None) is not None

    def clean_steps(self) -> list[int]:
        """Usable steps that were saved while updates were made, ascending."""
        return [s for s in self.steps() if _clean(self._stored(s))]

    def save(self, step: int, state: Any, metrics: dict[str, float]) -> None:
        """Saves and seals one step; returns when it is on disk.

        A step that is there already is saved anew.

        Raises:
            ResourceError: If the step does not fit on the disk (E616), or the disk
                refuses (E603); earlier steps stay intact.
        """
        stored = {k: float(v) for k, v in metrics.items()}
        rank = BEST_BY[self._best_by](step, metrics)
        if skipped := int(state.skipped_in_a_row):
            stored[SKIPPED] = float(skipped)
        elif step >= self._best_from and math.isfinite(rank):
            stored[_RANK] = rank
        require(self._root, state)
        try:
            if step in self._manager.all_steps():
                if jax.process_index() == 0:
                    self._manifest(step).unlink(missing_ok=True)
                self._manager.delete(step)
            with quiet():
                self._manager.save(
                    step,
                    args=ocp.args.Composite(state=ocp.args.StandardSave(state)),
                    metrics=stored,
                    force=True,
                )
                self._manager.wait_until_finished()
            if jax.process_index() == 0:
                seal(self._root / str(step), self._manifest(step))
                self._root.with_name(NONE_YET).unlink(missing_ok=True)
        except (OSError, ValueError, RuntimeError) as error:
            if not refused(error):
                raise
            raise ResourceError(
                "E603",
                f"could not write checkpoint {step} in {self._root}: "
                f"{first_line(error)}; {remedy(error)} and run the same "
                "command again.",
            ) from error
        self._bad.pop(step, None)
        if jax.process_index() == 0:
            for manifest in self._manifests.glob("*.json"):
                if not (self._root / manifest.stem).exists():
                    manifest.unlink(missing_ok=True)

    def restore(self, step: int, state: Any) -> Any:
        """State of a step, in the structure and on the devices of the one given.

        A step of before smoothed statistics were kept begins with those of the step.

        Raises:
            CheckpointError: If a leaf has another name, shape or type than asked for
                (E402), or the system refuses to read (E410).
        """
        with self._system():
            wanted = {f.name: getattr(state, f.name) for f in dataclasses.fields(state)}
            if lacking := _SMOOTHED not in self._tree(step):
                del wanted[_SMOOTHED]
            self._compare(step, wanted, self._saved(step))
            found = self._manager.restore(
                step, args=ocp.args.Composite(state=ocp.args.StandardRestore(wanted))
            )["state"]
        if lacking:  # copies: a step donates its state, and no array twice
            stats = found["batch_stats"] if state.ema else {}
            found[_SMOOTHED] = jax.tree.map(jax.numpy.copy, stats)
        return state.replace(**found)

    def restore_generator(self, step: int, params: Any, batch_stats: Any) -> Any:
        """Variables to evaluate: the EMA where there is one, else those of the step.

        Nothing else of the state is read.

        Args:
            step: A usable one.
            params: Structure, shapes and devices of the generator's parameters.
            batch_stats: Likewise, of its running statistics.

        Returns:
            `params` and `batch_stats`.

        Raises:
            CheckpointError: As `restore`.
        """
        with self._system():
            saved = self._saved(step)

            def has(part: str) -> bool:
                return any(name.startswith(f"{part}/") for name in saved)

            kept = "ema" if has("ema") else "gen"
            stats = _SMOOTHED if has("ema") and has(_SMOOTHED) else "batch_stats"
            wanted = {kept: params, stats: batch_stats}
            self._compare(step, wanted, saved)
            with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
                found = reader.restore(
                    self._root / str(step) / "state",
                    args=ocp.args.PyTreeRestore(
                        item=wanted,
                        restore_args=ocp.checkpoint_utils.construct_restore_args(
                            wanted
                        ),
                        partial_restore=True,
                    ),
                )
        return {"params": found[kept], "batch_stats": found[stats]}

    def close(self) -> None:
        """Releases the manager."""
        self._manager.close()

    @contextlib.contextmanager
    def _system(self) -> Iterator[None]:
        """What the system says of a file, in one line."""
        try:
            yield
        except OSError as error:
            if error.errno in FULL:
                raise unwritable(error.filename or self._root, error) from error
            raise CheckpointError(
                "E410",
                f"{error.filename or self._root} cannot be used "
                f"({error.strerror or first_line(error)}): {remedy(error)} "
                "and run the same command again.",
            ) from error
        except _DAMAGE as error:
            raise CheckpointError(
                "E419",
                f"{self._root} cannot be read ({type(error).__name__}: "
                f"{first_line(error)}); restore it from a copy, or give another "
                "--workdir.",
            ) from error

    def _saved(self, step: int) -> dict[str, str]:
        """Name -> type and shape of every array of a step."""
        return _leaves(self._tree(step))

    def _tree(self, step: int) -> Any:
        """What is known of the arrays of a step, by the fields of the state."""
        saved = self._manager.item_metadata(step)["state"]
        return getattr(saved, "tree", saved)

    def _compare(self, step: int, wanted: dict[str, Any], have: dict[str, str]) -> None:
        """Compares the fields of the state that are wanted."""
        want = _leaves(wanted)
        have = {k: v for k, v in have.items() if k.partition("/")[0] in wanted}
        for name in sorted(have.keys() | want.keys()):
            if have.get(name) != want.get(name):
                raise CheckpointError(
                    "E402",
                    f"checkpoint {step} in {self._root} does not fit the "
                    f"configuration: {name} is {have.get(name, 'absent')} there and "
                    f"{want.get(name, 'absent')} here; use the configuration in "
                    "config.json beside it, or another --workdir.",
                )

    def _find_unusable(self, read_only: bool) -> None:
        """Finds steps that were damaged, or whose save was cut short.

        A newest step without a manifest was interrupted between writing and sealing;
        the run then continues from the step before, which repeats the same updates.
        Any other step without one has lost it. Nothing is moved when no step is left
        to continue from, so that the next start finds the same and stops again.
        """
        if not self._root.is_dir():
            return
        steps = sorted(
            int(folder.name)
            for folder in self._root.iterdir()
            if folder.is_dir() and folder.name.isdigit()
        )
        for step in steps:
            folder, manifest = self._root / str(step), self._manifest(step)
            if manifest.exists():
                reason = verify(folder, manifest)
                if not reason:
                    continue
            elif step == steps[-1] and self._manifests.is_dir():
                reason = ""
            else:
                reason = f"its manifest {manifest} is missing"
            self._bad[step] = reason
            if reason:
                log.error("checkpoint %s is damaged: %s; not used.", folder, reason)
            else:
                log.warning("checkpoint %s was not finished; not used.", folder)
        left = set(steps) - self._bad.keys()
        if read_only or jax.process_index() or (any(self._bad.values()) and not left):
            return
        for step, reason in self._bad.items():
            self._move_aside(step, "damaged" if reason else "unfinished")

    def _manifest(self, step: int) -> Path:
        return self._manifests / f"{step}.json"

    def _move_aside(self, step: int, why: str) -> None:
        folder = self._root / str(step)
        target = self._root.with_name("checkpoints_set_aside")
        target.mkdir(exist_ok=True)
        n = 0
        while (new := target / f"{folder.name}_{why}_{n}").exists():
            n += 1
        folder.rename(new)
        self._manifest(step).unlink(missing_ok=True)
        log.warning("moved to %s", new)


def _agreed(step: int | None) -> int | None:
    """That of the first process: a file system may show the others an older folder."""
    if jax.process_count() == 1:
        return step
    first = multihost_utils.broadcast_one_to_all(np.int32(-1 if step is None else step))
    return None if int(first) < 0 else int(first)


def _leaves(tree: Any) -> dict[str, str]:
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {
        jax.tree_util.keystr(
            path, simple=True, separator="/"
        ): f"{jax.numpy.dtype(x.dtype).name}{tuple(x.shape)}"
        for path, x in leaves
        if hasattr(x, "dtype")
    }
