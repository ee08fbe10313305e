"""The perceptual loss: VGG-16 against VGG-19 in their units, and the time it takes.

    python -m benchmarks.perceptual --vgg19 FILE [--data-root DIR --data-name NAME] \
        [--every 8] --out docs/results

Takes every n-th slice of the embedded template and of a data root, whole, and compares
with HR: its bicubic at x2, x3, x4, a Gaussian blur of 1 pixel and noise of 0.02. The
factor of the stand-in VGG-16 is measured on the bicubic pairs. Writes `perceptual.md`.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from scipy import ndimage

from benchmarks.train_step import machine
from configs import fastmri_x4, quickstart_x4
from daasr_jax import data
from daasr_jax.experiment import parts
from daasr_jax.losses import perceptual
from daasr_jax.models import vgg as vgg_module
from daasr_jax.models.outputs import Outputs
from daasr_jax.models.vgg import FrozenVGG
from daasr_jax.resampling import downsample, upsample
from daasr_jax.weights.vgg import lpips_vgg16, read_vgg19

BICUBIC = tuple(f"bicubic x{scale}" for scale in (2, 3, 4))
SIDE = 252  # a multiple of 2, 3 and 4
SIZES = ((8, 64), (9, 160))


def data_sets(root: str, name: str) -> Iterator[tuple[str, data.PreparedSet]]:
    config: Any = quickstart_x4.get_config()
    yield "template:mni152", data.prepare(parts.data_settings(config))
    if root:
        config = fastmri_x4.get_config()
        config.data.root = root
        yield name, data.prepare(parts.data_settings(config))


def images(prepared: data.PreparedSet, every: int) -> list[np.ndarray]:
    """`(1, 252, 252, 1)`: the middle of every n-th slice of all splits."""
    chosen = []
    for table in prepared.splits.values():
        for i in range(0, len(table), every):
            edge = (table.size - SIDE) // 2
            cut = slice(edge, edge + SIDE)
            chosen.append(table.image(i)[None, cut, cut])
    return chosen


def altered(hr: np.ndarray, rng: np.random.Generator) -> dict[str, jax.Array]:
    pictures: dict[str, Any] = {
        name: upsample(downsample(jnp.asarray(hr), scale), scale)
        for name, scale in zip(BICUBIC, (2, 3, 4), strict=True)
    }
    pictures["blur, 1 pixel"] = ndimage.gaussian_filter(hr, (0, 1, 1, 0))
    pictures["noise, 0.02"] = hr + 0.02 * rng.standard_normal(hr.shape, np.float32)
    return {name: jnp.asarray(x) for name, x in pictures.items()}


def measure(
    networks: dict[str, FrozenVGG], slices: list[np.ndarray]
) -> dict[str, dict[str, np.ndarray]]:
    """`{pair: {"l1" or network: (slices,) losses in the network's unit}}`."""
    features = {k: jax.jit(perceptual.relu3_3(v)) for k, v in networks.items()}
    units = {k: perceptual.unit(v) for k, v in networks.items()}
    rng = np.random.default_rng(0)
    rows: dict[str, dict[str, list[float]]] = {}
    for hr in slices:
        target = {k: f(jnp.asarray(hr)) for k, f in features.items()}
        for pair, picture in altered(hr, rng).items():
            row = rows.setdefault(pair, {k: [] for k in ("l1", *networks)})
            row["l1"].append(float(jnp.mean(jnp.abs(picture - hr))))
            for k, f in features.items():
                mse = jnp.mean((f(picture) - target[k]) ** 2)
                row[k].append(float(mse) / units[k])
    return {p: {k: np.array(v) for k, v in row.items()} for p, row in rows.items()}


def seconds(
    steps: dict[str, Callable[[], Any]], repeats: int
) -> dict[str, list[float]]:
    """Time of each call, the calls taking turns; the first of each is not counted."""
    times: dict[str, list[float]] = {k: [] for k in steps}
    for i in range(repeats + 1):
        for k, step in steps.items():
            begin = time.perf_counter()
            jax.block_until_ready(step())
            if i:
                times[k].append(time.perf_counter() - begin)
    return times


def gradient_step(vgg: FrozenVGG, batch: int, side: int) -> Callable[[], Any]:
    loss = perceptual.make_perceptual(vgg, "rec", scale=4)
    rng = np.random.default_rng(0)
    hr, sr = (
        jnp.asarray(rng.random((batch, side, side, 1), np.float32)) for _ in range(2)
    )
    step = jax.jit(jax.value_and_grad(lambda x, y: loss(Outputs(sr=x, aux={}), y)))
    step(sr, hr)  # traced here, with the pooling that is in place now
    return lambda: step(sr, hr)


def timings(vgg: FrozenVGG, repeats: int) -> list[str]:
    lines = []
    for batch, side in SIZES:
        steps = {"daasr_jax": gradient_step(vgg, batch, side)}
        own = vgg_module.max_pool
        vgg_module.max_pool = lambda x: nn.max_pool(x, (2, 2), strides=(2, 2))
        steps["daasr_jax, XLA pool gradient"] = gradient_step(vgg, batch, side)
        vgg_module.max_pool = own
        for name, times in seconds(steps, repeats).items():
            spread = f"{min(times):.3f}, {max(times):.3f}"
            middle = statistics.median(times)
            lines.append(
                f"| {batch} of {side}x{side} | {name} | {middle:.3f} [{spread}] |"
            )
    return lines


def table(results: dict[str, dict[str, dict[str, np.ndarray]]]) -> list[str]:
    lines = []
    for name, rows in results.items():
        for pair, row in rows.items():
            ratios = row["vgg19"] / row["vgg16"]
            means = {k: v.mean() for k, v in row.items()}
            lines.append(
                f"| {name} | {pair} | {len(ratios)} | {means['l1']:.5f} | "
                f"{means['vgg19']:.5f} | {means['vgg16']:.5f} | "
                f"{means['vgg19'] / means['vgg16']:.3f} | "
                f"{ratios.mean():.3f} ± {ratios.std(ddof=1):.3f} "
                f"[{ratios.min():.3f}, {ratios.max():.3f}] | "
                f"{means['vgg19'] / means['l1']:.2f} |"
            )
    return lines


def factors(results: dict[str, dict[str, dict[str, np.ndarray]]]) -> dict[str, float]:
    """By scale: mean loss of the bicubic pairs with VGG-19 over that with VGG-16.

    Every data set weighs the same.
    """
    return {
        pair.removeprefix("bicubic "): float(
            sum(rows[pair]["vgg19"].mean() for rows in results.values())
            / sum(rows[pair]["vgg16"].mean() for rows in results.values())
        )
        for pair in BICUBIC
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--vgg19", required=True)
    parser.add_argument("--data-root", default="")
    parser.add_argument("--data-name", default="data")
    parser.add_argument("--every", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--out", default="docs/results")
    args = parser.parse_args()
    networks = {"vgg19": read_vgg19(args.vgg19), "vgg16": lpips_vgg16()}
    results = {}
    for name, prepared in data_sets(args.data_root, args.data_name):
        slices = images(prepared, args.every)
        print(f"{name}: {len(slices)} slices", flush=True)
        results[name] = measure(networks, slices)
    about = machine()
    versions = ", ".join(f"{k} {v}" for k, v in about["versions"].items())
    source = Path(args.vgg19).name
    root = f"--data-root DIR --data-name {args.data_name} " if args.data_root else ""
    text = [
        "# The perceptual loss",
        "",
        f"`python -m benchmarks.perceptual --vgg19 {source} {root}--every {args.every} "
        "--out docs/results`: relu3_3 features of whole slices (252x252) against HR, "
        f"every {args.every}th slice. The losses are in the network's unit, without "
        "the factor of the stand-in.",
        "",
        f"{about['processor']}, {about['cores']} cores ({about['device']}); Python "
        f"{about['python']}, {versions}; commit {about['commit'][:12]}"
        f"{'-dirty' if about['commit'].endswith('dirty') else ''}.",
        "",
        "| network | SHA-256 of the file | unit |",
        "|---|---|--:|",
        *(
            f"| {v.source} | {v.sha256} | {perceptual.unit(v):.6g} |"
            for v in networks.values()
        ),
        "",
        "Ratio: VGG-19 over VGG-16, of the means, and over slices as mean ± standard "
        "deviation [lowest, highest].",
        "",
        "| data | against HR | n | L1 | VGG-19 | VGG-16 | ratio | ratio over slices | "
        "VGG-19 / L1 |",
        "|---|---|--:|--:|--:|--:|--:|--:|--:|",
        *table(results),
        "",
        "Factors of the stand-in, the ratios of the means over the bicubic pairs, "
        "every data set weighing the same: "
        + ", ".join(f"{s}: **{v:.3f}**" for s, v in factors(results).items())
        + ".",
        "",
        "## Seconds of the loss and its gradient by the picture",
        "",
        f"Median of {args.repeats} [lowest, highest], the rows taking turns.",
        "",
        "| batch | what | s |",
        "|---|---|--:|",
        *timings(networks["vgg19"], args.repeats),
        "",
    ]
    out = Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    (out / "perceptual.md").write_text("\n".join(text), encoding="utf-8")
    print("\n".join(text))


if __name__ == "__main__":
    main()
