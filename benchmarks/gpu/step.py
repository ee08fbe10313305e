"""The paper's step on this device: 64 features, 6 groups, batch 9, LR crop 40, x4.

    python -m benchmarks.gpu.step --peer jax --out DIR [--seconds 60]

Peers, each in a process of its own: `jax`; `torch`, the PyTorch twin of the parity
tests; `torch_compiled`, the twin by `torch.compile`; `kernel`, `fast` with the Pallas
kernel's search, on a GPU. All use the L1 terms of Eq. 14 and Adam, on images that lie
on the device. Writes `step_PEER.json`, in the order of the variants; each as soon as it
is measured.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.gpu import stage
from benchmarks.train_step import twin, twin_loss

SCALE = 4
SIZES = {"features": 64, "groups": 6, "batch": 9, "crop": 40}
TINY = {"features": 8, "groups": 2, "batch": 2, "crop": 8}


class Variant(NamedTuple):
    """One way to make the step.

    Attributes:
        preset: Of DAASR.
        precision: Of products; `"bfloat16"` computes all in it.
        remat: Whether activations are computed again.
        batches: Of `SIZES`, at once.
        search: Form of the search; empty for the platform's own.
    """

    preset: str
    precision: str = "tensorfloat32"
    remat: bool = False
    batches: int = 1
    search: str = ""


# Peer -> variants, in the order of their worth.
JAX = (
    Variant("fast"),
    Variant("paper"),
    Variant("fast", "bfloat16"),
    Variant("fast", batches=4),
    Variant("paper", "bfloat16"),
    Variant("fast", "float32"),
    Variant("fast", remat=True),
    Variant("fast", "bfloat16", batches=4),
    Variant("paper", "float32"),
    Variant("paper", remat=True),
)
TORCH = (
    *(Variant("fast"), Variant("paper")),
    *(Variant("fast", "bfloat16"), Variant("paper", "bfloat16")),
    *(Variant("fast", batches=4), Variant("fast", "float32")),
    Variant("paper", "float32"),
)
VARIANTS = {
    "jax": JAX,
    "torch": TORCH,
    "kernel": (Variant("fast", search="kernel"),),
    "torch_compiled": (Variant("fast"), Variant("paper"), Variant("fast", "bfloat16")),
}
TRACED = JAX[0]
THREADS = 3  # compile at once: each tunes its kernels on the device, alone
LARGEST = 12  # kernels that are named


def images(sizes: dict[str, int]) -> list[Any]:
    import numpy as np

    rng = np.random.default_rng(0)
    side = sizes["crop"] * SCALE
    shape = (sizes["batch"], side, side, 1)
    return [rng.random(shape, dtype=np.float32) for _ in range(2)]


def jax_step(
    variant: Variant, sizes: dict[str, int]
) -> tuple[dict[str, Any], Callable[[], None]]:
    """What compiling one step took, and the step."""
    import jax
    import optax

    from benchmarks.gpu.training import LOSSES
    from daasr_jax.models.daasr import DAASR, PRESETS
    from daasr_jax.models.sat import Matching
    from daasr_jax.training.state import create_state
    from daasr_jax.training.step import make_train_step

    precision = variant.precision
    sizes = sizes | {"batch": variant.batches * sizes["batch"]}
    dtype = "bfloat16" if precision == "bfloat16" else "float32"
    model = DAASR(
        scale=SCALE,
        features=sizes["features"],
        groups=sizes["groups"],
        dtype=jax.numpy.dtype(dtype),
        remat=variant.remat,
        align=partial(Matching, search=variant.search or None),
        **PRESETS[variant.preset],
    )
    optimiser = optax.adam(2e-4)
    crop = sizes["crop"]
    state = create_state(model, optimiser, scale=SCALE, crop=crop, seed=0, ema=False)
    hr, ref = images(sizes)
    batch = jax.device_put({"hr": hr, "ref": ref})
    step = make_train_step(model, optimiser, LOSSES, scale=SCALE)
    products = "tensorfloat32" if precision == "bfloat16" else precision
    begin = time.monotonic()
    with jax.default_matmul_precision(products):
        lowered = jax.jit(step, donate_argnums=0).lower(state, batch)
    traced = time.monotonic() - begin
    program = lowered.compile()
    memory = program.memory_analysis()
    row = {
        "variant": variant,
        "peer": "daasr_jax",
        "batch": sizes["batch"],
        "trace_s": traced,
        "compile_s": time.monotonic() - begin - traced,
        "state_mib": memory.argument_size_in_bytes / 2**20,
        "work_mib": memory.temp_size_in_bytes / 2**20,
    }
    box = [state]

    def call() -> None:
        box[0], metrics = program(box[0], batch)
        jax.block_until_ready((box[0], metrics))

    return row, call


def run_jax(args: argparse.Namespace, sizes: dict[str, int]) -> None:
    stage.needs("jax", "flax", "optax", "jaxtyping")
    import jax

    if args.peer == "kernel" and jax.default_backend() != "gpu":
        stage.leave(f"the kernel is for GPUs, and JAX finds a {jax.default_backend()}")
    stage.keep_compiled(args.cache)
    variants = VARIANTS[args.peer][: args.variants]
    path = args.out / f"step_{args.peer}.json"
    rows: list[dict[str, Any]] = []
    result: dict[str, Any] = {"device": jax.devices()[0].device_kind, "rows": rows}
    result |= {"scale": SCALE, **sizes}
    # how many were kept by an earlier visit
    result["kept_before"] = len(list(args.cache.glob("*"))) if args.cache else 0
    last = time.monotonic() + args.compiling / 2

    def prepare(variant: Variant) -> tuple[dict[str, Any], Callable[[], None]]:
        stage.in_time(last)
        return jax_step(variant, sizes)

    made = []
    with concurrent.futures.ThreadPoolExecutor(THREADS) as pool:
        for variant, one in [(v, pool.submit(prepare, v)) for v in variants]:
            try:
                made.append(one.result())
            except Exception as error:  # one that does not compile is a line
                rows.append({"variant": variant, "not_run": stage.one_line(error)})
    calls = {row["variant"]: call for row, call in made}
    for row in timed(made, rows, args):
        tell(row, path, result)
        if row["variant"] == TRACED:
            result["trace"] = traced(calls[TRACED])
            stage.write(path, result)
    stats = jax.devices()[0].memory_stats() or {}
    result["peak_of_all_mib"] = stats.get("peak_bytes_in_use", 0) / 2**20
    stage.write(path, result)


def traced(call: Callable[[], None]) -> dict[str, Any]:
    """The largest kernels, or why there is no trace: it costs no other row."""
    try:
        return kernels(call)
    except Exception as error:
        return {"failed": stage.one_line(error)}


def kernels(call: Callable[[], None], steps: int = 3) -> dict[str, Any]:
    """Where the time of a step goes on the device: the largest kernels, in ms."""
    import jax

    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            for _ in range(steps):
                call()
        files = sorted(Path(folder).rglob("*.xplane.pb"))
        data = jax.profiler.ProfileData.from_file(str(files[-1]))
        total: dict[str, float] = {}
        for plane in data.planes:
            on_device = plane.name.startswith("/device:GPU")
            for line in plane.lines:
                if on_device and not line.name.startswith("Stream"):
                    continue
                if not on_device and "XLA" not in line.name:
                    continue
                for event in line.events:
                    total[event.name] = total.get(event.name, 0) + event.duration_ns
    whole = sum(total.values()) or 1.0
    largest = sorted(total.items(), key=lambda x: -x[1])[:LARGEST]
    return {
        "busy_ms": whole / steps / 1e6,
        "kernels": len(total),
        "largest": [
            {"name": n[:90], "ms": ns / steps / 1e6, "share": ns / whole}
            for n, ns in largest
        ],
    }


def run_torch(args: argparse.Namespace, sizes: dict[str, int]) -> None:
    stage.needs("torch")
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    compiler = ""
    if args.peer == "torch_compiled":  # which a CPU needs minutes for
        compiler = "eager" if args.tiny else "inductor"
    peer = "torch, compiled" if compiler else "torch, eager"
    path = args.out / f"step_{args.peer}.json"
    rows: list[dict[str, Any]] = []
    result: dict[str, Any] = {"device": stage.torch_device(), "rows": rows}
    result |= {"scale": SCALE, **sizes}
    calls = []
    last = time.monotonic() + args.compiling / 2
    for variant in VARIANTS[args.peer][: args.variants]:
        row: dict[str, Any] = {"variant": variant, "peer": peer}
        row["batch"] = variant.batches * sizes["batch"]
        try:
            begin = stage.in_time(last)
            call = torch_step(variant, sizes, device, compiler)
            call()
            row["compile_s"] = time.monotonic() - begin
            calls.append((row, call))
        except Exception as error:  # one that does not run is a line
            rows.append(row | {"not_run": stage.one_line(error)})
    for row in timed(calls, rows, args, memory=stage.torch_memory):
        tell(row, path, result)
    stage.write(path, result)


def timed(
    made: list[Any], rows: list[dict[str, Any]], args: argparse.Namespace, **how: Any
) -> Iterator[dict[str, Any]]:
    """The turn of this part: the rows that were run, with their images/s."""
    seconds = stage.turn(args.seconds).seconds
    end = time.monotonic() + seconds
    for row in stage.measured(
        made, rows, end=end, seconds=seconds / 10, repeats=args.repeats, **how
    ):
        row["images_per_s"] = 1e3 * row["batch"] / row["ms"]
        yield row


def tell(row: dict[str, Any], path: Path, result: dict[str, Any]) -> None:
    print(f"{row['peer']}, {row['variant']}: {row['ms']:.2f} ms", flush=True)
    stage.write(path, result)


def torch_step(
    variant: Variant, sizes: dict[str, int], device: str, compiler: str
) -> Callable[[], None]:
    """The twin's step, by a backend of `torch.compile` or, without one, eager."""
    import torch

    from tests.parity.torch_daasr import resize

    precision = variant.precision
    sizes = sizes | {"batch": variant.batches * sizes["batch"]}
    model = twin(variant.preset, features=sizes["features"], groups=sizes["groups"])
    model = model.to(device)
    model.train()
    forward = torch.compile(model, backend=compiler) if compiler else model
    optimiser = torch.optim.Adam(model.parameters(), lr=2e-4)
    hr, ref = (
        torch.from_numpy(x).permute(0, 3, 1, 2).contiguous().to(device)
        for x in images(sizes)
    )
    small = (sizes["crop"], sizes["crop"])

    def once() -> None:
        exact = precision == "float32"
        torch.backends.cuda.matmul.allow_tf32 = not exact
        torch.backends.cudnn.allow_tf32 = not exact
        with torch.autocast(device, torch.bfloat16, enabled=precision == "bfloat16"):
            lr = resize(hr, small)
            out = forward(lr, ref)
        loss = twin_loss(out, hr)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        if device == "cuda":
            torch.cuda.synchronize()

    return once


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peer", choices=VARIANTS, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seconds", type=float, help="by itself: of the whole turn")
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--variants", type=int, help="the first so many")
    parser.add_argument("--compiling", type=float, default=600.0, help="seconds")
    parser.add_argument("--cache", type=Path, help="folder of compiled programs")
    parser.add_argument("--tiny", action="store_true")
    args = parser.parse_args()
    run = run_torch if args.peer.startswith("torch") else run_jax
    run(args, TINY if args.tiny else SIZES)


if __name__ == "__main__":
    main()
