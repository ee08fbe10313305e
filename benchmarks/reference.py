"""What each part of the reference's way to the output is worth, at equal steps.

    python -m benchmarks.reference --name NAME --data DIR --work DIR
        [--config configs/brain_x4_small.py] [--steps 3000] [--seeds 1] [--jobs 1]
        [--only ROW,...] [--out docs/results] [--note FILE] [-- --config.KEY=VALUE ...]

Every row is `train.py` on mixed references and `eval.py --controls`: one set of
weights, the same slices with other references. Rows are those of
`ablation_x4_small.ROWS` on the network of `--config`, and EDSR, which takes no
reference. Runs that are finished are not repeated; one that was stopped resumes. What
follows `--` goes to every `train.py`.

With `--out` writes `reference_NAME.md` and `.json`.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import dataclasses
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from flax import traverse_util

from benchmarks.train_step import machine
from configs import ablation_x4_small, edsr_x4
from daasr_jax.evaluation import controls
from daasr_jax.experiment.configuration import load

CONTROLS = tuple(name for name in controls.CONTROLS if name != "pair")
ROWS = {
    "edsr": "EDSR: no reference",
    "without_sat": "DAASR without SAT: no reference",
    "shared_query": "search and gate as one (Eq. 6-11, shared extractor)",
    "literal_fusion": "search apart, C on all of Eq. 11, pixels",
    "literal_gate": "search apart, `T * C`, pixels",
    "without_detail": "search apart, learned gate, no pixels",
    "full": "`fast`: search apart, learned gate, pixels",
    "two_phases": "`fast`, patches between cells too",
    "two_references": "`fast`, two references of each slice",
}


@dataclasses.dataclass(frozen=True)
class Cell:
    """One training run."""

    name: str
    seed: int

    def folder(self, work: Path) -> Path:
        return work / f"{self.name}_{self.seed}"


def flat(config: Any) -> dict[str, Any]:
    return traverse_util.flatten_dict(config.to_dict(), sep=".")


def row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def call(arguments: list[str], log: Path) -> None:
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a") as file:
        done = subprocess.run(arguments, stdout=file, stderr=subprocess.STDOUT)
    if done.returncode:
        last = log.read_text().strip().splitlines()[-1]
        raise SystemExit(f"{log}: exit code {done.returncode}: {last}")


def flags(cell: Cell, base: str) -> list[str]:
    """The configuration of a row and what it changes, as flags of `train.py`."""
    config = flat(load(base))
    if cell.name == "edsr":
        own = flat(edsr_x4.get_config("small"))
        same = ("data.", "reference.")
        changes = {
            k: v for k, v in config.items() if k.startswith(same) and own[k] != v
        }
        path = "configs/edsr_x4.py:small"
    else:
        path, changes = base, dict(ablation_x4_small.ROWS.get(cell.name, {}))
        if cell.name == "two_references":
            changes["reference.count"] = 2
    made = [f"--config.{key}={value}" for key, value in changes.items()]
    return [f"--config={path}", *made, f"--config.seed={cell.seed}"]


def run(cell: Cell, args: argparse.Namespace) -> dict[str, Any]:
    folder = cell.folder(args.work)
    result = folder / "eval_test_controls.json"
    if not result.exists():
        log = folder / "log.txt"
        more = [
            f"--config.data.root={args.data}",
            "--config.reference.track=mixed",
            f"--config.train.steps={args.steps}",
            *args.more,
        ]
        train = [*flags(cell, args.config), f"--workdir={folder}", *more]
        call([sys.executable, "train.py", *train], log)
        evaluate = ["eval.py", f"--workdir={folder}", "--controls", "--names"]
        call([sys.executable, *evaluate], log)
    return json.loads(result.read_text())


def mean(reports: list[dict[str, Any]], control: str, metric: str = "psnr") -> float:
    found = [r["methods"][control][metric]["mean"] for r in reports]
    return float(np.mean([np.nan if x is None else x for x in found]))


def cells_of(name: str, reports: list[dict[str, Any]]) -> list[str]:
    first = reports[0]
    text = [ROWS[name], str(len(reports))]
    for control in CONTROLS:
        if control not in first["methods"]:
            text.append("-")
        elif not first["uses_reference"] and control != "black":
            text.append("not used")
        else:
            text.append(f"{mean(reports, control):.2f}")
    gain = mean(reports, "self") - mean(reports, "black")
    shares = (first["identity"] or {}).get("identity", {})
    text.append(f"{gain:+.2f}" if first["uses_reference"] else "-")
    text.append(
        ", ".join(
            f"{100 * s['mean']:.0f}" for s in shares.values() if s["mean"] is not None
        )
        or "-"
    )
    return [*text, f"{first['parameters']:,}"]


def differences(reports: list[dict[str, Any]], control: str) -> str:
    """Gain over black: each subject's mean over seeds, and one seed's interval."""
    first = reports[0]
    values = []
    for subject in first["per_subject"]:
        each = [r["per_subject"][subject] for r in reports]
        gaps = [
            np.nan
            if None in (e[control]["psnr"], e["black"]["psnr"])
            else e[control]["psnr"] - e["black"]["psnr"]
            for e in each
        ]
        values.append(f"{np.mean(gaps):+.2f}")
    interval = first["minus_black"][control]["psnr"]["ci95"]
    text = ", ".join(values)
    return f"{text}; [{interval[0]:+.2f}, {interval[1]:+.2f}]" if interval else text


def table(found: dict[str, list[dict[str, Any]]], args: argparse.Namespace) -> str:
    first = next(iter(found.values()))[0]
    about = machine()
    protocol = first["protocol"]
    more = " ".join([" --", *args.more]) if args.more else ""
    lines = [
        f"# What the reference is worth: {args.name}",
        "",
        f"`python -m benchmarks.reference --name {args.name} --data DIR --work DIR "
        f"--config {args.config} --steps {args.steps} --seeds {args.seeds} "
        f"--only {','.join(found)}{more}`: {first['dataset']}, split "
        f"`{first['split']}`, {first['n_slices']} slices of {first['n_subjects']} "
        f"subjects, x{first['scale']}, LR by {protocol['degradation']}. PSNR in dB, "
        "mean over slices and seeds. Every row was trained on mixed references for the "
        "same steps, and has one set of weights for all columns.",
        "",
        f"{about['processor']}, {about['cores']} cores ({about['device']}); Python "
        f"{about['python']}, jax {about['versions']['jax']}; commit "
        f"{first['commit'][:12]}. bicubic: {mean([first], 'bicubic'):.2f}.",
        "",
        row(
            [
                *("network", "seeds", *CONTROLS, "self - black"),
                *("own place, %", "parameters"),
            ]
        ),
        "|---|--:|" + "--:|" * (len(CONTROLS) + 3),
        *(row(cells_of(name, reports)) for name, reports in found.items()),
        "",
        "`self` is the target as its own reference: an upper bound, no result. `own "
        "place` is the share of foreground queries that find themselves with it, for "
        "each group.",
        "",
        "## Against no reference, by subject",
        "",
        "PSNR minus that of the same weights with a black reference, mean of each "
        "subject, with the 95 % interval over subjects of the first seed where there "
        "are six.",
        "",
        row(["network", "stranger", "neighbour", "contrast"]),
        "|---|---|---|---|",
    ]
    for name, reports in found.items():
        if reports[0]["uses_reference"]:
            shown = [
                differences(reports, c) if c in reports[0]["methods"] else "-"
                for c in ("stranger", "neighbour", "contrast")
            ]
            lines.append(row([ROWS[name], *shown]))
    return "\n".join([*lines, ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--name", required=True, help="of the data, in the table")
    parser.add_argument("--data", required=True, help="data root")
    parser.add_argument("--work", required=True, type=Path, help="folder of the runs")
    parser.add_argument("--config", default="configs/brain_x4_small.py")
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=1, help="runs at once")
    parser.add_argument("--only", default="", help="rows, separated by commas")
    parser.add_argument("--out", type=Path, help="folder of the table")
    parser.add_argument("--note", type=Path, help="Markdown file that ends the table")
    parser.add_argument("more", nargs="*", help="flags of every train.py")
    args = parser.parse_args()
    names = [n for n in args.only.split(",") if n] or list(ROWS)
    if unknown := set(names) - set(ROWS):
        parser.error(f"no row is called {', '.join(sorted(unknown))}")
    cells = [Cell(name, seed) for seed in range(args.seeds) for name in names]
    begin, done = time.monotonic(), 0
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    with concurrent.futures.ThreadPoolExecutor(args.jobs) as pool:
        for cell, report in zip(
            cells, pool.map(lambda c: run(c, args), cells), strict=True
        ):
            found[cell.name].append(report)
            done += 1
            spent = time.monotonic() - begin
            print(
                f"{spent:6.0f} s  {cell.name}, seed {cell.seed}: black "
                f"{mean([report], 'black'):.2f} dB; {len(cells) - done} left, about "
                f"{spent / done * (len(cells) - done) / 60:.0f} min",
                flush=True,
            )
    text = table(found, args)
    if args.note:
        text += "\n" + args.note.read_text(encoding="utf-8")
    print(text)
    if args.out:
        args.out.mkdir(parents=True, exist_ok=True)
        stem = args.out / f"reference_{args.name}"
        stem.with_suffix(".md").write_text(text, encoding="utf-8")
        record = {
            "machine": machine(),
            "rows": {
                name: [
                    {k: r[k] for k in ("commit", "config_sha256", "pairing_sha256")}
                    | {"methods": r["methods"], "minus_black": r["minus_black"]}
                    for r in reports
                ]
                for name, reports in found.items()
            },
        }
        stem.with_suffix(".json").write_text(
            json.dumps(record, indent=1), encoding="utf-8"
        )


if __name__ == "__main__":
    main()
