"""Makes a trained network of `benchmarks.gpu.train` one that the package brings.

    python -m benchmarks.gpu.release --run DIR/train_fast_x4 --prepared FILE --name x4
        [--out daasr_jax/released] --commit HASH

Writes `NAME.safetensors` with its hash in `index.json`, and the card `NAME.md`. Its
figures are those of the stored weights, on test slices. `benchmarks.gpu.confidence`
adds the bound of the confidence.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import shlex
from pathlib import Path
from typing import Any

import numpy as np
from flax import traverse_util

from benchmarks.gpu import pack, training
from configs import fastmri_x4
from daasr_jax import data, released
from daasr_jax.evaluation.predict import make_predict
from daasr_jax.experiment.weights import plain

# Pixel sides at HR of the slices that were packed, least and most.
SPACING_MM = (0.86, 0.98)
SHOWN = ("bicubic", "black", "stranger", "neighbour", "noisy", "contrast", "self")
SOURCES = """\
- OpenNeuro ds002748 version 1.0.5, T1-weighted, skull-stripped, CC0, doi
  10.18112/openneuro.ds002748.v1.0.5.
- The longitudinal multiple sclerosis data of the Laboratory of Imaging Technologies,
  University of Ljubljana (FLAIR, T1W, T2W, whole heads), Creative Commons Attribution
  (CC BY; its licence names no version). Please cite: Z. Lesjak et al., "Validation of
  white-matter lesion change detection methods on a novel publicly available MRI image
  database", Neuroinformatics 14 (2016) 403-420."""
MUST_NOT = """\
Not for clinical use. Nothing in an output is evidence: what the LR image does not hold
comes from training or from the reference, and may be absent in the patient. A lesion
may be removed, moved or added. The networks are small, were trained for two hours of a
CPU core or two minutes of a GPU at most, on few people, and saw brains alone: no other
organ, no k-space, no motion, no scanner beyond those of the two sets. LR images were
made by bicubic reduction of magnitude slices; a scan that is blurred otherwise will
come out otherwise. Only planes are enlarged, the distance of slices stays."""


def kwargs_of(options: dict[str, str]) -> dict[str, Any]:
    """Keywords of the network, as a configuration has them."""
    config: Any = fastmri_x4.get_config("fast")
    kwargs = config.model.kwargs.to_dict()
    kwargs |= {k: int(options[k]) for k in ("features", "groups")}
    return plain(kwargs)


def tested(table: data.SliceTable, about: dict[str, Any]) -> dict[str, data.SliceTable]:
    """The test slices of each set, and apart those with another contrast."""
    found = {}
    for name, own in pack.sets_of(table, about).items():
        found[name] = own
        targets = {target for target, _ in own.companions}
        beside = [i for i, v in enumerate(own.volumes) if str(v) in targets]
        if beside:
            found[f"{name}, those with another contrast"] = own.only(beside)
    return found


def evaluated(
    weights: released.Weights, tables: dict[str, data.SliceTable], slices: int
) -> dict[str, dict[str, Any]]:
    scale = weights.about["scale"]
    predict = make_predict(weights.model, scale=scale, border=scale, method="fast")
    args = argparse.Namespace(row="fast", scale=scale, slices=slices)
    programs = training.Programs(None, None, predict, 0.0, 0.0)  # pyright: ignore
    state = _Loaded(weights.variables["params"], weights.variables["batch_stats"])
    return {
        name: training.evaluate(programs, state, table, args, None)  # pyright: ignore
        for name, table in tables.items()
    }


@dataclasses.dataclass
class _Loaded:
    """What `training.variables` reads of a state."""

    gen: Any
    batch_stats: Any


