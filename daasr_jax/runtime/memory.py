"""Memory that is there, and refusals before a run takes more."""

from __future__ import annotations

import contextlib
import math
import os
import resource
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from daasr_jax.errors import ResourceError

GIB = 2**30
# What compiling takes beside the arrays, measured with small networks on CPUs: memory,
# and address space, of which threads and allocators reserve more than they use.
COMPILER = GIB // 4
COMPILER_ADDRESSES = GIB
SHARED = Path("/dev/shm")


def require(parts: Mapping[str, float], *, remedy: str) -> None:
    """Checks that a device of this process can hold a run.

    Args:
        parts: Name -> bytes of each part, on one device.
        remedy: What lowers them, as in "give ...".

    Raises:
        ResourceError: If they are more than there is (E612).
    """
    need = sum(parts.values())
    for place, free in _free().items():
        extra = {"the device": 0, "the limit of address space": COMPILER_ADDRESSES}
        if need + extra.get(place, COMPILER) > free:
            named = ", ".join(f"{name} {_gib(size)}" for name, size in parts.items())
            raise ResourceError(
                "E612",
                f"the run needs at least {_gib(need)} GiB ({named}) beside the "
                f"compiler, and {place} leaves {_gib(free)} GiB: {remedy}.",
            )


def free_bytes() -> int:
    """Bytes that one device of this process may still take, of the tightest limit."""
    return int(min(_free().values(), default=4 * GIB))


def restart_peak() -> None:
    """Forgets the resident peak of this process, where the system can."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def peak_mib() -> float:
    """Peak memory in MiB, of the device's allocator where it tells.

    Else it is the resident peak of this process since `restart_peak`. An allocator
    cannot forget: its peak is that of all that the process has run.
    """
    stats: Any = jax.local_devices()[0].memory_stats() or {}
    if "peak_bytes_in_use" in stats:
        return stats["peak_bytes_in_use"] / 2**20
    return _table(Path("/proc/self/status")).get("VmHWM", 0) / 1024


def require_shared(need: int, *, workers: int) -> None:
    """Checks that worker processes can hand batches over, which they do in `/dev/shm`.

    Args:
        need: Bytes that lie there at once.
        workers: Their number, 0 for none.

    Raises:
        ResourceError: If there is less (E613).
    """
    if not workers:
        return
    try:
        found = os.statvfs(SHARED)
        free, said = found.f_bavail * found.f_frsize, ""
    except OSError as error:
        free, said = 0, f" ({error.strerror})"
    if free < need:
        raise ResourceError(
            "E613",
            f"{workers} workers hand over batches in {SHARED}, which has "
            f"{free / 2**20:,.1f} MiB free{said}, {need / 2**20:,.1f} needed: give it "
            "more (docker run --shm-size), or --config.train.workers=0, which reads by "
            "threads.",
        )


def host_free() -> tuple[str, float]:
    """The tightest limit of this process on the host, and the bytes that it leaves."""
    free = _free_of_host()
    place = min(free, key=free.__getitem__, default="")
    return place, free.get(place, math.inf)


def _free() -> dict[str, float]:
    """Place -> bytes that one device of this process may still take."""
    device: Any = jax.local_devices()[0]
    stats = device.memory_stats() or {}
    if "bytes_limit" in stats:
        return {"the device": stats["bytes_limit"] - stats.get("bytes_in_use", 0)}
    return _free_of_host() if device.platform == "cpu" else {}


def _free_of_host() -> dict[str, float]:
    """Place -> bytes that this process may still take in the host's memory."""
    found: dict[str, float] = {}
    memory = _table(Path("/proc/meminfo"))
    if "MemAvailable" in memory:
        swap = memory.get("SwapFree", 0)
        found["the memory of this machine"] = 1024 * (memory["MemAvailable"] + swap)
    group = Path("/sys/fs/cgroup")
    try:
        limit = int((group / "memory.max").read_text())
        used = int((group / "memory.current").read_text())
        cached = _table(group / "memory.stat").get("inactive_file", 0)
        found["the limit of the control group"] = limit - used + cached
    except (OSError, ValueError):  # none, or "max"
        pass
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit != resource.RLIM_INFINITY:
        taken = 1024 * _table(Path("/proc/self/status")).get("VmSize", 0)
        found["the limit of address space"] = limit - taken
    return found


def _table(path: Path) -> dict[str, int]:
    """Lines of a name and a number; others are left out, a lacking file is empty."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError:
        return {}
    rows = (line.replace(":", " ").split() for line in lines)
    return {row[0]: int(row[1]) for row in rows if len(row) > 1 and row[1].isdigit()}


def _gib(size: float) -> str:
    return f"{size / GIB:,.1f}"
