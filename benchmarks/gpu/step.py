"""The paper's step on this device: 64 features, 6 groups, batch 9, LR crop 40, x4.

    python -m benchmarks.gpu.step --peer jax --out DIR [--seconds 60]

`--peer torch` measures the PyTorch twin of the parity tests, eager and compiled. Both
peers use the L1 terms of Eq. 14 and Adam, on images that lie on the device. Writes
`step_PEER.json`, in the order of the variants; each as soon as it is measured.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import inspect
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.gpu import stage

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


# In the order of their worth.
VARIANTS = (
    Variant("fast"),
    Variant("paper"),
    Variant("fast", "bfloat16"),
    Variant("fast", search="kernel"),
    Variant("fast", batches=4),
    Variant("paper", "bfloat16"),
    Variant("fast", "float32"),
    Variant("fast", remat=True),
    Variant("fast", "bfloat16", batches=4),
    Variant("paper", "float32"),
    Variant("paper", remat=True),
)
TORCH = (  # and whether compiled
    *((Variant("fast"), False), (Variant("paper"), False)),
    *((Variant("fast"), True), (Variant("paper"), True)),
    *((Variant("fast", "bfloat16"), False), (Variant("paper", "bfloat16"), False)),
    *((Variant("fast", batches=4), False), (Variant("fast", "float32"), False)),
    *((Variant("fast", "bfloat16"), True), (Variant("paper", "float32"), False)),
)
TRACED = VARIANTS[0]
THREADS = 3  # compile at once: each tunes its kernels on the device, alone
LARGEST = 12  # kernels that are named


def images(sizes: dict[str, int]) -> list[Any]:
    import numpy as np

    rng = np.random.default_rng(0)
    side = sizes["crop"] * SCALE
    shape = (sizes["batch"], side, side, 1)
    return [rng.random(shape, dtype=np.float32) for _ in range(2)]


def jax_step(variant: Variant, sizes: dict[str, int]) -> dict[str, Any]:
    """One compiled step, its state and batch, and what compiling it took."""
    import jax
    import optax

    from benchmarks.gpu.train import LOSSES
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
    return {
        "program": program,
        "state": state,
        "batch": batch,
        "trace_s": traced,
        "compile_s": time.monotonic() - begin - traced,
        "state_mib": memory.argument_size_in_bytes / 2**20,
        "work_mib": memory.temp_size_in_bytes / 2**20,
    }


def run_jax(args: argparse.Namespace, sizes: dict[str, int]) -> None:
    import jax

    stage.keep_compiled(args.cache)
    variants = VARIANTS[: args.variants]
    made: dict[Any, dict[str, Any]] = {}
    rows: list[dict[str, Any]] = []
    result: dict[str, Any] = {"device": jax.devices()[0].device_kind, "rows": rows}
    result |= {"scale": SCALE, **sizes}
    # how many were kept by an earlier visit
    result["kept_before"] = len(list(args.cache.glob("*"))) if args.cache else 0
    last = time.monotonic() + args.compiling / 2

    def prepare(variant: Variant) -> dict[str, Any]:
        if time.monotonic() > last:
            raise TimeoutError("no time was left to compile it")
        return jax_step(variant, sizes)

    with concurrent.futures.ThreadPoolExecutor(THREADS) as pool:
        waiting = {pool.submit(prepare, v): v for v in variants}
        for done in concurrent.futures.as_completed(waiting):
            try:
                made[waiting[done]] = done.result()
            except Exception as error:  # one that does not compile is a line
                text = " ".join(str(error).split())[:300]
                rows.append({"variant": waiting[done], "not_run": text})
    seconds = stage.turn(args.seconds)
    end = time.monotonic() + seconds
    for variant in variants:
        if variant not in made:
            continue
        one = made.pop(variant)
        row: dict[str, Any] = {"variant": variant, "peer": "daasr_jax"}
        row |= {k: one[k] for k in ("trace_s", "compile_s", "state_mib", "work_mib")}
        if time.monotonic() > end:
            rows.append(row | {"not_run": "no time was left"})
            continue
        box = [one["state"]]

        def call(one: Any = one, box: list[Any] = box) -> None:
            box[0], metrics = one["program"](box[0], one["batch"])
            jax.block_until_ready((box[0], metrics))

        row |= stage.median(call, repeats=args.repeats, seconds=seconds / 10)
        row["images_per_s"] = 1e3 * variant.batches * sizes["batch"] / row["ms"]
        rows.append(row)
        print(f"{variant}: {row['ms']:.2f} ms", flush=True)
        stage.write(args.out / "step_jax.json", result)
        if variant == TRACED:
            result["trace"] = kernels(call)
            stage.write(args.out / "step_jax.json", result)
    stats = jax.devices()[0].memory_stats() or {}
    result["peak_of_all_mib"] = stats.get("peak_bytes_in_use", 0) / 2**20
    stage.write(args.out / "step_jax.json", result)


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
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    rows: list[dict[str, Any]] = []
    result: dict[str, Any] = {"device": device, "rows": rows, "scale": SCALE, **sizes}
    calls = []
    last = time.monotonic() + args.compiling / 2
    for variant, by_compiler in TORCH[: args.variants]:
        peer = "torch, compiled" if by_compiler else "torch, eager"
        row: dict[str, Any] = {"variant": variant, "peer": peer}
        try:
            begin = time.monotonic()
            if begin > last:
                raise TimeoutError("no time was left to compile it")
            call = torch_step(variant, sizes, device, by_compiler)
            call()
            row["compile_s"] = time.monotonic() - begin
            calls.append((row, call))
        except Exception as error:  # one that does not run is a line
            rows.append(row | {"not_run": " ".join(str(error).split())[:300]})
    seconds = stage.turn(args.seconds)
    end = time.monotonic() + seconds
    for row, call in calls:
        if time.monotonic() > end:
            rows.append(row | {"not_run": "no time was left"})
            continue
        if device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        row |= stage.median(call, repeats=args.repeats, seconds=seconds / 10)
        row["images_per_s"] = 1e3 * row["variant"].batches * sizes["batch"] / row["ms"]
        if device == "cuda":
            # the others of this process hold their weights too: a few MiB each
            row["peak_mib"] = torch.cuda.max_memory_allocated() / 2**20
        rows.append(row)
        print(f"{row['peer']}, {row['variant']}: {row['ms']:.2f} ms", flush=True)
        stage.write(args.out / "step_torch.json", result)
    stage.write(args.out / "step_torch.json", result)


def torch_step(
    variant: Variant, sizes: dict[str, int], device: str, compiled: bool
) -> Callable[[], None]:
    import torch

    from daasr_jax.models.daasr import PRESETS
    from tests.parity.torch_daasr import TorchDAASR, resize

    preset, precision = variant.preset, variant.precision
    sizes = sizes | {"batch": variant.batches * sizes["batch"]}
    known = inspect.signature(TorchDAASR).parameters
    kwargs = {k: v for k, v in PRESETS[preset].items() if k in known}
    kwargs["detail"] = PRESETS[preset].get("detail") is not None
    kwargs |= {k: sizes[k] for k in ("features", "groups")}
    model = TorchDAASR(scale=SCALE, **kwargs).to(device)
    model.train()
    forward = torch.compile(model) if compiled else model
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
        loss = (out.sr - hr).abs().mean() + 0.1 * (out.cwt - hr).abs().mean()
        loss = loss + 0.01 * (out.sat - hr).abs().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        if device == "cuda":
            torch.cuda.synchronize()

    return once


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peer", choices=("jax", "torch"), required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seconds", type=float, help="by itself: of the whole turn")
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--variants", type=int, help="the first so many")
    parser.add_argument("--compiling", type=float, default=600.0, help="seconds")
    parser.add_argument("--cache", type=Path, help="folder of compiled programs")
    parser.add_argument("--tiny", action="store_true")
    args = parser.parse_args()
    run = {"jax": run_jax, "torch": run_torch}[args.peer]
    run(args, TINY if args.tiny else SIZES)


if __name__ == "__main__":
    main()
