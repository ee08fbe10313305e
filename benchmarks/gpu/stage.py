"""What the parts of a visit share: their turn, their results, the machine, times.

A part compiles first, beside the others, and says `READY`. Then it waits for its turn,
a line with the seconds that it has and who still compiles beside it.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

FORM = 2  # of the files of a visit
READY = "READY"
SAID = 77  # exit code of a part whose last line of its log says why it ended
PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy", "torch", "triton")


class Turn(NamedTuple):
    """Seconds that a part has, and the parts that still compile beside it."""

    seconds: float
    beside: list[str]


def turn(seconds: float | None) -> Turn:
    """Says that all is compiled, and waits for this part's turn.

    Args:
        seconds: Those of a part that runs by itself and does not wait.
    """
    print(READY, flush=True)
    if seconds is not None:
        return Turn(seconds, [])
    line = sys.stdin.readline()
    if not line.strip():
        leave("no turn was given: the visit is over")
    return Turn(**json.loads(line))


def leave(why: str) -> NoReturn:
    """Ends this part with a line that the page shows."""
    print(why, file=sys.stderr, flush=True)
    raise SystemExit(SAID)


def needs(*packages: str) -> None:
    """Ends this part with a line where one of the packages cannot be imported."""
    for name in packages:
        try:
            importlib.import_module(name)
        except ModuleNotFoundError as error:
            leave(f"{error.name or name} is not installed")
        except ImportError as error:
            leave(f"{name} cannot be imported: {one_line(error)}")


def keep_compiled(folder: Path | None) -> None:
    """Keeps compiled programs for a second visit."""
    import jax

    if folder is not None:
        jax.config.update("jax_compilation_cache_dir", str(folder))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 1.0)


def write(path: Path, result: Any) -> None:
    """Writes a result, whole or not at all; later calls replace it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_suffix(path.suffix + ".new")
    new.write_text(json.dumps(result, indent=1), encoding="utf-8")
    os.replace(new, path)


def median(call: Callable[[], Any], *, repeats: int, seconds: float) -> dict[str, Any]:
    """Times of a call that ends when its work does: median, least and most, in ms.

    It is called twice before; then as often as asked, or for so many seconds.
    """
    for _ in range(2):
        call()
    times: list[float] = []
    end = time.monotonic() + seconds
    while len(times) < repeats and (len(times) < 3 or time.monotonic() < end):
        begin = time.perf_counter()
        call()
        times.append(1e3 * (time.perf_counter() - begin))
    return {
        "ms": statistics.median(times),
        "min_ms": min(times),
        "max_ms": max(times),
        "repeats": len(times),
    }


def measured(
    made: Iterable[tuple[dict[str, Any], Callable[[], Any]]],
    rows: list[dict[str, Any]],
    *,
    end: float,
    seconds: float,
    repeats: int,
    memory: Callable[[Callable[[], dict[str, Any]]], dict[str, Any]] | None = None,
) -> Iterator[dict[str, Any]]:
    """Times calls one after the other, until an end; what is not run is a row too.

    Args:
        made: What is known of each call, and the call.
        rows: Where the rows go.
        end: Of `time.monotonic`.
        seconds, repeats: Of each call, see `median`.
        memory: Runs the timing, and adds what it held to the result.

    Yields:
        The rows that were run.
    """
    for row, call in made:
        if time.monotonic() > end:
            rows.append(row | {"not_run": "no time was left"})
            continue
        timing = partial(median, call, repeats=repeats, seconds=seconds)
        try:
            row |= memory(timing) if memory else timing()
        except Exception as error:  # one that does not run is a row
            rows.append(row | {"not_run": one_line(error)})
            continue
        rows.append(row)
        yield row


def send(process: subprocess.Popen[Any], number: signal.Signals) -> None:
    """A signal to a process that leads a session, and to all that it started there."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, number)


def end(process: subprocess.Popen[Any], *, patience: float = 0.0) -> None:
    """Kills a process that leads a session, and all that it started there.

    Args:
        process: The leader.
        patience: Seconds in which it may end by itself after SIGTERM, as one does that
            has sessions of its own to end.
    """
    if patience and process.poll() is None:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(patience)
    send(process, signal.SIGKILL)
    process.wait()


def in_time(last: float) -> float:
    """The time now.

    Raises:
        TimeoutError: If it is later than `last`: nothing more is compiled.
    """
    now = time.monotonic()
    if now > last:
        raise TimeoutError("no time was left to compile it")
    return now


def one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]


def torch_device() -> str:
    """Name of the device that PyTorch uses here."""
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"


def torch_memory(timing: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """The times, and in MiB the peak of PyTorch, in all and beyond what was there."""
    import torch

    if not torch.cuda.is_available():
        return timing()
    torch.cuda.reset_peak_memory_stats()
    held = torch.cuda.memory_allocated()
    found = timing()
    peak = torch.cuda.max_memory_allocated()
    return found | {"peak_mib": peak / 2**20, "work_mib": (peak - held) / 2**20}


def machine() -> dict[str, Any]:
    """Card, driver, processor and versions, without touching a device; `FORM`."""
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = "not installed"
    return {
        "form": FORM,
        "card": card() or "none",
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "versions": versions,
        "commit": _said(["git", "rev-parse", "HEAD"]) or "not known",
    }


def card() -> str:
    """Name, driver and memory of each card by nvidia-smi; empty where it has none."""
    ask = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total"]
    return "; ".join(_said([*ask, "--format=csv,noheader"]).splitlines())


def _said(command: list[str]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if not done.returncode else ""