def card(
    name: str,
    result: dict[str, Any],
    reports: dict[str, dict[str, Any]],
    args: argparse.Namespace,
    commands: list[str],
    packed: list[dict[str, Any]],
) -> str:
    options = result["options"]
    sets = "\n".join(f"- {one['dataset']}: {_people(one)}." for one in packed)
    shares = ", ".join(f"{k} {v:g}" for k, v in result["how"]["shares"].items())
    minutes = f"{result['train_seconds'] / 60:.1f} minutes"
    lines = [
        f"# {name}: DAASR `fast`, x{result['scale']}",
        "",
        f"{options['features']} features, {options['groups']} groups, "
        f"{result['parameters']:,} parameters with the pictures of training, which are "
        "not kept. Stored in float16.",
        "",
        "## What it must not be used for",
        "",
        MUST_NOT,
        "",
        "## Data",
        "",
        SOURCES,
        "",
        sets,
        "",
        "Slices were divided by the maximum of their volume and brought to 256x256: "
        f"pixels of {SPACING_MM[0]} to {SPACING_MM[1]} mm.",
        "",
        "## Training",
        "",
        "```bash",
        *commands,
        "```",
        "",
        "DIR1 and on are the roots of the sets, in the order above.",
        "",
        f"{result['steps']:,} steps of {result['how']['batch_size']} windows of "
        f"{result['how']['crop']} LR pixels, {minutes} on one {args.device}; commit "
        f"{args.commit[:12]}. Adam, rate {options['learning_rate']}, a cosine to zero; "
        f"L1 terms of Eq. 14. References: {shares}; who has no other contrast gets the "
        "neighbour.",
        "",
        "## Figures, on people never trained on",
        "",
        "Of the stored weights, middle slices, LR by bicubic reduction; PSNR in dB and "
        "SSIM, mean over slices. One set of weights for all columns. `black` is no "
        "reference; `noisy` is the neighbour with noise of a tenth of the range; "
        "`self` is the target as its own reference, an upper bound, no result.",
        "",
        "```bash",
        command_of(args),
        "```",
    ]
    for dataset, report in reports.items():
        shown = [s for s in SHOWN if s in report["methods"]]
        lines += [
            "",
            f"### {dataset}: {report['n_slices']} slices of {report['n_subjects']} "
            + ("person" if report["n_subjects"] == 1 else "people"),
            "",
            "| person | " + " | ".join(shown) + " |",
            "|---|" + "--:|" * len(shown),
        ]
        means = {s: report["methods"][s] for s in shown}
        rows = {"all": {s: {m: v["mean"] for m, v in means[s].items()} for s in shown}}
        rows |= report["per_subject"]
        for person, values in rows.items():
            cells = [
                f"{values[s]['psnr']:.2f} / {values[s]['ssim']:.4f}" for s in shown
            ]
            lines.append(f"| {person.split(':')[-1]} | " + " | ".join(cells) + " |")
        lines.append("")
        for control in ("stranger", "neighbour", "noisy", "contrast"):
            if control in report["minus_black"]:
                found = report["minus_black"][control]["psnr"]
                text = f"{control} - black: {found['mean']:+.2f} dB"
                if found.get("ci95"):
                    low, high = found["ci95"]
                    text += f", 95 % interval over people {low:+.2f} to {high:+.2f}"
                lines.append(f"- {text}")
    return "\n".join([*lines, ""])


def _people(one: dict[str, Any]) -> str:
    """Who of a set is in which split."""
    people = {k: ", ".join(v) for k, v in one["subjects"].items()}
    unused = f"not used: {people['val']} (validation); " if people.get("val") else ""
    return f"trained on {people['train']}; {unused}tested on {people['test']}"


def command_of(args: argparse.Namespace) -> str:
    """The command that makes weights and figures, with the places of the others."""
    given = {"run": f"OUT/{args.run.name}", "prepared": "set.npz", "name": args.name}
    given |= {"sets": args.sets, "slices": args.slices}
    given |= {"commit": args.commit[:12], "device": args.device}
    return "python -m benchmarks.gpu.release " + " ".join(
        f"--{k} {shlex.quote(str(v))}" for k, v in given.items() if v
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", type=Path, required=True, help="without its ending")
    parser.add_argument("--prepared", type=Path, required=True)
    parser.add_argument("--name", required=True)
    parser.add_argument("--sets", help="names of the sets for people, by commas")
    parser.add_argument("--out", type=Path, default=Path("daasr_jax/released"))
    parser.add_argument(
        "--slices", type=int, default=0, help="of a set, to test; 0: all"
    )
    parser.add_argument("--commit", required=True, help="that trained it")
    parser.add_argument(
        "--device", default="CPU core", help="that trained it, in words"
    )
    args = parser.parse_args()
    result = json.loads(args.run.with_suffix(".json").read_text())
    tables, packed = pack.load(args.prepared)
    if [s["key"] for s in result["sets"]] != [s["key"] for s in packed["sets"]]:
        parser.error(
            f"--prepared={args.prepared} is not what {args.run} was trained on"
        )
    pack.rename(packed, args.sets)
    with np.load(args.run.with_suffix(".npz")) as file:
        flat = {k: file[k] for k in file.files}
    variables = traverse_util.unflatten_dict(flat, sep="/")
    options = result["options"]
    flags = {k: options[k] for k in ("features", "groups", "learning_rate")}
    flags |= {"batch": result["how"]["batch_size"], "crop": result["how"]["crop"]}
    sets = " ".join(
        f"--set {shlex.quote(' '.join([*s['flags'], f'--config.data.root=DIR{i}']))}"
        for i, s in enumerate(packed["sets"], 1)
    )
    commands = [
        f"python -m benchmarks.gpu --pack set.npz {sets}",
        f"python -m benchmarks.gpu.train --row fast --scale {result['scale']} "
        f"--prepared set.npz --out OUT --seconds 0 --steps {result['steps']} "
        + " ".join(f"--{k} {v}" for k, v in flags.items()),
    ]
    about = {
        "scale": result["scale"],
        "model": "daasr",
        "kwargs": kwargs_of(options),
        "degradation": "bicubic",
        "spacing_mm": list(SPACING_MM),
        "training": {
            "card": f"{args.name}.md",
            "commit": args.commit,
            "steps": result["steps"],
            "shares": result["how"]["shares"],
        },
    }
    args.out.mkdir(parents=True, exist_ok=True)
    path = args.out / f"{args.name}.safetensors"
    released.save(path, variables, about)
    reports = evaluated(
        released.load(path), tested(tables["test"], packed), args.slices
    )
    text = card(args.name, result, reports, args, commands, packed["sets"])
    path.with_suffix(".md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
