"""The files of an enhancement: what is asked for, and how they are written."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import math
import shutil
import tempfile
from collections.abc import Generator
from pathlib import Path
from typing import Any

import numpy as np

from daasr_jax import scans
from daasr_jax.data.sources.base import system_words
from daasr_jax.enhancement import Slices, overlays
from daasr_jax.enhancement.inputs import Guides, Target
from daasr_jax.enhancement.page import Views, make_page
from daasr_jax.errors import DataError
from daasr_jax.experiment.installation import commit_id
from daasr_jax.files import replace_all, write_atomically
from daasr_jax.scans.output import cannot_write

log = logging.getLogger("daasr_jax")

_NIFTI = (".nii.gz", ".nii")
SHARED = "voxels are only enhanced: no face was removed, nor text in the pixels"
UNTELLING = (
    "C of these weights does not always tell whether a reference was of use, so "
    "nothing warns of one that was not (low_confidence is 0, see the card)"
)


@dataclasses.dataclass(frozen=True)
class EnhanceRequest:
    """What is asked of an enhancement.

    Attributes:
        input: The scan.
        out: The result: a NIfTI file, or the folder of a DICOM series.
        refs: References: files; `("none",)`; or `("auto",)`, from the bank.
        scale: s; 0 for that of the weights.
        checkpoint: A released name, a file or a run; empty for `x` and the scale.
        axis: Across which the slices lie, see `scans.slice_axis`.
        bank: Folder of scans from which `auto` chooses.
        within: LR pixels around each place in which a reference is searched; 0 for the
            whole slice, None for what suits the references.
        format: `nifti` or `dicom`.
        dtype: Of the voxels of a NIfTI result: `float32`, or `input` for the type that
            the file of the input has.
        memory: Bytes that may be taken; None for a half of what is free.
        simulated: Make the input small first, and measure what the result is worth.
        page: Write the HTML page too.
        force: Replace results.
        names: Keep names of files, and what the headers say of the patient.
    """

    input: Path
    out: Path
    refs: tuple[str, ...] = ("none",)
    scale: int = 0
    checkpoint: str = ""
    axis: str = "auto"
    bank: Path | None = None
    within: int | None = None
    format: str = "nifti"
    dtype: str = "float32"
    memory: int | None = None
    simulated: bool = False
    page: bool = True
    force: bool = False
    names: bool = False

    @property
    def label(self) -> str:
        """What the scan is called in results."""
        return self.input.name if self.names else "the input"

    @property
    def used(self) -> list[Path]:
        """What is read, beside the weights; of a bank what a result would replace."""
        refs = [Path(r) for r in self.refs if r not in ("none", "auto")]
        bank = self.bank.resolve() if self.bank else None
        own = [f for f in self.files.values() if f.name.endswith(_NIFTI) and f.exists()]
        return [self.input, *refs, *(f for f in own if bank in f.resolve().parents)]

    @property
    def files(self) -> dict[str, Path]:
        """Names that belong to the result, by what is written there if anything is."""
        name = self.out.name
        for ending in _NIFTI:
            name = name.removesuffix(ending)

        def beside(ending: str) -> Path:
            return self.out.parent / (name + ending)

        found = {"output": self.out, "confidence": beside("_confidence.nii.gz")}
        found |= {"match": beside("_match.nii.gz"), "report": beside(".json")}
        return found | {"page": beside(".html")}


def written_files(
    request: EnhanceRequest, made: Slices, guides: Guides
) -> dict[str, Path]:
    """The files that a result has: no maps where nothing was matched."""
    matched = made.confidence is not None and guides.images is not None
    without = () if matched else ("confidence", "match")
    without += () if request.page else ("page",)
    return {k: v for k, v in request.files.items() if k not in without}


def write_files(
    request: EnhanceRequest,
    target: Target,
    guides: Guides,
    made: Slices,
    report: dict[str, Any],
    times: dict[str, float],
) -> None:
    """Writes all files, or none, and leaves none of an earlier result.

    They are written in a folder beside their places, and renamed when all are whole.

    Args:
        request: What was asked.
        target: The scan.
        guides: Its references.
        made: What the network made.
        report: For the JSON file, which gets the times and the files too.
        times: Seconds of each stage.

    Raises:
        DataError: If a file is there already or cannot be written.
    """
    files = written_files(request, made, guides)
    report["seconds"] = {k: round(v, 2) for k, v in times.items()}
    report["files"] = {k: v.name for k, v in files.items()}
    folder, new = request.out.parent, Path()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _hidden(folder) as (new, old):
            _write(new, files, request, target, guides, made, report)
            check_files(request)
            last = sorted(files, key="output".__eq__)
            placed = {files[k]: new / files[k].name for k in last}
            replace_all(placed, set(request.files.values()) - set(placed), old)
    except OSError as error:
        raise cannot_write(request.out, system_words(error)) from None
    except DataError as error:  # it names the place that a reader knows
        for path in files.values():
            error.args = (error.args[0].replace(f"{new / path.name}", f"{path}"),)
        raise


@contextlib.contextmanager
def _hidden(folder: Path) -> Generator[tuple[Path, Path]]:
    """Two empty folders beside the results, for what is made and for what was there.

    They go at the end, but for earlier files that could not be brought back.
    """
    hidden = Path(tempfile.mkdtemp(prefix=".daasr_jax.", dir=folder))
    new, old = hidden / "new", hidden / "old"
    try:
        new.mkdir()
        old.mkdir()
        yield new, old
    except BaseException:
        if old.is_dir() and any(old.iterdir()):
            shutil.rmtree(new, ignore_errors=True)
            log.error("earlier files could not be put back; they lie in %s", old)
        else:
            shutil.rmtree(hidden, ignore_errors=True)
        raise
    shutil.rmtree(hidden, ignore_errors=True)


def check_files(request: EnhanceRequest) -> None:
    """Refuses names of results that are taken, before anything is computed.

    Raises:
        DataError: As `scans.check_output`.
    """
    for name, path in request.files.items():
        form = request.format if name == "output" else ""
        scans.check_output(path, request.used, request.force, form)


def _write(
    folder: Path,
    files: dict[str, Path],
    request: EnhanceRequest,
    target: Target,
    guides: Guides,
    made: Slices,
    report: dict[str, Any],
) -> None:
    """All files by their names in a folder that is not theirs; the output last."""
    scan, grid = target.scan, target.grid
    note = f"{scans.unfit.software()} x{report['settings']['scale']}"
    places = {k: folder / path.name for k, path in files.items()}

    def volume(slices: np.ndarray) -> np.ndarray:
        return scans.back(slices, scan, target.axis)

    def nifti(key: str, slices: np.ndarray, words: str, dtype: Any = None) -> None:
        scans.write_nifti(
            places[key],
            volume(slices),
            grid,
            like=scan,
            description=f"{note} {words}",
            dtype=dtype or slices.dtype,
            same_unit=key == "output",
            texts=request.names,
        )

    if "match" in files:
        assert made.confidence is not None
        c = made.confidence
        nifti("confidence", overlays.spread(c, target.size), "confidence C")
        nifti("match", _match(target, guides, made), "match P")  # one map at a time
    if "page" in files:
        page = _page(request, target, guides, made, report)
        write_atomically(places["page"], page)
    write_atomically(places["report"], json.dumps(report, indent=1))
    output = target.restore(made.sr)
    if request.format == "dicom":
        scans.write_dicom(
            places["output"],
            volume(output),
            grid,
            like=scan,
            description=note,
            names=request.names,
        )
    else:
        own = request.dtype == "input"
        nifti("output", output, "", scans.stored_type(scan) if own else np.float32)


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
    request: EnhanceRequest,
    target: Target,
    guides: Guides,
    made: Slices,
    report: dict[str, Any],
) -> str:
    cells = made.confidence is not None and made.confidence.shape == target.lr.shape
    matched = guides.images is not None and cells
    known = math.isfinite(sum(target.spacing))
    telling = not matched or bool(report["weights"]["low_confidence"])
    facts = [
        ("input", f"{request.label}, {by(target.scan.voxels.shape)} voxels"),
        ("output", f"{request.out.name}, {by(target.grid.shape)} voxels"),
        ("weights", weights_words(report["weights"])),
        *(("reference", f"{a['name']}: {a['said']}")
          for a in guides.about if "said" in a),
        *((name, f"{v['psnr']:.2f} dB, SSIM {v['ssim']:.4f}")
          for name, v in report["quality"].items() if v["psnr"] is not None),
        ("LR fit", f"{report['data_consistency_db']} dB"),
        *((("C", UNTELLING),) if not telling else ()),
        ("made by", f"{scans.unfit.software()}, {commit_id()}"),
        ("not for", "diagnosis: detail beyond the input is estimated"),
        ("share", SHARED),
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
        telling=telling,
    )
    slices, height, width = target.lr.shape
    plane = report["input"]["plane"]
    return make_page(
        views,
        title=f"{request.label} x{report['settings']['scale']}",
        subtitle=f"{slices} {plane} slices, {height}x{width} to {by(target.size)}",
        facts=facts,
        warnings=report["warnings"],
    )


def weights_words(about: dict[str, Any]) -> str:
    """The weights for a reader: name, scale and hash."""
    source = about["source"]
    sha256 = source.get("sha256") or source.get("manifest_sha256", "")
    checked = "" if source.get("hash_was_checked", True) else ", of no index.json"
    return f"{source['weights']} (x{about['scale']}), SHA-256 {sha256[:12]}{checked}"


def by(shape: tuple[int, ...]) -> str:
    """A shape as `256x256x40`."""
    return "x".join(map(str, shape))


def in_mm(sides: tuple[float, ...]) -> str:
    """Sides of a voxel as `0.5x0.5x3 mm`."""
    if not math.isfinite(sum(sides)):
        return "unknown size"
    return "x".join(f"{side:.3g}" for side in sides) + " mm"
