"""The scans that lie in a folder."""

from __future__ import annotations

import os
from pathlib import Path

from daasr_jax.files import leads_out
from daasr_jax.scans.dicom import dicom_files

SUFFIXES = (".nii", ".nii.gz", ".h5", ".npz")


def scans_in(folder: Path) -> tuple[list[Path], list[Path]]:
    """Files of scans and folders of a DICOM series, at any depth, by name.

    Args:
        folder: Of them; a file is the only scan.

    Returns:
        The scans, and the links among them that lead out of the folder.
    """
    if not folder.is_dir():
        return [folder], []
    found, links = [], []
    for path in sorted([folder, *folder.rglob("*")]):
        inside = path.is_dir()
        if path.is_symlink() and leads_out(path, folder):
            if inside or path.name.endswith(SUFFIXES):
                links.append(path)
        elif _has_dicom(path) if inside else path.name.endswith(SUFFIXES):
            found.append(path)
    return found, links


def _has_dicom(folder: Path) -> bool:
    try:
        return bool(dicom_files(folder))
    except OSError:  # of a file; where it is the folder's, reading it says why
        return not os.access(folder, os.R_OK | os.X_OK)
