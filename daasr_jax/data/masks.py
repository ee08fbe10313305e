"""Masks beside the volumes of a NIfTI tree, such as of brains. A mask is no image."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from daasr_jax.data.prepared import PreparedSet
from daasr_jax.data.settings import DataSettings
from daasr_jax.data.slices import resized
from daasr_jax.data.sources.base import BadFileError, complaint
from daasr_jax.data.sources.forms import without_ending
from daasr_jax.data.sources.nifti import load, slices_of
from daasr_jax.data.sources.nifti_header import READ_ERRORS, Header, describe
from daasr_jax.errors import DataError

_ENDINGS = (".nii.gz", ".nii", "_mask.nii.gz", "_mask.nii")
_APART = 0.5  # of a voxel's shortest side: corners of equal grids lie within it


class Masks:
    """The masks of prepared slices, on their grid.

    Args:
        folder: A tree as that of the data. A mask has the name of its volume, perhaps
            with `_mask` at its end, and its grid.
        prepared: The data.
        settings: How they were prepared.
    """

    def __init__(
        self, folder: Path, prepared: PreparedSet, settings: DataSettings
    ) -> None:
        self._folder, self._prepared, self._settings = folder, prepared, settings

    def check(self, volumes: Iterable[str]) -> None:
        """Reads the masks of these volumes, given by their keys.

        Raises:
            DataError: If one is not there (E364) or cannot be used (E365).
        """
        for volume in sorted(set(volumes)):
            self._read(volume)

    def of_slice(self, volume: str, index: int) -> np.ndarray:
        """The mask of a slice, (size, size, 1) bool; all False where it is blank.

        Args:
            volume: Key of the volume.
            index: Place of the slice in the volume.

        Raises:
            DataError: As `check`.
        """
        own = self._read(volume)[index].astype(np.float32)
        return resized(own, self._settings.size, self._settings.resize) > 0.5

    def _read(self, volume: str) -> np.ndarray:
        """(slices, height, width) bool, as the voxels of the volume are read."""
        image = Path(self._prepared.files[volume][0])
        path = self._find(image)
        try:
            beside = describe(image, self._settings.slice_axis)
            own = describe(path, beside.axis)
            if why := _misfit(own, beside):
                raise BadFileError(why)
            return slices_of(load(path), own.axis) > 0.5
        except (BadFileError, *READ_ERRORS) as error:
            raise DataError(
                "E365",
                f"the mask {path} {complaint(error, 'NIfTI file')}: give one on the "
                f"grid of {image}",
            ) from None

    def _find(self, image: Path) -> Path:
        root = Path(self._settings.root)
        if not image.name.lower().endswith((".nii", ".nii.gz")):
            raise DataError("E364", f"masks are read beside NIfTI files, not {image}")
        name = without_ending(image.relative_to(root).as_posix())
        for ending in _ENDINGS:
            if (path := self._folder / (name + ending)).is_file():
                return path
        raise DataError(
            "E364",
            f"{self._folder} has no mask {name}.nii.gz or {name}_mask.nii.gz: it needs "
            "a file for each volume of the test split, in folders as those of the data",
        )


def _misfit(own: Header, beside: Header) -> str:
    """Why a mask is not on the grid of its volume, in words; empty where it is."""
    if own.shape != beside.shape:
        return f"has {_sides(own)} voxels and its volume {_sides(beside)}"
    if own.affine is None or beside.affine is None:
        return ""
    corners = np.array(np.meshgrid(*((0, n - 1) for n in own.shape))).reshape(3, -1)
    between = np.array(own.affine) - np.array(beside.affine)
    apart = np.abs(between[:3, :3] @ corners + between[:3, 3:]).max()
    sides = np.linalg.norm(np.array(beside.affine)[:3, :3], axis=0)
    if apart > _APART * sides.min():
        return f"lies {apart:.3g} mm from its volume, by the headers"
    return ""


def _sides(header: Header) -> str:
    return "x".join(map(str, header.shape))
