"""What the runtime's errors in a training run mean, in one line."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Generator, Iterable, Iterator
from typing import TypeVar

import jax

from daasr_jax.errors import ResourceError, UserError

T = TypeVar("T")
_COLLECTIVE = re.compile(r"\b(gloo|nccl)\b", re.IGNORECASE)
_BYTES = re.compile(r"(?:allocate|allocating) (\d+) bytes")
_LOST = ("gloo", "nccl", "connection", "heartbeat", "unavailable", "aborted", "peer")


def is_out_of_memory(error: Exception) -> bool:
    """Whether a `JaxRuntimeError` says that a device has too little memory."""
    text = str(error)
    return "RESOURCE_EXHAUSTED" in text or "out of memory" in text.lower()


def explain(error: Exception, *, evaluating: bool = False) -> UserError | None:
    """The report of an error of the runtime; None where a user can mend nothing.

    Args:
        error: As it was raised.
        evaluating: Slices were restored. Each device has one at a time, so a smaller
            batch would not help and nothing is tried again.
    """
    text = " ".join(str(error).split())
    if is_out_of_memory(error):
        wanted = _wanted(text)
        if evaluating:
            return ResourceError(
                "E618",
                f"a device has too little memory{wanted} to evaluate one slice, which "
                f"it has to itself ({text[:200]}); give --config.train.devices=1 where "
                "devices share memory, or JAX_PLATFORMS=cpu, and to eval.py a smaller "
                "--config.reference.count or no --lpips; a new run of "
                "--config.model.dtype=bfloat16 or a smaller --config.data.size needs "
                "less.",
            )
        return ResourceError(
            "E605",
            f"a device has too little memory{wanted} for the step ({text[:200]}); give "
            "a larger --config.train.accumulate, --config.model.dtype=bfloat16 or, for "
            "daasr, --config.model.kwargs.remat=true; --dry_run tells what is needed.",
        )
    if jax.process_count() > 1 and any(word in text.lower() for word in _LOST):
        return ResourceError(
            "E608",
            f"process {jax.process_index()} lost another process of the run "
            f"({text[:200]}); run the same command to resume from the last checkpoint.",
        )
    return None


def _wanted(text: str) -> str:
    """What was asked for in one piece, in GiB, where the error tells."""
    found = _BYTES.search(text)
    return f": {int(found[1]) / 2**30:,.1f} GiB more" if found else ""


@contextlib.contextmanager
def explained(*, evaluating: bool = False) -> Iterator[None]:
    """Device errors within as the one line that a user can act on, see `explain`."""
    try:
        yield
    # An array whose program failed can raise a bare ValueError or RuntimeError.
    except (RuntimeError, ValueError) as error:
        of_runtime = isinstance(error, jax.errors.JaxRuntimeError)
        report = (
            explain(error, evaluating=evaluating)
            if of_runtime or _COLLECTIVE.search(str(error))
            else None
        )
        if report is None:
            raise
        raise report from error


def reading(batches: Iterable[T]) -> Generator[T]:
    """The batches; what stops their reader is reported with its cause, then closed.

    Raises:
        ResourceError: If a reader is gone or raised (E609).
    """
    iterator = iter(batches)
    try:
        while True:
            try:
                batch = next(iterator)
            except StopIteration:
                return
            except UserError:
                raise
            except Exception as error:  # a worker's error has whatever type it had
                raise ResourceError(
                    "E609",
                    f"a reader of the training data stopped: {type(error).__name__}: "
                    f"{' '.join(str(error).split())[:300]}; run the same command to "
                    "resume from the last checkpoint.",
                ) from error
            yield batch
    finally:
        close = getattr(iterator, "close", None)  # Grain's, which ends its workers
        if close is not None:
            close()
