"""Small files in the layouts of the data layer, with real attributes."""

from pathlib import Path

import h5py
import nibabel as nib
import numpy as np

from daasr_jax.data import DataSettings
from daasr_jax.data.table import SliceRecord, SliceTable

SHAPE = (4, 24, 20)
SIZE = 32
LPS_AFFINE = np.diag([-0.7, -0.7, 3.0, 1.0])

HEADER = """<?xml version="1.0" encoding="UTF-8"?>
<ismrmrdHeader xmlns="http://www.ismrm.org/ISMRMRD">
 <encoding>
  <encodedSpace><matrixSize><x>{ex}</x><y>{ey}</y><z>1</z></matrixSize></encodedSpace>
  <reconSpace><matrixSize><x>{x}</x><y>{y}</y><z>1</z></matrixSize></reconSpace>
 </encoding>
</ismrmrdHeader>"""


def scan_voxels(seed: int, shape: tuple[int, int, int] = SHAPE) -> np.ndarray:
    """A bright ellipse with noise in it, uint16 (slices, height, width)."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[-1 : 1 : shape[1] * 1j, -1 : 1 : shape[2] * 1j]
    inside = (x**2 + y**2) < 0.8
    values = rng.integers(100, 1500, size=shape)
    return (values * inside).astype(np.uint16)


def write_h5(
    path: Path,
    *,
    subject: str | None,
    contrast: str = "AXT2",
    header: str | None = None,
    **arrays: np.ndarray,
) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        for name, array in arrays.items():
            if array.dtype.kind == "c":
                file[name] = array
            else:
                file.create_dataset(name, data=array, compression="gzip")
        if header is not None:
            file["ismrmrd_header"] = header.encode()
        file.attrs["acquisition"] = contrast
        if subject is not None:
            file.attrs["patient_id"] = subject
    return path


def write_rss(path: Path, seed: int, subject: str, contrast: str = "AXT2") -> Path:
    image = scan_voxels(seed).astype(np.float32) * np.float32(2.0**-20)
    return write_h5(path, subject=subject, contrast=contrast, reconstruction_rss=image)


def write_nifti(
    path: Path, voxels: np.ndarray, affine: np.ndarray = LPS_AFFINE
) -> Path:
    """Voxels as (S, P, L) go into a file with the axes of the affine, here L, P, S."""
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(np.transpose(voxels, (2, 1, 0)), affine), path)
    return path


def fastmri_root(root: Path, train: int = 6, val: int = 2) -> Path:
    """`train` and `val` subjects with one volume each in the official folders."""
    for i in range(train):
        write_rss(root / f"multicoil_train/file_{i:03d}.h5", i, f"train{i:02d}")
    for i in range(val):
        write_rss(root / f"multicoil_val/file_{i:03d}.h5", 100 + i, f"val{i:02d}")
    return root


def nifti_root(root: Path, subjects: int = 6, contrasts: str = "T1W,T2W") -> Path:
    for i in range(subjects):
        for j, contrast in enumerate(contrasts.split(",")):
            path = root / f"patient{i:02d}/study1_{contrast}.nii.gz"
            write_nifti(path, scan_voxels(10 * i + j))
    return root


def settings(root: Path | str, cache: Path, **changes) -> DataSettings:
    return DataSettings(
        **{"root": str(root), "cache_dir": str(cache), "size": SIZE, **changes}
    )


def table(
    subjects: int = 3,
    contrasts: tuple[str, ...] = ("T1", "T2"),
    slices: int = 4,
    size: int = SIZE,
    order: int | None = None,
    studies: tuple[str, ...] = ("",),
) -> SliceTable:
    """A table in memory whose images are constant: the number of the record."""
    records = [
        SliceRecord(f"p{s}/{study}{c}", f"p{s}", c, study, i, slices)
        for s in range(subjects)
        for study in studies
        for c in contrasts
        for i in range(slices)
    ]
    if order is not None:
        places = np.random.default_rng(order).permutation(len(records))
        records = [records[k] for k in places]
    ramp = np.linspace(0, 1, size * size, dtype=np.float32).reshape(size, size, 1)
    return SliceTable("train", records, size, lambda i: ramp + np.float32(i))


def one_line(error: Exception, *parts: object) -> None:
    """The message is one line and names all of these."""
    text = str(error)
    assert "\n" not in text, text
    for part in parts:
        assert str(part) in text, f"{part!r} not in {text!r}"
