"""References of a bank: for every slice the one that resembles it most."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from daasr_jax.enhancement.arrays import fitted
from daasr_jax.enhancement.inputs import Guides, Target, plane_axes
from daasr_jax.enhancement.references import (
    nearest,
    resampled,
    same_slices,
    signature,
)
from daasr_jax.errors import ConfigError, UserError
from daasr_jax.scans import Scan, in_plane, normalise, read_scan, slice_axis, unfit
from daasr_jax.scans.bank import SUFFIXES, scans_in

log = logging.getLogger("daasr_jax")


def choose_references(
    bank: Path,
    target: Target,
    track: Callable[[list[Path]], Any],
    *,
    names: bool = False,
) -> Guides:
    """For every slice the slice of a bank that resembles it most, both blurred.

    They need not be of the same person: the network searches the whole slice. Slices
    of the same plane are compared, on a field of the same size in mm. Slices of the
    input itself are left out, links that lead out of the bank, results of this program,
    masks and maps of labels.

    Args:
        bank: A folder of scans, files and folders of a DICOM series; or one scan.
        target: The scan.
        track: Shows how far the reading is.
        names: Keep the names of the files.

    Raises:
        ConfigError: If no other scan lies there (E256).
    """
    if not bank.exists():
        raise ConfigError(
            "E256", f"--bank={bank} is not there: give a folder of scans."
        )
    files, links = scans_in(bank)
    files = [f for f in files if not _same_file(f, target.scan.source)]
    if links:
        log.warning(
            "left out: %d links that lead out of %s, the first is %s -> %s",
            len(links),
            bank,
            links[0],
            os.path.realpath(links[0]),
        )
    plane = _plane(target.scan, target.axis)
    own_slices, _ = normalise(in_plane(target.whole, target.axis), "the input")
    found: list[tuple[Path, int]] = []
    signatures, remarks = [], []
    left_out: dict[str, int] = {"damaged": 0, "results": 0, "labels": 0}
    called = {
        f: f.name if names else f"scan {k} of the bank" for k, f in enumerate(files, 1)
    }
    sides, field = _field(target.spacing, target.size)
    factor = target.size[0] // target.lr.shape[1]
    lr_sides = (sides[0] * factor, sides[1] * factor)
    for file in track(files):
        try:
            scan = read_scan(file)
            why = _unfit(scan)
            if why:
                left_out[why] += 1
                continue
            slices, spacing = _bank_slices(scan, file.name, plane)
        except UserError as error:
            log.warning("left out: %s", error.args[0])
            left_out["damaged"] += 1
            continue
        spacing, own = _field(spacing, slices.shape[1:])
        own = field if math.isfinite(min(target.spacing)) else own
        same = same_slices(slices, own_slices)
        if same.any():
            remarks.append(
                f"{called[file]} has {np.count_nonzero(same)} of {len(same)} slices "
                "with the image of the input; they are left out."
            )
        signatures += [signature(x, spacing, own) for x in slices[~same]]
        found += [(file, int(i)) for i in np.flatnonzero(~same)]
    if not found:
        raise ConfigError(
            "E256",
            f"--bank={bank} holds no scan beside the input{_told(left_out)}; give a "
            f"folder of {', '.join(SUFFIXES)} files or DICOM series that can be read, "
            "or --ref none.",
        )
    wanted = np.stack([signature(x, lr_sides, field) for x in target.lr])
    order, scores = nearest(wanted, np.stack(signatures))
    chosen = [found[k] for k in order[:, 0]]
    images = np.zeros((len(target.lr), 1, *target.size), np.float32)
    for file in dict.fromkeys(f for f, _ in chosen):
        slices, spacing = _bank_slices(read_scan(file), file.name, plane)
        known = math.isfinite(sum(spacing) + sum(target.spacing))
        for n, (other, i) in enumerate(chosen):
            if other == file:
                mine = slices[i]
                if known:
                    mine = resampled(mine, spacing, target.spacing)
                images[n, 0] = fitted(mine, target.size)
    labels = [[f"{called[file]}, slice {i + 1}"] for file, i in chosen]
    about = [
        {"name": called[file], "slice": i + 1, "similarity": round(float(score), 4)}
        for (file, i), score in zip(chosen, scores[:, 0], strict=True)
    ]
    if links:
        text = f"{len(links)} links lead out of the bank and are left out."
        remarks.insert(0, text)
    if any(left_out.values()):
        remarks.insert(0, f"Files left out of the bank{_told(left_out)}.")
    return Guides(images, labels, False, about, remarks)


def _plane(scan: Scan, axis: int) -> str:
    """`axial`, `coronal` or `sagittal`."""
    names = ("axial", "coronal", "sagittal")
    return next(name for name in names if slice_axis(scan, name) == axis)


def _unfit(scan: Scan) -> str:
    """Why a scan is no evidence: `results`, `labels`, or empty."""
    if unfit.is_result(scan):
        return "results"
    return "labels" if unfit.label_count(scan) else ""


def _told(left_out: dict[str, int]) -> str:
    """What was left out of a bank, and why, after a colon; or nothing."""
    words = {
        "results": "made by this program, so no evidence",
        "labels": "with a mask or labels",
        "damaged": "that cannot be used",
    }
    told = [f"{left_out[k]} {said}" for k, said in words.items() if left_out[k]]
    return f": {', '.join(told)}" if told else ""


def _bank_slices(
    scan: Scan, name: str, plane: str
) -> tuple[np.ndarray, tuple[float, float]]:
    axis = slice_axis(scan, plane)
    rows, columns = plane_axes(scan, axis)
    slices, _ = normalise(in_plane(scan, axis), name)
    return slices, (scan.spacing[rows], scan.spacing[columns])


def _field(
    spacing: Sequence[float], size: Sequence[int]
) -> tuple[tuple[float, float], float]:
    """Sides of a pixel and of the field of a slice; in slices where mm are unknown."""
    rows, columns = spacing
    if not math.isfinite(rows + columns):
        rows = columns = 1 / max(size)
    return (rows, columns), max(rows * size[0], columns * size[1])


def _same_file(a: Path, b: str) -> bool:
    return a.exists() and Path(b).exists() and a.samefile(b)
