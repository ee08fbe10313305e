"""Training batches: crops of a slice and of its reference, by a global sample number.

Everything about sample i follows from (seed, i): its epoch, its slice, its reference,
its window and its turn. Batch t holds the samples from t batch_size on, however many
processes share it, so a run continues from the number of its steps alone.
"""

import functools
import os
import signal
import threading
import time
from typing import TYPE_CHECKING

import numpy as np

from daasr_jax.data.mixture import Drawn, Mixture, reference_image
from daasr_jax.data.references import ReferenceRule
from daasr_jax.data.settings import Shares
from daasr_jax.data.sources.base import log
from daasr_jax.data.table import SliceTable
from daasr_jax.errors import ConfigError, DataError

if TYPE_CHECKING:
    import grain

_ORDER, _WINDOW = 11, 12
# Batches made ahead of the training step, by default.
_PREFETCH = 8


class TrainingTriples:
    """Random access to the samples of a run; the LR image is made from `hr` later.

    Sample i belongs to epoch `i // (n // batch_size * batch_size)`; each epoch visits
    the slices in its own order and leaves out the remainder of the last batch.

    Args:
        table: The split.
        batch_size: Samples of one step over all processes.
        crop: Side of the low-resolution window; 0 takes whole slices.
        scale: Ratio of the high- to the low-resolution grid.
        steps: Batches of the run.
        seed: Fixes order, references, windows and turns.
        track, exclude, aligned: The reference rule, see `ReferenceRule`; or the track
            `mixed`, see `Mixture`.
        shares: Of the kinds of references, for `mixed`.
        distance_mm: Of a neighbour from its target; 0 takes the next slice.
        count: Number r of references of each sample.
        augment: Flips and quarter turns, the same for target and reference.

    Raises:
        ConfigError: If the window is larger than a slice (E205).
        DataError: If a batch is larger than the split (E314), or a slice has no
            possible reference (E312).
    """

    def __init__(
        self,
        table: SliceTable,
        *,
        batch_size: int,
        crop: int,
        scale: int,
        steps: int,
        seed: int,
        track: str = "random",
        exclude: str = "subject",
        aligned: str = "neighbour",
        shares: Shares | None = None,
        distance_mm: float = 0.0,
        count: int = 1,
        augment: bool = True,
    ) -> None:
        self._side = table.size // scale * scale
        self._crop = scale * crop if crop else self._side
        if crop < 0 or self._crop > self._side:
            raise ConfigError(
                "E205",
                f"a crop of {crop} LR pixels at scale {scale} is {self._crop} pixels, "
                f"a slice of {table.size} has {self._side}: lower the crop to "
                f"{self._side // scale} or raise data.size",
            )
        self._table, self._seed, self._augment = table, seed, augment
        self._length = steps * batch_size
        self._epoch_length = steps_per_epoch(table, batch_size) * batch_size
        self._track, self._count, self._rule = track, count, None
        self._contrast = (track, aligned) == ("aligned", "contrast")
        if track == "mixed":
            self._mixture = Mixture(
                table,
                shares=shares or Shares(),
                exclude=exclude,
                distance_mm=distance_mm,
            )
            log.info("references of training: %s", self._mixture.describe())
            return
        self._rule = ReferenceRule(
            table,
            track=track,
            exclude=exclude,
            aligned=aligned,
            distance_mm=distance_mm,
        )

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        """`hr` and `ref` of a sample, each (scale crop, scale crop, 1) float32.

        Of r > 1 references `ref` is (r, scale crop, scale crop, 1).
        """
        target, drawn = self.draw(index)
        rng = np.random.default_rng((self._seed, _WINDOW, index))
        top, left = rng.integers(self._side - self._crop + 1, size=2)
        turns, flip = int(rng.integers(4)), bool(rng.integers(2))
        window = np.s_[top : top + self._crop, left : left + self._crop]

        def cut(image: np.ndarray) -> np.ndarray:
            image = image[window]
            if self._augment:
                image = np.rot90(image[:, ::-1] if flip else image, turns)
            return np.ascontiguousarray(image)

        refs = [cut(reference_image(self._table, one)) for one in drawn]
        return {
            "hr": cut(self._table.image(target)),
            "ref": refs[0] if self._count == 1 else np.stack(refs),
        }

    def draw(self, i: int) -> tuple[int, list[Drawn]]:
        """Index of the target of sample i in the table, and its references."""
        if not 0 <= i < self._length:
            raise IndexError(f"sample {i} of a run of {self._length}.")
        epoch, place = divmod(i, self._epoch_length)
        target = int(_permutation(len(self._table), self._seed, epoch)[place])
        how = {"count": self._count, "seed": self._seed, "epoch": epoch}
        if self._rule is None:
            return target, self._mixture.draw_several(target, **how)
        beside = target if self._contrast else None
        found = self._rule.draw_several(target, **how)
        return target, [Drawn(self._track, k, None, beside) for k in found]


