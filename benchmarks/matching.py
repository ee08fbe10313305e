"""Time, memory and exactness of the patch search against its peers.

    python -m benchmarks.matching [--out DIR] [--repeats N] [--queries N,N,...]

One image, 64 features, 3x3 patches, as many keys as queries. The maps are features of
two slices of the MNI152 template (a convolutional stem with fixed random weights), so
there is a black background and there are smooth regions, where noise would have none.

Peers, time and memory each in a process of their own:

* `daasr_jax`: `matching.match`, the platform's own form.
* `jnp, materialised`: all pairs at once, XLA.
* `jnp, approx_max_k`: the same with `jax.lax.approx_max_k`.
* `torch, TTSR form`: unfold, normalise, bmm, max, gather, fold, as TTSR's search
  transfer does it (F. Yang et al., 2020), where PyTorch is installed.
* `torch, chunked`: the same, queries in chunks of 1,024.

Modes: search, transfer and score, forward, and with the gradient by all three maps.
`peak_mib` is what a call holds beyond what was there before it: resident memory of
the process on a CPU, the allocator's on a GPU. `score_error` is the largest difference,
over all queries, between the best score in float64 and the score in float64 of the key
that was chosen. Writes `matching.md`, `matching.json` and `matching.png`.
"""

from __future__ import annotations

import argparse
import functools
import importlib.util
import json
import math
import os
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.train_step import machine, where

PEERS = (
    "daasr_jax",
    "jnp, materialised",
    "jnp, approx_max_k",
    "torch, TTSR form",
    "torch, chunked",
)
QUERIES = (1_600, 6_400, 25_600, 65_536)
MODES = ("forward", "forward + backward")
FEATURES, CHUNK = 64, 1_024
ALL_PAIRS_LIMIT = 25_600  # beyond it n x n scores alone take 17 GB
LIMIT_SECONDS = 900


