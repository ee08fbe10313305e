"""Enhances a scan, with a sharper scan of the same person as its reference.

    python enhance.py --input T2.nii.gz --ref T1.nii.gz --scale 4 --out T2_x4.nii.gz

Slices are enhanced in their plane, each on its own: their number and distance stay. The
plane is that across the longest side of a voxel, or --axis. A reference is another
contrast or time of the same person on any grid; it is brought to the grid of the result
by the headers, so the two should be registered. Several may be given; a second may
lose. --ref none, or no --ref, uses none; --ref auto --bank DIR takes, for each slice,
the most similar one in a folder, without results of this program, masks and labels.

Beside OUT lie OUT_confidence.nii.gz (C: how well what was found agrees),
OUT_match.nii.gz (P: the voxel of the reference that each voxel was matched with),
OUT.json (all settings, hashes and numbers) and OUT.html (a viewer). They name no file
and nobody, and the headers are cleared of texts, but for --names; the voxels of a head
still show a face. In an installed package the command is `python -m daasr_jax.enhance`.
Not for clinical use.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import sys
import types
from collections.abc import Sequence
from typing import Any

from daasr_jax.errors import ConfigError, UserError


def parser() -> argparse.ArgumentParser:
    """The options of the command."""
    from daasr_jax.experiment.arguments import command_parser
    from daasr_jax.experiment.places import given_place
    from daasr_jax.resampling import SCALES

    made = command_parser("enhance.py", __doc__)
    add = made.add_argument
    add(
        "--input",
        required=True,
        type=given_place,
        metavar="SCAN",
        help="NIfTI, a DICOM folder, fastMRI .h5 or .npz",
    )
    add(
        "--out",
        required=True,
        type=given_place,
        metavar="OUT",
        help="the result: .nii.gz or .nii; with --format dicom a folder",
    )
    add(
        "--ref",
        action="append",
        type=given_place,
        metavar="SCAN",
        help="a reference, as --input; again for several; or auto; or none, as without",
    )
    add(
        "--bank", type=given_place, metavar="DIR", help="folder of scans for --ref auto"
    )
    add(
        "--within",
        type=int,
        metavar="N",
        help="search a reference N pixels of the LR slice around each place, and up to "
        "15 more; 0: in all of the slice, as with auto; by default 16 for a file",
    )
    add(
        "--scale",
        type=int,
        choices=SCALES,
        default=0,
        help="enlargement of each side in the plane; by default that of the weights",
    )
    add(
        "--checkpoint",
        default="",
        metavar="NAME",
        help="released weights, a .safetensors file or the folder of a run; by default "
        "x2, x3 or x4 by the scale",
    )
    add(
        "--axis",
        default="auto",
        metavar="AXIS",
        help="across which slices lie: auto, axial, coronal, sagittal, 0, 1, 2",
    )
    add("--format", choices=("nifti", "dicom"), default="nifti", help="of the result")
    add(
        "--dtype",
        choices=("float32", "input"),
        default="float32",
        help="of the voxels of a NIfTI result; input: the type of the input's file",
    )
    add(
        "--memory",
        type=float,
        metavar="GB",
        help="that the network may take, beside the volumes; by default a half of "
        "what is free",
    )
    add(
        "--low-res-simulated",
        action="store_true",
        help="the input is sharp: make it small first, and report PSNR and SSIM",
    )
    add(
        "--names",
        action="store_true",
        help="keep names of files and what the headers say of the patient",
    )
    add("--no-view", action="store_true", help="write no HTML page")
    add("--force", action="store_true", help="replace results that are there")
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    from daasr_jax.experiment.arguments import run_command

    stopped = "stopped; nothing was written"
    return run_command(parser(), _enhance, arguments, stopped=stopped)


def _enhance(given: argparse.Namespace) -> None:
    from daasr_jax.data import DataSettings
    from daasr_jax.experiment.enhance import enhance_scan
    from daasr_jax.experiment.enhance_files import EnhanceRequest
    from daasr_jax.runtime import compiled, devices

    memory = None if given.memory is None else given.memory * 2**30
    if memory is not None and not 0 < memory < math.inf:
        raise ConfigError(
            "E225", f"--memory is {given.memory:g}; it must be a number over 0, in GB"
        )
    if given.within is not None and given.within < 0:
        raise ConfigError("E225", f"--within is {given.within}; it must be 0 or more")
    refs = [str(r) for r in given.ref or ["none"]]
    devices.find()
    with contextlib.suppress(UserError):  # without a home nothing is kept
        compiled.keep_compiled(DataSettings().cache_path)
    request = EnhanceRequest(
        input=given.input,
        out=given.out,
        refs=tuple(refs),
        scale=given.scale,
        checkpoint=given.checkpoint,
        axis=given.axis,
        bank=given.bank,
        within=given.within,
        format=given.format,
        dtype=given.dtype,
        memory=None if memory is None else int(memory),
        simulated=given.low_res_simulated,
        page=not given.no_view,
        force=given.force,
        names=given.names,
    )
    enhance_scan(request, lambda name, words: print(f"{name:<12}{words}", flush=True))


class _Callable(types.ModuleType):
    """`daasr_jax.enhance(...)` stays the function where this module took its name."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """See `daasr_jax.enhancement.enhance`."""
        from daasr_jax.enhancement import enhance

        return enhance(*args, **kwargs)


sys.modules[__name__].__class__ = _Callable

if __name__ == "__main__":
    sys.exit(main())
