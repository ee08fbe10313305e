"""Time and memory of `enhance.py` on whole volumes, with the released weights.

    python -m benchmarks.volumes [--only NAME,...] [--out docs/results]

The scans are smooth noise of the sizes that clinics have, the reference is a volume of
the pixels of the result. Every line is the command in a process of its own, as a user
runs it: reading, resampling, compiling and writing are in its seconds. Peak memory is
the resident peak of that process. Writes `volumes.md` and `volumes.json`.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from scipy import ndimage

from benchmarks.reference import row
from benchmarks.train_step import machine, machine_line, save

PIXEL_MM = 0.9  # of the result, as those of training


@dataclasses.dataclass(frozen=True)
class Case:
    """One command: LR pixels along a side, slices, and options."""

    scale: int
    side: int
    slices: int
    reference: bool = True
    options: tuple[str, ...] = ()


CASES = {
    "x4_64": Case(4, 64, 40),
    "x4_64_whole": Case(4, 64, 40, options=("--within", "0")),
    "x4_256": Case(4, 256, 40),
    "x4_256_none": Case(4, 256, 40, reference=False),
    "x4_256_whole": Case(4, 256, 4, options=("--within", "0")),
    "x2_256": Case(2, 256, 40),
    "x2_512": Case(2, 512, 40, options=("--memory", "2")),
}


def write(path: Path, side: int, slices: int, pixel: float, seed: int) -> None:
    """Smooth noise in an ellipse, int16."""
    rng = np.random.default_rng(seed)
    coarse = rng.random((side // 8, side // 8, slices), np.float32)
    fine = ndimage.zoom(coarse, (8, 8, 1), order=1)
    place = np.linspace(-1, 1, side)
    inside = place[:, None] ** 2 + place**2 < 0.8
    voxels = (900 * fine * inside[..., None]).astype(np.int16)
    affine = np.diag([pixel, pixel, 4.0, 1.0])
    half = pixel * (side - 1) / 2
    affine[:2, 3] = -half  # the centres of both volumes are one
    nib.save(nib.Nifti1Image(voxels, affine), path)


def measure(case: Case, folder: Path) -> dict[str, Any]:
    scan, reference = folder / "scan.nii", folder / "reference.nii"
    write(scan, case.side, case.slices, case.scale * PIXEL_MM, seed=0)
    write(reference, case.scale * case.side, case.slices, PIXEL_MM, seed=1)
    command = [sys.executable, "enhance.py", "--input", str(scan), "--scale"]
    command += [str(case.scale), "--out", str(folder / "out.nii"), *case.options]
    command += ["--ref", str(reference)] if case.reference else []
    begin = time.monotonic()
    done = subprocess.run([*command, "--force"], capture_output=True, text=True)
    seconds = time.monotonic() - begin
    about = dataclasses.asdict(case) | {"seconds": seconds}
    if done.returncode:
        return about | {"failed": done.stderr.strip().splitlines()[-1]}
    report = json.loads((folder / "out.json").read_text())
    return about | {
        "enhancing": report["seconds"]["enhancing"],
        "within": report["settings"]["within"],
        "peak_bytes": report["memory"]["peak_bytes"],
    }


def markdown(rows: list[dict[str, Any]], about: dict[str, Any], command: str) -> str:
    text = [
        "# Whole volumes, enhanced",
        "",
        f"`{command}`: `enhance.py` on smooth noise, a process each; "
        "seconds are those of the whole command, and of the network in it.",
        "",
        machine_line(about),
        "",
        row(
            [
                *("input", "result", "reference searched", "options"),
                *("seconds", "network", "s a slice", "peak GB"),
            ]
        ),
        "|---|---|---|---|--:|--:|--:|--:|",
    ]
    for r in rows:
        near = f"{r.get('within')} pixels around" if r.get("within") else "whole"
        made = r["scale"] * r["side"]
        cells = [
            f"{r['side']}x{r['side']}x{r['slices']}",
            f"x{r['scale']}, {made}x{made}x{r['slices']}",
            near if r["reference"] else "no reference",
            f"`{' '.join(r['options'])}`" if r["options"] else "-",
        ]
        if "failed" in r:
            text.append(row([*cells, f"failed: {r['failed']}", "-", "-", "-"]))
            continue
        numbers = r["seconds"], r["enhancing"]
        cells += [f"{x:,.0f}" for x in numbers]
        cells += [f"{r['enhancing'] / r['slices']:.2f}"]
        text.append(row([*cells, f"{r['peak_bytes'] / 1e9:.1f}"]))
    return "\n".join([*text, ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="of " + ", ".join(CASES))
    parser.add_argument("--out", default="docs/results", help="folder of the table")
    args = parser.parse_args()
    names = [n for n in args.only.split(",") if n] or list(CASES)
    if unknown := set(names) - set(CASES):
        parser.error(f"no case is called {', '.join(sorted(unknown))}")
    rows = []
    for i, name in enumerate(names):
        with tempfile.TemporaryDirectory() as folder:
            rows.append(measure(CASES[name], Path(folder)))
        told = rows[-1].get("failed", f"{rows[-1]['seconds']:.0f} s")
        print(f"{name}: {told}; {len(names) - i - 1} left", flush=True)
    about = machine()
    command = "python -m benchmarks.volumes"
    command += f" --only {args.only}" if args.only else ""
    text = markdown(rows, about, command)
    save(Path(args.out), "volumes", text, about, rows)


if __name__ == "__main__":
    main()