@functools.lru_cache(maxsize=4)
def _permutation(n: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng((seed, _ORDER, epoch)).permutation(n)


class _Share:
    """The samples of one process: its rows of batch 0, then of batch 1, and so on."""

    def __init__(self, triples: TrainingTriples, batch_size: int, rows: range) -> None:
        self._triples, self._batch_size, self._rows = triples, batch_size, rows

    def __len__(self) -> int:
        return len(self._triples) // self._batch_size * len(self._rows)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        batch, place = divmod(index, len(self._rows))
        return self._triples[batch * self._batch_size + self._rows[place]]


def steps_per_epoch(table: SliceTable, batch_size: int) -> int:
    """Whole batches in the split.

    Raises:
        DataError: If there is none (E314).
    """
    if batch_size < 1:
        raise ConfigError(
            "E210", f"the batch size is {batch_size}; it must be 1 or more."
        )
    if batch_size > len(table):
        raise DataError(
            "E314",
            f"split {table.name!r} holds {len(table)} slices, fewer than one batch of "
            f"{batch_size}: lower the batch size or add volumes",
        )
    return len(table) // batch_size


def training_batches(
    table: SliceTable,
    *,
    batch_size: int,
    crop: int,
    scale: int,
    steps: int,
    seed: int,
    track: str = "random",
    exclude: str = "subject",
    aligned: str = "neighbour",
    shares: Shares | None = None,
    distance_mm: float = 0.0,
    count: int = 1,
    augment: bool = True,
    rows: range | None = None,
    num_threads: int = 2,
    workers: int = 0,
    start: int = 0,
) -> "grain.IterDataset":
    """The batches of a run, or this process's share of each of them.

    Args:
        table: The split.
        batch_size: Samples of one step over all processes.
        crop: Side of the low-resolution window; 0 takes whole slices.
        scale: Ratio of the high- to the low-resolution grid.
        steps: Batches of the run.
        seed: Fixes order, references, windows and turns.
        track: `random`, `aligned` or `mixed` references.
        exclude: What target and reference may not share, for `random`.
        aligned: `neighbour` or `contrast`, for `aligned`.
        shares: Of the kinds of references, for `mixed`.
        distance_mm: Of a neighbour from its target; 0 takes the next slice.
        count: Number r of references of each sample.
        augment: Flips and quarter turns, the same for target and reference.
        rows: Those of each batch that this process makes; None for all of them.
        num_threads: Threads that make batches ahead; 0 makes them when asked.
        workers: Processes that make batches ahead, each with `num_threads`; 0 for none.
        start: Batches that a run has used before.

    Returns:
        A data set of `steps - start` dicts with `hr` and `ref`, each (rows, scale
        crop, scale crop, 1) float32 in [0, 1]. Of r > 1 references `ref` is (rows, r,
        scale crop, scale crop, 1).

    Raises:
        ConfigError: If the window is larger than a slice (E205).
        DataError: If a batch is larger than the split (E314), or a slice has no
            possible reference (E312).
    """
    import grain  # large, and who makes batches otherwise needs none of it

    triples = TrainingTriples(
        table,
        batch_size=batch_size,
        crop=crop,
        scale=scale,
        steps=steps,
        seed=seed,
        track=track,
        exclude=exclude,
        aligned=aligned,
        shares=shares,
        distance_mm=distance_mm,
        count=count,
        augment=augment,
    )
    rows = range(batch_size) if rows is None else rows
    share = _Share(triples, batch_size, rows)
    batches = grain.MapDataset.source(share).batch(len(rows), drop_remainder=True)
    ahead = batches[start:].to_iter_dataset(
        grain.ReadOptions(
            num_threads=num_threads,
            prefetch_buffer_size=_PREFETCH if num_threads else 0,
        )
    )
    if not workers:
        return ahead
    return ahead.mp_prefetch(
        grain.MultiprocessingOptions(
            num_workers=workers, per_worker_buffer_size=_PREFETCH
        ),
        worker_init_fn=_begin_worker,
    )


def _begin_worker(index: int, count: int) -> None:
    """A worker leaves stopping to the run, and does not outlive it."""
    del index, count
    parent = os.getppid()
    for number in (signal.SIGINT, signal.SIGUSR1):  # meant for the run
        signal.signal(number, signal.SIG_IGN)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(0)

    threading.Thread(target=watch, daemon=True).start()


def crop_to_multiple(image: np.ndarray, scale: int) -> np.ndarray:
    """The top left of an image whose sides are multiples of the scale.

    Args:
        image: (H, W, C).
        scale: Ratio of the high- to the low-resolution grid.

    Example:
        >>> crop_to_multiple(np.zeros((256, 256, 1)), 3).shape
        (255, 255, 1)
    """
    height, width = image.shape[0] // scale * scale, image.shape[1] // scale * scale
    return image[:height, :width]
