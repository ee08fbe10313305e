"""The MNI152 head that comes with nilearn: a data set for a machine without data.

It is one smooth template, an average of 152 heads. It proves the path from files to
scores, not the quality of a method: its slices hold less detail than any scan, and
training, validation and test slices come from the same head.
"""

import hashlib
import importlib.util
from pathlib import Path

import numpy as np

from daasr_jax.data.settings import DataSettings
from daasr_jax.data.sources.base import OnBad, Source, Volume
from daasr_jax.data.sources.nifti import load, slices_of
from daasr_jax.errors import DataError, first_line

_FILE = "datasets/data/mni_icbm152_t1_tal_nlin_sym_09a_converted.nii.gz"
# The same bytes in nilearn 0.12.1 and 0.14.1.
_SHA256 = "421a10e872fd6cadae7f61d358dffbcc1795a497d61ee76c5dda2503e1a1e9e6"
_PLANE = (233, 197)
# Axial slices from the feet up, four between slabs left out; brain covers between
# 13 and 45 % of each of them.
_SLABS = {"train": (24, 91), "test": (95, 120), "val": (124, 141)}


def scan(settings: DataSettings, on_bad: OnBad | None = None) -> list[Volume]:
    """Three slabs of the template, one volume each: `mni152/train` and so on.

    Raises:
        DataError: If nilearn's file is missing or not the known one (E310).
    """
    del settings, on_bad
    path = _template_path()
    if hashlib.sha256(path.read_bytes()).hexdigest() != _SHA256:
        raise DataError(
            "E310",
            f"{path} is not the known MNI152 template (SHA-256 differs): "
            "install nilearn again",
        )
    return [
        Volume(
            key=f"mni152/{split}",
            subject="mni152",
            contrast="T1",
            study="",
            path=str(path),
            shape=(stop - start, *_PLANE),
            split=split,
            options=f"{start}:{stop}",
        )
        for split, (start, stop) in _SLABS.items()
    ]


def read(volume: Volume) -> np.ndarray:
    """Slices of one slab, (slices, 233, 197) uint8.

    Raises:
        DataError: If the file cannot be read (E310).
    """
    start, stop = (int(end) for end in volume.options.split(":"))
    try:
        return slices_of(load(Path(volume.path)), "axial")[start:stop]
    except (OSError, EOFError, ValueError) as error:
        raise DataError(
            "E310", f"{volume.path}: {first_line(error)}; install nilearn again"
        ) from None


def _template_path() -> Path:
    # find_spec does not import nilearn, which would load scikit-learn.
    spec = importlib.util.find_spec("nilearn")
    if spec is None or spec.origin is None:
        raise DataError(
            "E310", "the template needs nilearn: install it with pip install nilearn"
        )
    path = Path(spec.origin).parent / _FILE
    if not path.is_file():
        raise DataError(
            "E310", f"nilearn has no file {path}: install nilearn>=0.12,<0.15"
        )
    return path


SOURCE = Source("template", scan, read)
