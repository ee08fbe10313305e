"""The patch search on this device, against PyTorch's form of TTSR's search.

    python -m benchmarks.gpu.match --peer jax --out DIR [--seconds 30]

One image, 64 features, 3x3 patches, as many keys as queries, float32: search, transfer
and score. The maps are smooth noise over a black border, as slices are. Peers, each in
a process of its own:

* `jax`: the form `chunked`, and the rates that this device reaches on a square product.
* `torch`: TTSR's form, all pairs at once and in chunks of 4,096 queries.
* `kernel`: the Pallas kernel, on a GPU.
* `torch_compiled`: all pairs at once, by `torch.compile`.

Writes `match_PEER.json`.
"""

from __future__ import annotations

import argparse
import itertools
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.gpu import stage
from benchmarks.matching import ttsr_form

PEERS = ("jax", "torch", "kernel", "torch_compiled")
MODES = ("forward", "forward + backward")
QUERIES = (1_600, 6_400, 25_600, 65_536)
TINY_QUERIES = (64, 256)
FEATURES = 64
ALL_PAIRS = 25_600  # beyond it n x n scores alone take 17 GB
CHUNK = 4_096  # queries at once of PyTorch's chunked form
SIDE = 8192  # of the products whose rate is measured


def maps(side: int, features: int = FEATURES) -> list[np.ndarray]:
    """Query, key and value `(1, side, side, C)` float32; an eighth is black."""
    rng = np.random.default_rng(side)
    out = []
    for _ in range(3):
        coarse = rng.standard_normal((side // 4 + 2, side // 4 + 2, features))
        fine = np.repeat(np.repeat(coarse, 4, 0), 4, 1)[2 : side + 2, 2 : side + 2]
        fine = fine + 0.3 * rng.standard_normal(fine.shape)
        edge = side // 16
        fine[:edge] = fine[side - edge :] = 0
        out.append(fine[None].astype(np.float32))
    return out


def jax_calls(method: str, side: int, mode: str) -> tuple[Callable[[], Any], float]:
    """A compiled call, and the MiB that it works in."""
    import jax
    import jax.numpy as jnp

    from daasr_jax import matching

    arrays = [jnp.asarray(x) for x in maps(side)]

    def forward(*xs: Any) -> Any:
        return matching.match(*xs, method=method)

    def total(*xs: Any) -> Any:
        t, index, c = forward(*xs)
        return jnp.mean(t**2) + jnp.mean(c), index

    gradient = jax.value_and_grad(total, argnums=(0, 1, 2), has_aux=True)
    call = jax.jit(forward if mode == "forward" else gradient)
    program = call.lower(*arrays).compile()
    work = program.memory_analysis().temp_size_in_bytes / 2**20
    return lambda: jax.block_until_ready(program(*arrays)), work


def run_jax(args: argparse.Namespace) -> None:
    stage.needs("jax", "jaxtyping")
    import jax

    method = "kernel" if args.peer == "kernel" else "chunked"
    if method == "kernel" and jax.default_backend() != "gpu":
        stage.leave(f"the kernel is for GPUs, and JAX finds a {jax.default_backend()}")
    result: dict[str, Any] = {"device": jax.devices()[0].device_kind, "rows": []}
    result["features"] = FEATURES
    rows = result["rows"]
    made = []
    last = time.monotonic() + args.compiling / 2
    for mode, n in itertools.product(MODES, args.queries):
        row = {"peer": f"daasr_jax, {method}", "queries": n, "mode": mode}
        try:
            begin = stage.in_time(last)
            call, work = jax_calls(method, math.isqrt(n), mode)
            row |= {"work_mib": work, "compile_s": time.monotonic() - begin}
            made.append((row, call))
        except Exception as error:  # one that does not lower is a line
            rows.append(row | {"not_run": stage.one_line(error)})
    rates = ceilings_of(256 if args.tiny else SIDE) if method == "chunked" else None
    seconds = stage.turn(args.seconds).seconds
    end, each = time.monotonic() + seconds, seconds / 30
    if rates is not None:
        result["ceilings"] = rates(each)
    path = args.out / f"match_{args.peer}.json"
    for row in stage.measured(made, rows, end=end, seconds=each, repeats=args.repeats):
        tell(row, path, result)
    stage.write(path, result)


def ceilings_of(side: int) -> Callable[[float], dict[str, float]]:
    """What measures the rates of this device, compiled.

    Args:
        side: Of the square matrices.

    Returns:
        Seconds of each -> TFLOP/s of products in three precisions, GB/s of a copy.
    """
    import jax
    import jax.numpy as jnp

    square = jnp.asarray(
        np.random.default_rng(0).standard_normal((side, side)), jnp.float32
    )
    products = {}
    for name, precision, kind in (
        ("float32", "highest", jnp.float32),
        ("tensorfloat32", "tensorfloat32", jnp.float32),
        ("bfloat16", "default", jnp.bfloat16),
    ):
        given = square.astype(kind)
        with jax.default_matmul_precision(precision):
            products[name] = (jax.jit(jnp.matmul).lower(given, given).compile(), given)
    copy = jax.jit(lambda x: x + 1).lower(square).compile()

    def measure(seconds: float) -> dict[str, float]:
        found = {}
        for name, (program, given) in products.items():
            took = stage.median(
                lambda p=program, x=given: jax.block_until_ready(p(x, x)),
                repeats=10,
                seconds=seconds,
            )
            found[f"{name}_tflops"] = 2 * side**3 / took["ms"] / 1e9
        took = stage.median(
            lambda: jax.block_until_ready(copy(square)), repeats=20, seconds=seconds
        )
        return found | {"memory_gb_per_s": 2 * 4 * side**2 / took["ms"] / 1e6}

    return measure


def run_torch(args: argparse.Namespace) -> None:
    stage.needs("torch")
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.backends.cuda.matmul.allow_tf32 = False
    result: dict[str, Any] = {"device": stage.torch_device(), "rows": []}
    result["features"] = FEATURES
    rows = result["rows"]
    forms = {"torch, TTSR form": ttsr_form, "torch, chunked": ttsr_form}
    if args.peer == "torch_compiled":
        backend = "eager" if args.tiny else "inductor"  # which a CPU needs minutes for
        whole = torch.compile(ttsr_form, dynamic=False, backend=backend)
        forms = {"torch, TTSR form compiled": whole}
    made = []
    last = time.monotonic() + args.compiling / 2
    for mode in MODES:
        for peer, function in forms.items():
            for n in args.queries:
                row: dict[str, Any] = {"peer": peer, "queries": n, "mode": mode}
                chunk = CHUNK if peer.endswith("chunked") else n
                if n > ALL_PAIRS and chunk == n:
                    rows.append(row | {"not_run": "all pairs: 17 GB of scores"})
                    continue
                arrays = [
                    torch.from_numpy(x).permute(0, 3, 1, 2).contiguous().to(device)
                    for x in maps(math.isqrt(n))
                ]
                for x in arrays:
                    x.requires_grad_(mode != "forward")

                def call(f: Any = function, xs: Any = arrays, c: int = chunk) -> None:
                    if not xs[0].requires_grad:
                        with torch.no_grad():
                            f(*xs, c)
                    else:
                        out = f(*xs, c)
                        ((out[0] ** 2).mean() + out[2].mean()).backward()
                        for x in xs:
                            x.grad = None
                    if device == "cuda":
                        torch.cuda.synchronize()

                try:
                    begin = stage.in_time(last)
                    call()
                    row["compile_s"] = time.monotonic() - begin
                    made.append((row, call))
                except Exception as error:  # one that does not run is a line
                    rows.append(row | {"not_run": stage.one_line(error)})
    seconds = stage.turn(args.seconds).seconds
    path = args.out / f"match_{args.peer}.json"
    for row in stage.measured(
        made,
        rows,
        end=time.monotonic() + seconds,
        seconds=seconds / 30,
        repeats=args.repeats,
        memory=stage.torch_memory,
    ):
        tell(row, path, result)
    stage.write(path, result)


def tell(row: dict[str, Any], path: Path, result: dict[str, Any]) -> None:
    print(f"{row['peer']}, {row['queries']}, {row['mode']}: {row['ms']:.2f} ms")
    stage.write(path, result)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peer", choices=PEERS, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seconds", type=float, help="by itself: of the whole turn")
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--compiling", type=float, default=600.0, help="seconds")
    parser.add_argument("--tiny", action="store_true")
    args = parser.parse_args()
    args.queries = TINY_QUERIES if args.tiny else QUERIES
    run = run_torch if args.peer.startswith("torch") else run_jax
    run(args)


if __name__ == "__main__":
    main()
