"""One's own scan enhanced: what is asked, the work, and the files that come of it."""

from __future__ import annotations

import contextlib
import logging
import math
import resource
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

import daasr_jax
from daasr_jax import released
from daasr_jax.data.progress import track
from daasr_jax.enhancement import Engine, Slices, footprint, overlays, quality
from daasr_jax.enhancement.bank import choose_references
from daasr_jax.enhancement.inputs import (
    Guides,
    Target,
    read_references,
    read_target,
)
from daasr_jax.errors import ConfigError
from daasr_jax.experiment.enhance_files import (
    SHARED,
    UNTELLING,
    EnhanceRequest,
    by,
    check_files,
    in_mm,
    weights_words,
    write_files,
    written_files,
)
from daasr_jax.experiment.installation import commit_id
from daasr_jax.experiment.weights import open_weights
from daasr_jax.runtime import devices
from daasr_jax.scans import qform_remark, unfit
from daasr_jax.scans.scan import axis_name
from daasr_jax.scans.write_dicom import check_source

log = logging.getLogger("daasr_jax")

MOSTLY = 0.5  # share of the tissue without a match from which a warning is due
WITHIN = 16  # LR pixels around each place in which a registered reference is searched
_FINER = 0.95  # share of the training data's pixel side, likewise


@footprint.told()
def enhance_scan(
    request: EnhanceRequest, say: Callable[[str, str], None]
) -> dict[str, Any]:
    """Enhances a scan and writes the result with what belongs to it.

    Args:
        request: What is asked.
        say: Is told what is done, as a name and words.

    Returns:
        The report, as it is in the JSON file.

    Raises:
        UserError: If anything cannot be read, used or written.
    """
    times: dict[str, float] = {}
    _check(request)
    weights = _weights(request)
    about = weights.about
    scale = about["scale"]
    with _timed(times, "reading"):
        target = read_target(
            request.input,
            request.axis,
            scale,
            simulated=about["degradation"] if request.simulated else "",
        )
        if request.format == "dicom":
            check_source(target.scan, target.grid)
        _say_target(say, request, target)
        count = 0 if request.refs == ("none",) else len(request.refs)
        footprint.require(target.grid.shape, count, simulated=request.simulated)
        guides = _guides(request, target)
    for one in guides.about:
        if "said" in one:
            say("reference", f"{one['name']}: {one['said']}")
    if request.refs == ("auto",):
        say("reference", f"of {len(guides.about)} slices from {request.bank}")
    say("weights", weights_words(about))
    known = (*target.scan.remarks, *target.restore.remarks)  # said when it was read
    logged = [f"{request.label} {text}." for text in known] + [*guides.logged]
    remarks = [*guides.remarks, *_made_here(target), *_too_fine(target, about)]
    off = request.format == "nifti" and qform_remark(target.grid, target.scan)
    remarks += [off] if off else []

    within = _within(request)
    engine = Engine(weights, request.memory, within)
    with _timed(times, "enhancing"):
        made = engine(target.lr, guides.images, _shown("enhancing slices"))
    measured: dict[str, Any] = {}
    if request.simulated:
        assert target.hr is not None
        with _timed(times, "without reference"):
            alone = made
            if guides.images is not None:
                alone = engine(target.lr, None, _shown("without reference"))
        methods = {"bicubic": quality.bicubic(target.lr, scale)}
        methods["without reference"] = alone.sr
        if guides.images is not None:
            methods["with reference"] = made.sr
        measured = quality.scores(methods, target.hr, border=scale)
    fit = quality.data_consistency(made.sr, target.lr, about["degradation"])
    confidence = _confidence(made, target, guides, about)
    remarks += _unused(confidence)

    report = {
        "input": _input(request, target),
        "references": [*guides.about],
        "weights": {k: v for k, v in about.items() if k != "kwargs"},
        "settings": {
            "scale": scale,
            "axis": target.axis,
            "references": request.refs[0]
            if request.refs in (("none",), ("auto",))
            else len(request.refs),
            "within": within if guides.images is not None else None,
            "simulated": request.simulated,
            "format": request.format,
            "dtype": request.dtype,
        },
        "output": {
            "shape": list(target.grid.shape),
            "spacing_mm": [_number(x) for x in _sides(target.grid.affine)],
            "affine": target.grid.affine.tolist(),
        },
        "data_consistency_db": round(fit, 2),
        "confidence": confidence,
        "quality": measured,
        "warnings": logged + remarks,
        "memory": {
            "allowed_bytes": engine.memory,
            "program_bytes": made.bytes,
            "peak_bytes": 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
        },
        "made_by": {
            "commit": commit_id(),
            "device": devices.description(),
            "versions": {"daasr_jax": daasr_jax.__version__, "jax": jax.__version__},
        },
    }
    for text in remarks:
        say("warning", text)
    if measured:
        say("quality", "")
        for name, values in measured.items():
            say("", f"{name:<18}{values['psnr']:.2f} dB  SSIM {values['ssim']:.4f}")
    if confidence is not None and not confidence["tells_of_reference"]:
        say("confidence", UNTELLING)
    say("LR fit", f"{fit:.1f} dB: the output made small again, against the input")
    with _timed(times, "writing"):
        write_files(request, target, guides, made, report, times)
    for name, path in written_files(request, made, guides).items():
        say(name, str(path))
    say("share", SHARED)
    say("time", ", ".join(f"{k} {v:.1f} s" for k, v in times.items()))
    return report


