"""The scans that lie in a folder."""

from __future__ import annotations

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
        series = path.is_dir() and _has_dicom(path)
        if series or (path.name.endswith(SUFFIXES) and path.is_file()):
            (links if leads_out(path, folder) else found).append(path)
    return found, links


def _has_dicom(folder: Path) -> bool:
    try:
        return bool(dicom_files(folder))
    except OSError:  # reading it says why
        return True
