"""Training batches of a packed set, made ahead by processes that know no JAX.

They import the file that was run anew, as `spawn` does: `benchmarks.gpu.train` imports
JAX when it has begun.
"""

from __future__ import annotations

import concurrent.futures
import functools
import multiprocessing
import time
from collections.abc import Generator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.gpu import pack
from daasr_jax.data import Shares, TrainingTriples

# A slice without another contrast has a neighbour instead.
SHARES = Shares(stranger=0.2, neighbour=0.25, contrast=0.25, corrupted=0.2, none=0.1)
MANY = 10**7  # batches: more than any visit uses


@functools.cache
def _triples(path: str, how: tuple[tuple[str, int], ...]) -> TrainingTriples:
    table = pack.load(Path(path))[0]["train"]
    return TrainingTriples(table, steps=MANY, track="mixed", shares=SHARES, **dict(how))


def batch(path: str, number: int, how: tuple[tuple[str, int], ...]) -> dict[str, Any]:
    """Batch `number` of a run: `hr` and `ref`."""
    triples, size = _triples(path, how), dict(how)["batch_size"]
    samples = [triples[number * size + k] for k in range(size)]
    return {name: np.stack([s[name] for s in samples]) for name in samples[0]}


def batches(
    path: Path, *, workers: int, ahead: int = 4, **how: int
) -> Generator[dict[str, Any], None, None]:
    """The batches of a run, in their order.

    Args:
        path: The packed set.
        workers: Processes; 0 makes each batch when it is asked for.
        ahead: Batches on their way for each worker.
        how: `batch_size`, `crop`, `scale` and `seed`, see `TrainingTriples`.
    """
    given = tuple(sorted(how.items()))
    if not workers:
        for number in range(MANY):
            yield batch(str(path), number, given)
    spawn = multiprocessing.get_context("spawn")
    pool = concurrent.futures.ProcessPoolExecutor(workers, mp_context=spawn)
    try:
        waiting = [
            pool.submit(batch, str(path), n, given) for n in range(ahead * workers)
        ]
        concurrent.futures.wait(waiting)  # so they are still until a batch is taken
        for number in range(len(waiting), MANY):
            yield waiting.pop(0).result()
            waiting.append(pool.submit(batch, str(path), number, given))
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def rate(path: Path, seconds: float, **how: int) -> float:
    """Images that one process makes in a second."""
    given = tuple(sorted(how.items()))
    batch(str(path), 0, given)
    begin, number = time.monotonic(), 0
    while time.monotonic() - begin < seconds:
        number += 1
        batch(str(path), number, given)
    return number * how["batch_size"] / (time.monotonic() - begin)
