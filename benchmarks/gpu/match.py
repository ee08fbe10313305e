"""The patch search on this device, against PyTorch's form of TTSR's search.

    python -m benchmarks.gpu.match --peer jax --out DIR [--seconds 30]

One image, 64 features, 3x3 patches, as many keys as queries, float32: search, transfer
and score. The maps are smooth noise over a black border, as slices are. The floor is
the time of the products alone, `2 n m 9 C` operations, at the rate that this device
reaches on a square product in full float32, measured in the same process. Writes
`match_PEER.json`.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.gpu import stage
from benchmarks.matching import ttsr_form

QUERIES = (1_600, 6_400, 25_600, 65_536)
TINY_QUERIES = (64, 256)
FEATURES = 64
ALL_PAIRS = 25_600  # beyond it n x n scores alone take 17 GB
CHUNK = 4_096  # queries at once of PyTorch's chunked form
SIDE = 8192  # of the product that sets the floor


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
    import jax
    import jax.numpy as jnp

    result: dict[str, Any] = {"device": jax.devices()[0].device_kind, "rows": []}
    rows = result["rows"]
    wanted = [
        (method, n, mode)
        for mode in ("forward", "forward + backward")
        for method in ("chunked", "kernel")
        for n in args.queries
        if method == "chunked" or jax.default_backend() == "gpu"
    ]
    made = []
    for method, n, mode in wanted:
        row = {"peer": f"daasr_jax, {method}", "queries": n, "mode": mode}
        try:
            begin = time.monotonic()
            call, work = jax_calls(method, math.isqrt(n), mode)
            row |= {"work_mib": work, "compile_s": time.monotonic() - begin}
            made.append((row, call))
        except Exception as error:  # one that does not lower is a line
            rows.append(row | {"not_run": stage.one_line(error)})
    side = 256 if args.tiny else SIDE
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
    seconds = stage.turn(args.seconds)
    end, each = time.monotonic() + seconds, seconds / 40
    ceilings = {}
    for name, (program, given) in products.items():
        found = stage.median(
            lambda p=program, x=given: jax.block_until_ready(p(x, x)),
            repeats=10,
            seconds=each,
        )
        ceilings[f"{name}_tflops"] = 2 * side**3 / found["ms"] / 1e9
    found = stage.median(
        lambda: jax.block_until_ready(copy(square)), repeats=20, seconds=each
    )
    ceilings["memory_gb_per_s"] = 2 * 4 * side**2 / found["ms"] / 1e6
    result["ceilings"] = ceilings
    for row in stage.measured(made, rows, end=end, seconds=each, repeats=args.repeats):
        operations = 2 * row["queries"] ** 2 * 9 * FEATURES
        floor = operations / ceilings["float32_tflops"] / 1e9
        row |= {"floor_ms": floor, "of_floor": floor / row["ms"]}
        tell(row, args.out / "match_jax.json", result)
    stage.write(args.out / "match_jax.json", result)


def run_torch(args: argparse.Namespace) -> None:
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.backends.cuda.matmul.allow_tf32 = False
    result: dict[str, Any] = {"device": device, "rows": []}
    rows = result["rows"]

    compiled = torch.compile(ttsr_form, dynamic=False)
    made = []
    for mode in ("forward", "forward + backward"):
        for peer, function in (
            ("torch, TTSR form", ttsr_form),
            ("torch, TTSR form compiled", compiled),
            ("torch, chunked", ttsr_form),
        ):
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
                    begin = time.monotonic()
                    call()
                    row["compile_s"] = time.monotonic() - begin
                    made.append((row, call))
                except Exception as error:  # one that does not run is a line
                    rows.append(row | {"not_run": stage.one_line(error)})
    seconds = stage.turn(args.seconds)
    for row in stage.measured(
        made,
        rows,
        end=time.monotonic() + seconds,
        seconds=seconds / 30,
        repeats=args.repeats,
        memory=stage.torch_memory,
    ):
        tell(row, args.out / "match_torch.json", result)
    stage.write(args.out / "match_torch.json", result)


def tell(row: dict[str, Any], path: Path, result: dict[str, Any]) -> None:
    print(f"{row['peer']}, {row['queries']}, {row['mode']}: {row['ms']:.2f} ms")
    stage.write(path, result)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peer", choices=("jax", "torch"), required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seconds", type=float, help="by itself: of the whole turn")
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--tiny", action="store_true")
    args = parser.parse_args()
    args.queries = TINY_QUERIES if args.tiny else QUERIES
    {"jax": run_jax, "torch": run_torch}[args.peer](args)


if __name__ == "__main__":
    main()
