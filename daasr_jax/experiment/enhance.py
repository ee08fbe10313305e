"""One's own scan enhanced: what is asked, the work, and the files that come of it."""

from __future__ import annotations

import contextlib
import dataclasses
import json
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
from daasr_jax import released, scans
from daasr_jax.data.progress import track
from daasr_jax.enhancement import Engine, Slices, overlays, quality
from daasr_jax.enhancement.inputs import (
    Guides,
    Target,
    choose_references,
    read_references,
    read_target,
)
from daasr_jax.enhancement.page import Views, make_page
from daasr_jax.errors import ConfigError
from daasr_jax.experiment.installation import commit_id
from daasr_jax.experiment.weights import open_weights
from daasr_jax.files import write_atomically
from daasr_jax.runtime import devices
from daasr_jax.scans.scan import axis_name
from daasr_jax.scans.write_dicom import check_source

log = logging.getLogger("daasr_jax")

MOSTLY = 0.5  # share of the tissue without a match from which a warning is due
_FINER = 0.95  # share of the training data's pixel side, likewise
_NIFTI = (".nii.gz", ".nii")


@dataclasses.dataclass(frozen=True)
class Request:
    """What is asked of an enhancement.

    Attributes:
        input: The scan.
        out: The result: a NIfTI file, or the folder of a DICOM series.
        refs: References: files; `("none",)`; or `("auto",)`, from the bank.
        scale: s; 0 for that of the weights.
        checkpoint: A released name, a file or a run; empty for `x` and the scale.
        axis: Across which the slices lie, see `scans.slice_axis`.
        bank: Folder of scans from which `auto` chooses.
        format: `nifti` or `dicom`.
        memory: Bytes that may be taken; None for a half of what is free.
        simulated: Make the input small first, and measure what the result is worth.
        page: Write the HTML page too.
        force: Replace results.
    """

    input: Path
    out: Path
    refs: tuple[str, ...] = ("none",)
    scale: int = 0
    checkpoint: str = ""
    axis: str = "auto"
    bank: Path | None = None
    format: str = "nifti"
    memory: int | None = None
    simulated: bool = False
    page: bool = True
    force: bool = False

    @property
    def files(self) -> dict[str, Path]:
        """What is written, by what it is."""
        name = self.out.name
        for ending in _NIFTI:
            name = name.removesuffix(ending)

        def beside(ending: str) -> Path:
            return self.out.with_name(name + ending)

        found = {"output": self.out, "confidence": beside("_confidence.nii.gz")}
        found |= {"match": beside("_match.nii.gz"), "report": beside(".json")}
        return found | ({"page": beside(".html")} if self.page else {})


