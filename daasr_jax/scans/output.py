"""Where a result may be written."""

import os
from collections.abc import Sequence
from pathlib import Path

from daasr_jax.data.sources.base import system_words
from daasr_jax.errors import DataError
from daasr_jax.scans import dicom


def check_output(
    path: str | os.PathLike[str],
    inputs: Sequence[str | os.PathLike[str]],
    force: bool,
    form: str = "",
) -> None:
    """Refuses a place for a result before anything is computed.

    Args:
        path: The file, or the folder of a DICOM series.
        inputs: Files and folders that are read.
        force: What is there may be replaced: a file, or a folder that holds one DICOM
            series and nothing else.
        form: `nifti` wants the ending of such a file.

    Raises:
        DataError: If it has another ending or no name (E354), is one of the inputs,
            lies in one or holds one (E351), is there (E350), or cannot be written
            (E352).
    """
    path = Path(path)
    if path.name in ("", ".."):
        raise DataError("E354", f"{path}: give the result a name of its own")
    if form == "nifti" and not path.name.endswith((".nii", ".nii.gz")):
        raise DataError(
            "E354", f"{path}: the result is NIfTI: end its name in .nii or .nii.gz"
        )
    try:
        _check_inputs(path, [Path(source) for source in inputs])
        _check_present(path, force)
        above = path.absolute().parent
        while not above.exists():
            above = above.parent
        if not above.is_dir() or not os.access(above, os.W_OK | os.X_OK):
            raise cannot_write(path, f"{above} cannot be written to")
    except OSError as error:
        raise cannot_write(path, system_words(error)) from None


def _check_inputs(path: Path, inputs: Sequence[Path]) -> None:
    for source in inputs:
        same = path.exists() and source.exists() and path.samefile(source)
        within = source.is_dir() and source.resolve() in path.resolve().parents
        if same or within or path.resolve() in source.resolve().parents:
            raise DataError(
                "E351",
                f"{path} is the input {source}, lies in it or holds it; an input is "
                "never written to: give --out another place",
            )


def _check_present(path: Path, force: bool) -> None:
    if not path.is_symlink() and not path.exists():
        return
    if not force:
        raise DataError("E350", f"{path} is there already: --force replaces it")
    if path.is_dir() and not dicom.only_dicom(path):
        raise DataError(
            "E350",
            f"{path} is a folder that holds more than one DICOM series, and is not "
            "replaced: give --out a folder that is not there",
        )


def cannot_write(path: Path, why: str) -> DataError:
    """The error (E352) for a result that the system refused."""
    return DataError("E352", f"{path} cannot be written: {why}")