@functools.cache
def maps(side: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Query, key and value `(1, side, side, 64)` float32."""
    import jax
    import jax.numpy as jnp
    from flax import linen as nn
    from nilearn.datasets import load_mni152_template

    volume = np.asarray(load_mni152_template(resolution=1).get_fdata(), np.float32)

    class Stem(nn.Module):
        @nn.compact
        def __call__(self, x):
            for width in (FEATURES, FEATURES, FEATURES):
                x = nn.relu(nn.Conv(width, (3, 3))(x))
            return x

    def image(z: int, blur: int) -> Any:
        x = jnp.asarray(volume[:, :, z] / volume.max())[None, ..., None]
        x = jax.image.resize(x, (1, side // blur, side // blur, 1), "cubic")
        return jax.image.resize(x, (1, side, side, 1), "cubic")

    variables = Stem().init(jax.random.key(0), jnp.zeros((1, 8, 8, 1)))
    stem = jax.jit(Stem().apply)
    images = (image(90, 4), image(96, 4), image(96, 1))
    return tuple(np.asarray(stem(variables, x)) for x in images)  # pyright: ignore


def unfold(x: np.ndarray, least: float) -> np.ndarray:
    """Normalised 3x3 patches `(n, 9 c)`, float64; empty ones stay zero."""
    _, h, w, _ = x.shape
    x = np.pad(x[0].astype(np.float64), ((1, 1), (1, 1), (0, 0)))
    patches = np.concatenate(
        [x[i : i + h, j : j + w] for i in range(3) for j in range(3)], axis=-1
    ).reshape(h * w, -1)
    norm = np.linalg.norm(patches, axis=1, keepdims=True)
    return np.divide(patches, norm, out=np.zeros_like(patches), where=norm > least)


def score_error(side: int, index: np.ndarray, least: float) -> float:
    """Largest shortfall of the chosen score under the best one, in float64.

    `least` is the norm under which a peer takes a patch for empty.
    """
    query, key = (unfold(x, least) for x in maps(side)[:2])
    worst, index = 0.0, index.reshape(-1)
    for start in range(0, len(query), 512):
        part = query[start : start + 512]
        best = (part @ key.T).max(axis=1)
        chosen = np.einsum("nc,nc->n", part, key[index[start : start + 512]])
        worst = max(worst, float((best - chosen).max()))
    return worst


def jax_peer(peer: str) -> Callable[..., Any]:
    """`(query, key, value) -> (T, P, C)`."""
    import jax
    import jax.numpy as jnp
    from jax import lax

    from daasr_jax import matching

    if peer == "daasr_jax":
        return matching.match
    window = matching.Window()

    def materialised(query: Any, key: Any, value: Any) -> Any:
        b, h, w, _ = query.shape
        q, k, v = (window.unfold(x) for x in (query, key, value))
        q, k = (
            x * window.inverse_norm(m)[..., None] for x, m in ((q, query), (k, key))
        )
        q, k, v = (x.reshape(b, h * w, -1) for x in (q, k, v))
        table = jnp.einsum("bqc,bkc->bqk", q, k, precision=lax.Precision.HIGHEST)
        if peer.endswith("approx_max_k"):
            score, index = lax.approx_max_k(table, 1)
            score, index = score[..., 0], index[..., 0]
        else:
            score, index = jnp.max(table, axis=-1), jnp.argmax(table, axis=-1)
        chosen = jax.vmap(lambda v, i: v[i])(v, index).reshape(b, h, w, 9, -1)
        canvas = jnp.zeros((b, h + 2, w + 2, value.shape[-1]))
        for n in range(9):
            i, j = divmod(n, 3)
            canvas = canvas.at[:, i : i + h, j : j + w].add(chosen[:, :, :, n])
        return canvas[:, 1:-1, 1:-1] / 9, index, score.reshape(b, h, w, 1)

    return materialised


def run_jax(peer: str, side: int, mode: str) -> Callable[[], Any]:
    """Compiled, not yet called."""
    import jax
    import jax.numpy as jnp

    function = jax_peer(peer)
    arrays = tuple(jnp.asarray(x) for x in maps(side))
    if mode == "forward":
        call = jax.jit(function)
    else:

        def total(*xs: Any) -> Any:
            t, index, c = function(*xs)
            return jnp.mean(t**2) + jnp.mean(c), index

        call = jax.jit(jax.value_and_grad(total, argnums=(0, 1, 2), has_aux=True))

    compiled = call.lower(*arrays).compile()

    def once() -> Any:
        out = jax.block_until_ready(compiled(*arrays))
        return out[1] if mode == "forward" else out[0][1]

    return once


def ttsr_form(query: Any, key: Any, value: Any, chunk: int) -> Any:
    """PyTorch's `(T, P, C)` of square maps `(1, C, H, H)`, `chunk` queries at once."""
    import torch
    import torch.nn.functional as F

    side = query.shape[-1]
    q, k, v = (F.unfold(x, 3, padding=1) for x in (query, key, value))
    q, k = F.normalize(q, dim=1), F.normalize(k, dim=1).transpose(1, 2)
    found = [torch.bmm(k, part).max(dim=1) for part in q.split(chunk, dim=2)]
    score = torch.cat([f[0] for f in found], 1)
    index = torch.cat([f[1] for f in found], 1)
    chosen = v.gather(2, index[:, None].expand(-1, v.shape[1], -1))
    return F.fold(chosen, (side, side), 3, padding=1) / 9, index, score


def run_torch(peer: str, side: int, mode: str) -> Callable[[], Any]:
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    arrays = [
        torch.from_numpy(x.copy()).permute(0, 3, 1, 2).contiguous().to(device)
        for x in maps(side)
    ]
    backward = mode != "forward"
    for x in arrays:
        x.requires_grad_(backward)
    chunk = side * side if peer.endswith("form") else CHUNK

    def once() -> Any:
        if not backward:
            with torch.no_grad():
                out = ttsr_form(*arrays, chunk)
        else:
            out = ttsr_form(*arrays, chunk)
            ((out[0] ** 2).mean() + out[2].mean()).backward()
            for x in arrays:
                x.grad = None
        if device == "cuda":
            torch.cuda.synchronize()
        return out[1].cpu()

    return once


def peak_of(call: Callable[[], Any], peer: str) -> tuple[float, Any]:
    """MiB that the first call holds beyond what was there before it; its result."""
    if peer.startswith("torch"):
        import torch

        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            out = call()
            return (torch.cuda.max_memory_allocated() - before) / 2**20, out
    else:
        import jax

        stats = jax.devices()[0].memory_stats()
        if stats:  # the peak of the process, which has called nothing so large
            out = call()
            after = jax.devices()[0].memory_stats() or stats
            return (after["peak_bytes_in_use"] - stats["bytes_in_use"]) / 2**20, out
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before = _status("VmRSS")
    out = call()
    return max(0.0, (_status("VmHWM") - before) / 1024), out


def _status(field: str) -> float:
    """Of this process, in kB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return float(line.split()[1])
    return math.nan


def child(peer: str, queries: int, mode: str, repeats: int) -> None:
    """Times, or without repeats memory and exactness, printed as JSON."""
    side = math.isqrt(queries)
    run = run_torch if peer.startswith("torch") else run_jax
    run(peer, 8, mode)()  # threads and libraries are there before memory is measured
    once = run(peer, side, mode)
    if not repeats:
        peak, index = peak_of(once, peer)
        row = {"peak_mib": peak}
        if mode == "forward":
            least = 1e-12 if peer.startswith("torch") else 1e-6
            row["score_error"] = score_error(side, np.asarray(index), least)
        print(json.dumps(row))
        return
    once()
    times, begin = [], time.monotonic()
    while len(times) < repeats and (not times or time.monotonic() - begin < 120):
        start = time.perf_counter()
        once()
        times.append(1e3 * (time.perf_counter() - start))
    row = {
        "median_ms": statistics.median(times),
        "min_ms": min(times),
        "max_ms": max(times),
        "repeats": len(times),
    }
    print(json.dumps(row))


def measure(peer: str, queries: int, mode: str, repeats: int) -> dict[str, Any]:
    row = {"peer": peer, "queries": queries, "mode": mode}
    if queries > ALL_PAIRS_LIMIT and peer not in ("daasr_jax", "torch, chunked"):
        return row | {"not_run": "all pairs"}
    # Where memory is measured, freed memory goes back at once, so that the peak of a
    # call is its own; that costs time, so times are taken by another process.
    frugal = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "0"}
    frugal |= {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    for extra, n in ((frugal, 0), ({}, repeats)):
        command = [sys.executable, "-m", "benchmarks.matching", "--child", peer]
        command += ["--queries", str(queries), "--mode", mode, "--repeats", str(n)]
        try:
            done = subprocess.run(
                command,
                capture_output=True,
                text=True,
                env=os.environ | extra,
                timeout=LIMIT_SECONDS,
            )
        except subprocess.TimeoutExpired:
            return row | {"not_run": f"over {LIMIT_SECONDS} s"}
        if done.returncode:
            reason = (done.stderr.strip().splitlines() or ["killed"])[-1][:120]
            return row | {"not_run": reason}
        row |= json.loads(done.stdout.strip().splitlines()[-1])
    return row


def markdown(rows: list[dict[str, Any]], about: dict[str, Any]) -> str:
    text = [
        "# The patch search and its peers",
        "",
        f"`python -m benchmarks.matching {shlex.join(sys.argv[1:])}`: one image, "
        f"{FEATURES} features of template slices, 3x3 patches, float32, as many keys "
        "as queries; search, transfer and score. Time and memory of every line in a "
        "process of their own; median [lowest, highest] after one call that is not "
        "counted. Peak is "
        "what a call holds beyond what was there before. Score error: largest, over "
        "all queries, shortfall in float64 under the best key.",
        "",
        where(about),
        "",
        "| queries | mode | peer | ms | times torch | peak MiB | of torch's | "
        "score error |",
        "|--:|---|---|--:|--:|--:|--:|--:|",
    ]
    for row in rows:
        head = f"| {row['queries']:,} | {row['mode']} | {row['peer']} | "
        if "not_run" in row:
            text.append(f"{head}not run: {row['not_run']} | - | - | - | - |")
            continue
        base = next(
            (
                r
                for r in rows
                if r["peer"] == "torch, TTSR form"
                and (r["queries"], r["mode"]) == (row["queries"], row["mode"])
                and "not_run" not in r
            ),
            None,
        )
        speed = f"{base['median_ms'] / row['median_ms']:.1f}" if base else "-"
        share = "-"
        if base and row["peak_mib"] > 0 and base["peak_mib"] > 0:
            share = f"1/{base['peak_mib'] / row['peak_mib']:.1f}"
        error = f"{row['score_error']:.1e}" if "score_error" in row else "-"
        text.append(
            f"{head}{row['median_ms']:,.1f} [{row['min_ms']:,.1f}, "
            f"{row['max_ms']:,.1f}] | {speed} | {row['peak_mib']:,.0f} | {share} | "
            f"{error} |"
        )
    return "\n".join([*text, "", "![Time and memory](matching.png)", ""])


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), layout="constrained")
    axes = figure.subplots(1, 3)
    panels = (("forward", "median_ms"), (MODES[1], "median_ms"), (MODES[1], "peak_mib"))
    for axis, (mode, field) in zip(axes, panels, strict=True):
        for peer in PEERS:
            points = [
                (r["queries"], max(r[field], 1.0))
                for r in rows
                if r["peer"] == peer and r["mode"] == mode and field in r
            ]
            if points:
                axis.loglog(*zip(*points, strict=True), marker="o", label=peer)
        axis.set_title(mode, fontsize=10)
        sizes = sorted({r["queries"] for r in rows})
        axis.set_xticks(sizes, [f"{n:,}" for n in sizes])
        axis.minorticks_off()
        axis.set_xlabel("queries = keys")
        axis.set_ylabel("ms" if field == "median_ms" else "peak MiB")
        axis.grid(visible=True, which="major", alpha=0.3)
    axes[0].legend(fontsize=8)
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", default="docs/results", help="folder of the tables")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--queries", default=",".join(map(str, QUERIES)))
    parser.add_argument("--peers", default=";".join(PEERS), help="separated by ;")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--mode", help=argparse.SUPPRESS)
    args = parser.parse_args()
    sizes = [int(x) for x in args.queries.split(",")]
    if args.child:
        child(args.child, sizes[0], args.mode, args.repeats)
        return
    peers = [p for p in PEERS if p in args.peers.split(";")]
    if importlib.util.find_spec("torch") is None:
        print("PyTorch is not installed: its lines are not run")
        peers = [p for p in peers if not p.startswith("torch")]
    jobs = [(peer, n, mode) for n in sizes for mode in MODES for peer in peers]
    rows, begin = [], time.monotonic()
    for i, job in enumerate(jobs, 1):
        rows.append(measure(*job, args.repeats))
        spent = time.monotonic() - begin
        print(f"{job}: {rows[-1].get('median_ms', 'not run')}, ", end="")
        print(f"{spent:.0f} s spent, {i} of {len(jobs)}", flush=True)
    about = machine()
    out = Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    text = markdown(rows, about)
    (out / "matching.md").write_text(text, encoding="utf-8")
    record = {"machine": about, "rows": rows}
    (out / "matching.json").write_text(json.dumps(record, indent=1), encoding="utf-8")
    plot(rows, out / "matching.png")
    print(text)


if __name__ == "__main__":
    main()