def enhance_scan(request: Request, say: Callable[[str, str], None]) -> dict[str, Any]:
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
            check_source(target.scan)
        _say_target(say, request, target)
        guides = _guides(request, target)
    for one in guides.about:
        if "said" in one:
            say("reference", f"{Path(one['file']).name}: {one['said']}")
    if request.refs == ("auto",):
        say("reference", f"of {len(guides.about)} slices from {request.bank}")
    say("weights", _weights_words(about))
    known = (*target.scan.remarks, *target.restore.remarks)  # said when it was read
    logged = [f"{request.input.name} {text}." for text in known] + [*guides.logged]
    remarks = [*guides.remarks, *_too_fine(target, about)]

    engine = Engine(weights, request.memory)
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
    remarks += _unused(made, target, guides, about)

    report = {
        "input": _input(request, target),
        "references": [*guides.about],
        "weights": {k: v for k, v in about.items() if k != "kwargs"},
        "settings": {
            "scale": scale,
            "axis": target.axis,
            "references": list(request.refs),
            "simulated": request.simulated,
            "format": request.format,
        },
        "output": {
            "shape": list(target.grid.shape),
            "spacing_mm": [_number(x) for x in _sides(target.grid.affine)],
            "affine": target.grid.affine.tolist(),
        },
        "data_consistency_db": round(fit, 2),
        "confidence": _confidence(made, target, guides, about),
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
    say("LR fit", f"{fit:.1f} dB: the output made small again, against the input")
    with _timed(times, "writing"):
        _write(request, target, guides, made, report, times)
    for name, path in _written(request, made, guides).items():
        say(name, str(path))
    say("time", ", ".join(f"{k} {v:.1f} s" for k, v in times.items()))
    return report


def _check(request: Request) -> None:
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
    used = [request.input, *(r for r in request.refs if r not in ("none", "auto"))]
    for name, path in request.files.items():
        form = request.format if name == "output" else ""
        scans.check_output(path, used, request.force, form)


def _weights(request: Request) -> released.Weights:
    """The weights that are asked for.

    Raises:
        ConfigError: If they are of another scale (E258).
    """
    name = request.checkpoint or f"x{request.scale or 4}"
    weights = open_weights(name)
    scale = weights.about["scale"]
    if request.scale and request.scale != scale:
        raise ConfigError(
            "E258",
            f"--checkpoint={name} enlarges x{scale}, and --scale={request.scale} is "
            "asked: give weights of that scale, or leave --scale out.",
        )
    return weights


def _guides(request: Request, target: Target) -> Guides:
    if request.refs == ("none",):
        return Guides()
    if request.bank is not None:
        return choose_references(
            request.bank,
            target,
            lambda files: track(files, "reading the bank", len(files)),
        )
    return read_references([Path(r) for r in request.refs], target)


def _say_target(
    say: Callable[[str, str], None], request: Request, target: Target
) -> None:
    scan = target.scan
    say(
        "input",
        f"{request.input.name}: {_by(scan.voxels.shape)} {scan.voxels.dtype}, voxels "
        f"of {_mm(scan.spacing)}",
    )
    slices, height, width = target.lr.shape
    plane = axis_name(scan.affine, target.axis)
    say(
        "slices",
        f"{slices} {plane}, enhanced in their plane: {height}x{width} to "
        f"{_by(target.size)} pixels of {_mm(target.spacing)}; their distance of "
        f"{scan.spacing[target.axis]:.3g} mm stays",
    )
    if target.hr is not None:
        say("simulation", f"the input was made small first, to {height}x{width}")


def _too_fine(target: Target, about: dict[str, Any]) -> list[str]:
    trained, side = about["spacing_mm"], min(target.spacing)
    if not trained or not side < _FINER * trained[0]:
        return []
    return [
        f"The output's pixels of {side:.3g} mm are finer than any that the network has "
        f"seen ({trained[0]:.3g} to {trained[1]:.3g} mm): fine detail may be invented "
        "or noise amplified. A smaller --scale may serve better."
    ]


def _unused(
    made: Slices, target: Target, guides: Guides, about: dict[str, Any]
) -> list[str]:
    if made.confidence is None or guides.images is None:
        return []
    low = about["low_confidence"]
    share = overlays.untrusted(made.confidence, target.lr, low=low)
    if share <= MOSTLY:
        return []
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
    cells = overlays.spread(target.lr, made.confidence.shape[1:]) > 0.05
    inside = made.confidence[cells]
    return {
        "mean_in_tissue": float(inside.mean()) if inside.size else None,
        "low_below": low,
        "low_share_of_tissue": overlays.untrusted(made.confidence, target.lr, low=low),
    }


def _input(request: Request, target: Target) -> dict[str, Any]:
    scan = target.scan
    return {
        "file": str(request.input),
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


def _written(request: Request, made: Slices, guides: Guides) -> dict[str, Path]:
    """The files that a result has: no maps where nothing was matched."""
    matched = made.confidence is not None and guides.images is not None
    maps = () if matched else ("confidence", "match")
    return {k: v for k, v in request.files.items() if k not in maps}


def _write(
    request: Request,
    target: Target,
    guides: Guides,
    made: Slices,
    report: dict[str, Any],
    times: dict[str, float],
) -> None:
    """Writes all files, or none: what stops the writing takes back what was written."""
    scan, grid = target.scan, target.grid
    files = _written(request, made, guides)
    used = [r for r in request.refs if r not in ("none", "auto")]
    note = f"daasr_jax {daasr_jax.__version__} x{report['settings']['scale']}"

    def volume(slices: np.ndarray) -> np.ndarray:
        return scans.back(slices, scan, target.axis)

    def nifti(path: Path, slices: np.ndarray, words: str, dtype: Any) -> None:
        scans.write_nifti(
            path,
            volume(slices),
            grid,
            like=scan,
            description=f"{note} {words}",
            dtype=dtype,
            force=request.force,
            inputs=used,
        )

    fresh = [f for k, f in files.items() if k != "output" and not f.exists()]
    try:  # the output itself comes last
        if "match" in files:
            assert made.confidence is not None
            c = overlays.spread(made.confidence, target.size)
            nifti(files["confidence"], c, "confidence C", np.float32)
            p = _match(target, guides, made)
            nifti(files["match"], p, "match P", p.dtype)
        if "page" in files:
            write_atomically(
                files["page"], _page(request, target, guides, made, report)
            )
        report["seconds"] = {k: round(v, 2) for k, v in times.items()}
        report["files"] = {k: str(v) for k, v in files.items()}
        write_atomically(files["report"], json.dumps(report, indent=1))
        output = target.restore(made.sr)
        if request.format == "dicom":
            scans.write_dicom(
                request.out,
                volume(output),
                grid,
                like=scan,
                description=note,
                force=request.force,
                inputs=used,
            )
        else:
            nifti(request.out, output, "", np.float32)
    except BaseException:
        for path in fresh:
            path.unlink(missing_ok=True)
        raise


def _match(target: Target, guides: Guides, made: Slices) -> np.ndarray:
    """P as an overlay: of every voxel of the result the one that it was matched with.

    A reference lies on the grid of the result. The value is the position of its voxel
    there, x fastest, plus the number of voxels for each reference before it.
    """
    assert made.index is not None
    assert guides.images is not None
    size = target.size
    keys = tuple(n * made.index.shape[i + 1] // size[i] for i, n in
                 enumerate(guides.images.shape[2:]))  # fmt: skip
    shape = target.grid.shape
    steps = np.indices(shape, sparse=True)  # of which only views are made
    along = [
        scans.in_plane(target.scan, target.axis, np.broadcast_to(step, shape))
        for step in steps
    ]
    strides = (1, shape[0], shape[0] * shape[1])
    most = math.prod(shape) * guides.images.shape[1]
    out = np.empty((len(made.index), *size), np.int64 if most >= 2**31 else np.int32)
    for i, index in enumerate(made.index):
        which, y, x = (v[0] for v in overlays.places(index[None], keys, size))
        out[i] = which.astype(np.int64) * math.prod(shape) + sum(
            n * view[i][y, x] for n, view in zip(strides, along, strict=True)
        )
    return out


def _page(
    request: Request,
    target: Target,
    guides: Guides,
    made: Slices,
    report: dict[str, Any],
) -> str:
    cells = made.confidence is not None and made.confidence.shape == target.lr.shape
    matched = guides.images is not None and cells
    known = math.isfinite(sum(target.spacing))
    facts = [
        ("input", f"{request.input.name}, {_by(target.scan.voxels.shape)} voxels"),
        ("output", f"{request.out.name}, {_by(target.grid.shape)} voxels"),
        ("weights", _weights_words(report["weights"])),
        *(("reference", f"{Path(a['file']).name}: {a['said']}")
          for a in guides.about if "said" in a),
        *((name, f"{v['psnr']:.2f} dB, SSIM {v['ssim']:.4f}")
          for name, v in report["quality"].items() if v["psnr"] is not None),
        ("LR fit", f"{report['data_consistency_db']} dB"),
        ("made by", f"daasr_jax {daasr_jax.__version__}, {commit_id()}"),
        ("not for", "diagnosis: detail beyond the input is estimated"),
    ]  # fmt: skip
    views = Views(
        lr=target.lr,
        sr=made.sr,
        references=guides.images,
        confidence=made.confidence if matched else None,
        index=made.index if matched else None,
        names=guides.names,
        spacing=target.spacing if known else (1.0, 1.0),
        unit="mm" if known else "pixels",
        placed=guides.placed,
        low=target.restore.low,
        top=target.restore.top,
        hr=target.hr,
    )
    slices, height, width = target.lr.shape
    plane = report["input"]["plane"]
    return make_page(
        views,
        title=f"{request.input.name} x{report['settings']['scale']}",
        subtitle=f"{slices} {plane} slices, {height}x{width} to {_by(target.size)}",
        facts=facts,
        warnings=report["warnings"],
    )


def _weights_words(about: dict[str, Any]) -> str:
    source = about["source"]
    sha256 = source.get("sha256") or source.get("manifest_sha256", "")
    return f"{source['weights']} (x{about['scale']}), SHA-256 {sha256[:12]}"


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


def _by(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))


def _mm(sides: tuple[float, ...]) -> str:
    if not math.isfinite(sum(sides)):
        return "unknown size"
    return "x".join(f"{side:.3g}" for side in sides) + " mm"
