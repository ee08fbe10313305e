"""The confidence below which a reference was of no use, for released weights.

    python -m benchmarks.gpu.confidence --name x4 --prepared FILE [--slices 24]
        [--folder daasr_jax/released]

Restores test slices with a stranger's slice, a neighbour and, where there is one,
another contrast. The bound is the median confidence over the tissue that tells
strangers best from the kind that is the hardest to tell from them. It is written into
`NAME.safetensors` as `low_confidence`, and with the figures into the card.
"""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path
from typing import NamedTuple

import numpy as np

from benchmarks.gpu import pack
from daasr_jax import data, released
from daasr_jax.evaluation.controls import draw_controls, evenly_spaced, run_controls
from daasr_jax.evaluation.controls_scores import foreground
from daasr_jax.evaluation.predict import make_predict

HEADING = "## Confidence"
SHOWN = ("stranger", "neighbour", "contrast")
ENOUGH = 0.8  # of the slices on the right side of a bound, or there is none


class Seen(NamedTuple):
    """Median confidence over the tissue of slices, and the gain over no reference."""

    median: np.ndarray
    gain_db: np.ndarray


def seen(
    weights: released.Weights, table: data.SliceTable, slices: int
) -> dict[str, Seen]:
    """Control -> what was seen on the test slices of a set.

    Args:
        weights: Of a network with a search.
        table: The set.
        slices: How many, evenly spaced.
    """
    scale = weights.about["scale"]
    predict = make_predict(weights.model, scale=scale, border=scale, method="sr")
    pairing = data.draw_pairing(table, track="aligned", aligned="neighbour")
    controls, _ = draw_controls(table, pairing, scale=scale)
    kept = {k: v for k, v in controls.items() if k in (*SHOWN, "pair", "black")}
    found: dict[str, list[tuple[float, float]]] = {}
    for rows in run_controls(
        predict,
        weights.variables,
        table,
        pairing,
        kept,
        scale=scale,
        positions=evenly_spaced(len(table.keys), slices),
    ):
        without = rows["black"].scores["sr"]["psnr"]
        for name in set(SHOWN) & set(rows):
            c = rows[name].images["confidence"]
            tissue = c[foreground(rows[name].images["lr"], c.shape)]
            if tissue.size:
                gain = rows[name].scores["sr"]["psnr"] - without
                found.setdefault(name, []).append((float(np.median(tissue)), gain))
    return {name: Seen(*np.array(found[name]).T) for name in SHOWN if name in found}


def bound(low: np.ndarray, *kinds: np.ndarray) -> float:
    """The value that most of `low` are below and most of each kind are not, (n,) each.

    Both sides weigh the same, and of the kinds the one that has the most below it
    counts. Among equal ones the middle. 0 where no value puts `ENOUGH` of them on the
    right side, on average of both: C does not tell that kind from `low`.
    """
    edges = np.unique(np.concatenate([low, *kinds]))
    middles = np.concatenate([edges[:1], (edges[1:] + edges[:-1]) / 2])
    right = [
        np.mean(low < x) + min(np.mean(high >= x) for high in kinds) for x in middles
    ]
    if max(right) < 2 * ENOUGH:
        return 0.0
    best = middles[np.isclose(right, max(right))]
    return float(best[len(best) // 2])


def section(sets: dict[str, dict[str, Seen]], low: float, slices: int) -> str:
    """What the card says of it."""
    told = (
        "the median confidence over the tissue that tells a stranger's slice best from "
        f"a neighbour and another contrast, on {slices} test slices of each set"
        if low
        else f"on {slices} test slices of each set no median confidence over the "
        "tissue tells a stranger's slice from both a neighbour and another contrast, "
        "so `enhance.py` never warns"
    )
    lines = [
        HEADING,
        "",
        f"`low_confidence` is {low:.2f}: {told}. C below is that median of a "
        "slice; `below` counts the slices for which `enhance.py` would warn.",
        "",
        "| set | reference | C: least, middle, most | below | gain over none, dB |",
        "|---|---|--:|--:|--:|",
    ]
    for name, controls in sets.items():
        for control, (median, gain) in controls.items():
            least, middle, most = np.percentile(median, [0, 50, 100])
            lines.append(
                f"| {name} | {control} | {least:.2f}, {middle:.2f}, {most:.2f} | "
                f"{np.sum(median < low)} of {len(median)} | {np.mean(gain):+.2f} |"
            )
    return "\n".join([*lines, ""])


def with_section(card: str, text: str) -> str:
    """A card with the section at its end, in place of an earlier one."""
    return card.partition(HEADING)[0].rstrip() + "\n\n" + text


def command_of(args: argparse.Namespace) -> str:
    """The command that measures it, with the places of the others."""
    given = {"name": args.name, "prepared": "set.npz", "sets": args.sets}
    given["slices"] = args.slices
    return "python -m benchmarks.gpu.confidence " + " ".join(
        f"--{k} {shlex.quote(str(v))}" for k, v in given.items() if v
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--name", required=True)
    parser.add_argument("--prepared", type=Path, required=True)
    parser.add_argument("--sets", help="names of the sets for people, by commas")
    parser.add_argument("--slices", type=int, default=24, help="of each set")
    parser.add_argument("--folder", type=Path, default=Path("daasr_jax/released"))
    args = parser.parse_args()
    path = args.folder / f"{args.name}.safetensors"
    weights = released.load(path)
    tables, about = pack.load(args.prepared)
    pack.rename(about, args.sets)
    sets = {}
    for name, table in pack.sets_of(tables["test"], about).items():
        targets = {target for target, _ in table.companions}
        beside = [i for i, v in enumerate(table.volumes) if str(v) in targets]
        sets[name] = seen(weights, table, args.slices)
        if beside:  # those alone can have another contrast
            found = seen(weights, table.only(beside), args.slices)
            sets[name] |= {k: v for k, v in found.items() if k == "contrast"}
    of = {
        name: np.concatenate([s[name].median for s in sets.values() if name in s])
        for name in SHOWN
        if any(name in s for s in sets.values())
    }
    strangers = of.pop("stranger")
    low = round(bound(strangers, *of.values()), 2)
    kept = {k: v for k, v in weights.about.items() if k not in ("source", "form")}
    released.save(path, weights.variables, kept | {"low_confidence": low})
    text = section(sets, low, args.slices) + f"\n```bash\n{command_of(args)}\n```\n"
    card = path.with_suffix(".md")
    written = card.read_text(encoding="utf-8") if card.is_file() else ""
    card.write_text(with_section(written, text), encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
