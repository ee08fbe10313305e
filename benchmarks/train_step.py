"""Speed and memory of one training step at the paper's size, and where its time goes.

    python -m benchmarks.train_step --out docs/results

Runs `configs/fastmri_x4.py` (64 features, 6 groups, batch 9, LR crop 40) on random
images, each peer in a process of its own so that peak memory is its own:

* `daasr_jax`: this project's step;
* `daasr_jax, XLA kernel gradient`: the same without `models/conv.py`'s kernel gradient;
* `daasr_jax, lean schedule`: the same with XLA's other order of operations for CPUs,
  `XLA_FLAGS=--xla_cpu_enable_concurrency_optimized_scheduler=false`;
* `torch, eager` and `torch, compiled`: the PyTorch twin of the parity tests, as it is
  and by `torch.compile`, where PyTorch is installed.

Writes `train_step.md` and `train_step.json` with machine, versions and commit.
"""

from __future__ import annotations

import argparse
import importlib.util
import inspect
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

PEERS = (
    "daasr_jax",
    "daasr_jax, XLA kernel gradient",
    "daasr_jax, lean schedule",
    "torch, eager",
    "torch, compiled",
)
PRESETS = ("paper", "fast")
BATCH, CROP, SCALE = 9, 40, 4
LEAN = "--xla_cpu_enable_concurrency_optimized_scheduler=false"


def timed(call: Callable[[], Any], repeats: int) -> tuple[list[float], float]:
    """Milliseconds of each call after one that is not counted; MiB before it."""
    before = peak_mib()
    call()
    times = []
    for _ in range(repeats):
        begin = time.perf_counter()
        call()
        times.append(1e3 * (time.perf_counter() - begin))
    return times, before


def median_ms(call: Callable[[], Any], repeats: int) -> float:
    return statistics.median(timed(call, repeats)[0])


def peak_mib() -> float:
    """Peak resident memory of this process."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def images() -> tuple[Any, Any]:
    import numpy as np

    rng = np.random.default_rng(0)
    shape = (BATCH, CROP * SCALE, CROP * SCALE, 1)
    return tuple(rng.random(shape, dtype=np.float32) for _ in range(2))


Timing = tuple[list[float], float]


def run_jax(preset: str, mode: str, repeats: int, *, xla_gradient: bool) -> Timing:
    import jax
    import optax

    from configs import fastmri_x4
    from daasr_jax.experiment import parts
    from daasr_jax.models import conv
    from daasr_jax.training.state import create_state
    from daasr_jax.training.step import make_train_step

    if xla_gradient:
        conv.cpu_forms = lambda: False
    config = fastmri_x4.get_config(preset)
    model = parts.make_model(config)
    optimiser = optax.adam(2e-4)
    state = create_state(model, optimiser, scale=SCALE, crop=CROP, seed=0, ema=False)
    if mode == "inference 256x256":
        variables = {"params": state.gen, "batch_stats": state.batch_stats}
        lr, ref = (jax.numpy.full((1, n, n, 1), 0.5) for n in (64, 256))
        apply = jax.jit(lambda v, a, b: model.apply(v, a, b, train=False).sr)
        return timed(lambda: jax.block_until_ready(apply(variables, lr, ref)), repeats)
    step = make_train_step(
        model,
        optimiser,
        parts.make_losses(config),
        scale=SCALE,
    )
    compiled = jax.jit(step, donate_argnums=0)
    hr, ref = images()
    box = [state]

    def once() -> None:
        box[0], metrics = compiled(box[0], {"hr": hr, "ref": ref})
        jax.block_until_ready((box[0], metrics))

    return timed(once, repeats)


def twin(preset: str, **sizes: int) -> Any:
    """The PyTorch twin of a preset."""
    from daasr_jax.models.daasr import PRESETS
    from tests.parity.torch_daasr import TorchDAASR

    known = inspect.signature(TorchDAASR).parameters  # the rest are classes
    kwargs = {k: v for k, v in PRESETS[preset].items() if k in known}
    kwargs["detail"] = PRESETS[preset].get("detail") is not None
    return TorchDAASR(scale=SCALE, **kwargs, **sizes)


def twin_loss(out: Any, hr: Any) -> Any:
    """The L1 terms of Eq. 14 of the twin's outputs."""
    loss = (out.sr - hr).abs().mean() + 0.1 * (out.cwt - hr).abs().mean()
    return loss + 0.01 * (out.sat - hr).abs().mean()