def _check(request: EnhanceRequest) -> None:
    """Refuses what cannot be, before anything is read."""
    special = {"none", "auto"} & set(request.refs)
    if special and len(request.refs) > 1:
        raise ConfigError(
            "E257", f"--ref {special.pop()} stands alone, beside no other --ref."
        )
    if ("auto" in request.refs) != (request.bank is not None):
        raise ConfigError(
            "E257", "--ref auto and --bank DIR go together: give both or neither."
        )
    refs = [Path(r).resolve() for r in request.refs if r not in ("none", "auto")]
    twice = [r for k, r in enumerate(refs) if r in refs[:k]]
    if twice:
        raise ConfigError(
            "E257", f"--ref {twice[0]} is given twice: leave one of them out."
        )
    if request.format == "dicom" and request.dtype != "float32":
        raise ConfigError(
            "E257",
            f"--dtype {request.dtype} is for NIfTI, and --format dicom always has 16 "
            "bits and a slope: leave one of them out.",
        )
    check_files(request)


def _weights(request: EnhanceRequest) -> released.Weights:
    """The weights that are asked for.

    Raises:
        ConfigError: If they are of another scale (E258).
    """
    name = request.checkpoint or f"x{request.scale or 4}"
    weights = open_weights(name, names=request.names)
    scale = weights.about["scale"]
    if request.scale and request.scale != scale:
        raise ConfigError(
            "E258",
            f"--checkpoint={name} enlarges x{scale}, and --scale={request.scale} is "
            "asked: give weights of that scale, or leave --scale out.",
        )
    return weights


def _within(request: EnhanceRequest) -> int:
    """How far from each place the references are searched; 0 for all of them.

    Those of the same person lie where the slice does.
    """
    if request.within is not None:
        return request.within
    return 0 if request.refs in (("none",), ("auto",)) else WITHIN


def _guides(request: EnhanceRequest, target: Target) -> Guides:
    if request.refs == ("none",):
        return Guides()
    if request.bank is not None:
        return choose_references(
            request.bank,
            target,
            lambda files: track(files, "reading the bank", len(files)),
            names=request.names,
        )
    paths = [Path(r) for r in request.refs]
    return read_references(paths, target, names=request.names)


def _say_target(
    say: Callable[[str, str], None], request: EnhanceRequest, target: Target
) -> None:
    scan = target.scan
    say(
        "input",
        f"{by(target.whole.voxels.shape)} {scan.voxels.dtype}, voxels of "
        f"{in_mm(scan.spacing)}",
    )
    slices, height, width = target.lr.shape
    plane = axis_name(scan.affine, target.axis)
    apart = scan.spacing[target.axis]
    known = f" of {apart:.3g} mm" if math.isfinite(apart) else ""
    say(
        "slices",
        f"{slices} {plane if scan.known_place else f'across axis {target.axis}'}, "
        f"enhanced in their plane: {height}x{width} to {by(target.size)} pixels of "
        f"{in_mm(target.spacing)}; their distance{known} stays",
    )
    if target.hr is not None:
        whole, cut = target.whole.voxels.shape, ""
        if whole != scan.voxels.shape:
            cut = f"cut from {by(whole)} to {by(scan.voxels.shape)} voxels and "
        say("simulation", f"the input was {cut}made small first, to {height}x{width}")


def _made_here(target: Target) -> list[str]:
    if not unfit.is_result(target.scan):
        return []
    return [
        "The input was made by this program: detail that was estimated is taken for "
        "measured, and estimated upon. Give the scan that it was made from."
    ]


def _too_fine(target: Target, about: dict[str, Any]) -> list[str]:
    trained, side = about["spacing_mm"], min(target.spacing)
    if not trained or not side < _FINER * trained[0]:
        return []
    advice = "" if target.hr is not None else " A smaller --scale may serve better."
    return [
        f"The output's pixels of {side:.3g} mm are finer than any that the network has "
        f"seen ({trained[0]:.3g} to {trained[1]:.3g} mm): fine detail may be invented "
        f"or noise amplified.{advice}"
    ]


def _unused(confidence: dict[str, Any] | None) -> list[str]:
    if confidence is None or confidence["low_share_of_tissue"] <= MOSTLY:
        return []
    low, share = confidence["low_below"], confidence["low_share_of_tissue"]
    return [
        f"The confidence is below {low:g} over {100 * share:.0f} % of the tissue: the "
        "reference was hardly used. It may lie elsewhere, or be too unlike the input."
    ]


def _confidence(
    made: Slices, target: Target, guides: Guides, about: dict[str, Any]
) -> dict[str, Any] | None:
    if made.confidence is None or guides.images is None:
        return None
    low = about["low_confidence"]
    inside = overlays.in_tissue(made.confidence, target.lr)
    return {
        "tells_of_reference": bool(low),
        "mean_in_tissue": float(inside.mean()) if inside.size else None,
        "low_below": low,
        "low_share_of_tissue": overlays.untrusted(made.confidence, target.lr, low=low),
    }


def _input(request: EnhanceRequest, target: Target) -> dict[str, Any]:
    scan = target.scan
    return {
        "name": request.label,
        "kind": scan.kind,
        "shape": list(scan.voxels.shape),
        "dtype": str(scan.voxels.dtype),
        "spacing_mm": [_number(x) for x in scan.spacing],
        "plane": axis_name(scan.affine, target.axis),
        "slices": len(target.lr),
        "known_place": scan.known_place,
        "range": [target.restore.low, target.restore.top],
        "voxels_cut_to_the_range": target.restore.hot,
    }


@contextlib.contextmanager
def _timed(times: dict[str, float], name: str) -> Iterator[None]:
    start = time.monotonic()
    yield
    times[name] = time.monotonic() - start


def _shown(words: str):
    return lambda places, total: track(places, words, total)


def _sides(affine: np.ndarray) -> list[float]:
    return np.linalg.norm(affine[:3, :3], axis=0).tolist()


def _number(x: float) -> float | None:
    return float(x) if math.isfinite(x) else None