def run_torch(preset: str, mode: str, repeats: int, *, compiled: bool) -> Timing:
    import torch

    from tests.parity.torch_daasr import resize

    model = twin(preset)
    forward = torch.compile(model) if compiled else model
    if mode == "inference 256x256":
        model.eval()
        lr, ref = torch.full((1, 1, 64, 64), 0.5), torch.full((1, 1, 256, 256), 0.5)
        with torch.no_grad():
            return timed(lambda: forward(lr, ref), repeats)
    model.train()
    optimiser = torch.optim.Adam(model.parameters(), lr=2e-4)
    hr, ref = (torch.from_numpy(x).permute(0, 3, 1, 2).contiguous() for x in images())

    def once() -> None:
        lr = resize(hr, (CROP, CROP))
        loss = twin_loss(forward(lr, ref), hr)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()

    return timed(once, repeats)


def profile(preset: str, repeats: int) -> dict[str, float]:
    """Milliseconds of forward and backward of the parts of a step, one at a time."""
    import jax
    import jax.numpy as jnp

    from configs import fastmri_x4
    from daasr_jax import matching, resampling
    from daasr_jax.models.conv import Conv3
    from daasr_jax.models.cwt import CWT
    from daasr_jax.models.init import linear
    from daasr_jax.models.sfe import SFE

    kwargs = fastmri_x4.get_config(preset).model.kwargs
    c, groups, coarse = kwargs.features, kwargs.groups, kwargs.sat_grid == "lr"
    key = jax.random.key(0)
    lr = jax.random.normal(key, (BATCH, CROP, CROP, c))
    hr = jax.random.normal(key, (BATCH, CROP * SCALE, CROP * SCALE, c))
    images_ = jax.random.uniform(
        key, ((3 if coarse else 2) * BATCH, CROP * SCALE, CROP * SCALE, 1)
    )

    def both(module: Any, x: Any, **kw: Any) -> float:
        variables = module.init(key, x, **kw)
        params = variables.pop("params")

        def value(p: Any, x: Any) -> Any:
            y = module.apply(
                {"params": p, **variables}, x, mutable=["batch_stats"], **kw
            )[0]
            return jnp.sum(y * y)

        f = jax.jit(jax.grad(value, (0, 1)))
        return median_ms(lambda: jax.block_until_ready(f(params, x)), repeats)

    def gradient(function: Callable[..., Any], *xs: Any) -> float:
        f = jax.jit(
            jax.grad(lambda *a: jnp.sum(function(*a) ** 2), tuple(range(len(xs))))
        )
        return median_ms(lambda: jax.block_until_ready(f(*xs)), repeats)

    from flax import linen as nn

    class Fuse(nn.Module):
        @nn.compact
        def __call__(self, x):
            y = linear(c, jnp.concatenate([x, x], -1), name="fuse")
            y = y if coarse else resampling.space_to_depth(y, SCALE)
            return linear(c, y, name="back")

    class Block(nn.Module):
        @nn.compact
        def __call__(self, x):
            return Conv3(features=c, name="b")(nn.relu(Conv3(features=c, name="a")(x)))

    class Tail(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = Conv3(features=c, name="body")(x)
            for i in range(2):
                x = resampling.depth_to_space(
                    Conv3(features=4 * c, name=f"up{i}")(x), 2
                )
            return Conv3(features=1, name="out")(x)

    find = jax.jit(matching.search)
    index = find(lr, lr)
    search = median_ms(lambda: jax.block_until_ready(find(lr, lr)), repeats)
    value = lr if coarse else resampling.space_to_depth(hr, SCALE)
    moved = gradient(
        lambda q, v: (
            jnp.mean(matching.transfer(v, index), -1)
            * matching.pair_score(q, q, index)[..., 0]
        ),
        lr,
        value,
    )
    sfe = SFE(features=c, scale=SCALE, grid=kwargs.sfe_grid, norm=kwargs.sfe_norm)
    searches = 1 if kwargs.query == "extractor" else groups
    parts = {
        "SFE of reference, blur" + (" and LR image" if coarse else ""): both(
            sfe, images_, train=True
        ),
        f"CWT ({groups})": groups * both(CWT(), lr),
        f"search ({searches})": searches * search,
        f"score and transfer ({searches})": searches * moved,
        f"fusion, 1x1 ({groups})": groups * both(Fuse(), lr if coarse else hr),
        "tail": both(Tail(), lr),
    }
    if kwargs.group_block == "conv":
        parts[f"3x3 block ({groups})"] = groups * both(Block(), lr)
    if not coarse:
        up = gradient(lambda x: resampling.upsample(x, SCALE), lr)
        parts[f"bicubic enlargement ({groups})"] = groups * up
    return parts


def child(peer: str, preset: str, mode: str, repeats: int) -> None:
    """One measurement, printed as JSON."""
    if mode == "profile":
        print(json.dumps(profile(preset, repeats)))
        return
    if peer.startswith("torch"):
        times, before = run_torch(preset, mode, repeats, compiled="compiled" in peer)
    else:
        times, before = run_jax(preset, mode, repeats, xla_gradient=peer == PEERS[1])
    n = BATCH if mode == "training step" else 1
    median = statistics.median(times)
    row = {
        "peer": peer,
        "preset": preset,
        "mode": mode,
        "median_ms": median,
        "min_ms": min(times),
        "max_ms": max(times),
        "images_per_s": 1e3 * n / median,
        "peak_mib": peak_mib(),
        "before_mib": before,
    }
    print(json.dumps(row))


def measure(peer: str, preset: str, mode: str, repeats: int) -> Any:
    command = [sys.executable, "-m", "benchmarks.train_step", "--child", peer]
    command += ["--preset", preset, "--mode", mode, "--repeats", str(repeats)]
    flags = f"{os.environ.get('XLA_FLAGS', '')} {LEAN}".strip()
    extra = {"XLA_FLAGS": flags} if peer == PEERS[2] else {}
    done = subprocess.run(
        command, capture_output=True, text=True, env=os.environ | extra
    )
    if done.returncode:
        print(f"{peer}, {preset}, {mode}: failed\n{done.stderr[-800:]}")
        return None
    return json.loads(done.stdout.strip().splitlines()[-1])


def machine() -> dict[str, Any]:
    from importlib.metadata import PackageNotFoundError, version

    from daasr_jax.experiment.installation import commit_id
    from daasr_jax.runtime.devices import description

    versions = {}
    for name in ("jax", "flax", "numpy", "torch"):
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = "not installed"
    return {
        "cores": os.cpu_count(),
        "processor": _processor(),
        "device": description(),
        "python": platform.python_version(),
        "versions": versions,
        "commit": commit_id(),
    }


def machine_line(about: dict[str, Any]) -> str:
    """The machine and the commit of a page."""
    dirty = "-dirty" if about["commit"].endswith("dirty") else ""
    return (
        f"{about['processor']}, {about['cores']} cores ({about['device']}); Python "
        f"{about['python']}, jax {about['versions']['jax']}; commit "
        f"{about['commit'][:12]}{dirty}."
    )


def save(
    out: Path, name: str, text: str, about: dict[str, Any], rows: list[dict[str, Any]]
) -> None:
    """Prints a page, and writes it with its rows as JSON."""
    out.mkdir(parents=True, exist_ok=True)
    (out / f"{name}.md").write_text(text, encoding="utf-8")
    record = json.dumps({"machine": about, "rows": rows}, indent=1)
    (out / f"{name}.json").write_text(record, encoding="utf-8")
    print(text)


def jax_platform() -> str:
    import jax

    return jax.default_backend()


def where(about: dict[str, Any]) -> str:
    """One line of machine, versions and commit, and that a GPU is yet to come."""
    text = (
        f"{about['processor']}, {about['cores']} cores ({about['device']}); "
        f"Python {about['python']}, "
        + ", ".join(f"{k} {v}" for k, v in about["versions"].items())
        + f"; commit {about['commit'][:12]}"
        + ("-dirty." if about["commit"].endswith("dirty") else ".")
    )
    cpu = about["device"].startswith("cpu")
    return text + (" On a GPU: not run." if cpu else "")


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = [x.split(":")[1].strip() for x in lines if x.startswith("model name")]
    return names[0] if names else platform.processor()


def markdown(
    rows: list[dict[str, Any]],
    parts: dict[str, dict[str, float]],
    about: dict[str, Any],
) -> str:
    text = [
        "# One training step at the paper's size",
        "",
        "`python -m benchmarks.train_step --out docs/results` (`make bench`): "
        f"`configs/fastmri_x4.py`, 64 features, 6 groups, batch {BATCH}, "
        f"LR crop {CROP}, x{SCALE}, float32, random images. Every line ran in a "
        "process of its own; median of the repeats [lowest, highest] after one that "
        "is not counted. Peak memory is the resident peak of the process, framework "
        "and compilation included; `before` is what it held before the first call.",
        "",
        where(about),
        "",
        "| preset | what | peer | ms | images/s | times torch | peak MiB | before | "
        "of torch's |",
        "|---|---|---|--:|--:|--:|--:|--:|--:|",
    ]
    for row in rows:
        torch = [
            r
            for r in rows
            if r["peer"] == "torch, eager"
            and (r["preset"], r["mode"]) == (row["preset"], row["mode"])
        ]
        ratio, share = "not run", "not run"
        if torch:
            ratio = f"{torch[0]['median_ms'] / row['median_ms']:.2f}"
            share = f"{row['peak_mib'] / torch[0]['peak_mib']:.2f}"
        text.append(
            f"| {row['preset']} | {row['mode']} | {row['peer']} | "
            f"{row['median_ms']:,.0f} [{row['min_ms']:,.0f}, {row['max_ms']:,.0f}] | "
            f"{row['images_per_s']:.2f} | {ratio} | {row['peak_mib']:,.0f} | "
            f"{row['before_mib']:,.0f} | {share} |"
        )
    for preset, values in parts.items():
        total = sum(values.values())
        text += [
            "",
            f"## Where the time of a `{preset}` step goes",
            "",
            "Forward and backward of each part alone, on arrays of the step's shapes; "
            f"together {total:,.0f} ms.",
            "",
            "| part | ms | share |",
            "|---|--:|--:|",
        ]
        for name, ms in sorted(values.items(), key=lambda x: -x[1]):
            text.append(f"| {name} | {ms:,.0f} | {100 * ms / total:.0f} % |")
    return "\n".join([*text, ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", default="docs/results", help="folder of the tables")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--preset", help=argparse.SUPPRESS)
    parser.add_argument("--mode", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        child(args.child, args.preset, args.mode, args.repeats)
        return
    peers = list(PEERS)
    if importlib.util.find_spec("torch") is None:
        print("PyTorch is not installed: its lines are not run")
        peers = [peer for peer in peers if not peer.startswith("torch")]
    rows, parts = [], {}
    jobs = [
        (peer, preset, mode)
        for preset in PRESETS
        for mode in ("training step", "inference 256x256")
        for peer in peers
        if not (mode != "training step" and peer == PEERS[1])
        and not (peer == PEERS[2] and jax_platform() != "cpu")
    ]
    begin = time.monotonic()
    for i, job in enumerate([*jobs, *((PEERS[0], p, "profile") for p in PRESETS)]):
        result = measure(*job, args.repeats)
        if job[2] == "profile" and result:
            parts[job[1]] = result
        elif result:
            rows.append(result)
        spent = time.monotonic() - begin
        print(f"{', '.join(job)}: done, {spent:.0f} s spent, {i + 1} of ", end="")
        print(len(jobs) + len(PRESETS), flush=True)
    about = machine()
    out = Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    text = markdown(rows, parts, about)
    (out / "train_step.md").write_text(text, encoding="utf-8")
    record = {"machine": about, "rows": rows, "profile_ms": parts}
    (out / "train_step.json").write_text(json.dumps(record, indent=1), encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
