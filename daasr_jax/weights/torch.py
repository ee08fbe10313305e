"""Files of PyTorch: state dicts to arrays, torchvision's VGG-19 to an .npz.

PyTorch is needed here and nowhere else in the package.
"""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from daasr_jax.errors import ConfigError
from daasr_jax.files import file_hash, write_atomically
from daasr_jax.weights.tensors import Tensors
from daasr_jax.weights.vgg import LAYERS

# Places of the convolutions in torchvision's `features`; conv3_4, which VGG-16 lacks,
# is asked for and not kept.
_INDICES = (0, 2, 5, 7, 10, 12, 14, 16)
_HELD_AS = ("params_ema", "params", "state_dict", "model_state_dict", "model")
_PREFIXES = (
    *("module.", "_orig_mod.", "net.", "model.", "network.", "net_g.", "netG."),
    "generator.",
)
_SHAPES = (*LAYERS.values(), (3, 3, 256, 256))


def vgg19(state: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """torchvision's state dict to the arrays that `vgg.read_vgg19` reads.

    Raises:
        ValueError: If a tensor is absent, of another shape or not finite.
    """
    arrays = {"preprocessing": np.array("torchvision")}
    for name, index, shape in zip([*LAYERS, ""], _INDICES, _SHAPES, strict=True):
        place = f"features.{index}"
        kernel = _tensor(state, f"{place}.weight", (shape[3], shape[2], *shape[:2]))
        bias = _tensor(state, f"{place}.bias", shape[3:])
        if name:
            kernel = np.ascontiguousarray(kernel.transpose(2, 3, 1, 0))
            arrays |= {f"{name}.kernel": kernel, f"{name}.bias": bias}
    return arrays


def convert_vgg19(source: Path, target: Path) -> str:
    """Converts torchvision's VGG-19 and returns the SHA-256 of the .npz it wrote.

    Raises:
        ConfigError: If PyTorch is not installed (E234), or a file cannot be read or
            written (E235).
    """
    if target.suffix != ".npz":
        raise ConfigError("E235", f"--out must end in .npz, got {target}.")
    state = unwrap(read_torch(source)[0])
    try:
        arrays = vgg19(state)
    except ValueError as error:
        raise ConfigError(
            "E235", f"--torch={source} is not vgg19 of torchvision: {error}"
        ) from None
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **arrays)  # pyright: ignore
    try:
        write_atomically(target, buffer.getvalue())
    except OSError as error:
        raise ConfigError(
            "E235", f"--out={target} cannot be written: {error.strerror}."
        ) from None
    return hashlib.sha256(buffer.getvalue()).hexdigest()


def read_tensors(source: Path) -> tuple[Tensors, str]:
    """The tensors of a state dict, and the SHA-256 of its file.

    Args:
        source: File of `torch.save`, see `unwrap`.

    Raises:
        ConfigError: See `read_torch`.
        ValueError: If there is no state dict, or a tensor of it is not dense.
    """
    state, sha256 = read_torch(source)
    state = unwrap(state)
    if not isinstance(state, Mapping) or not state:
        raise ValueError("it holds no state dict.")
    tensors = {
        name: _array(name, value)
        for name, value in state.items()
        if hasattr(value, "detach")
    }
    return Tensors(tensors), sha256


def unwrap(state: Any) -> Any:
    """The state dict within, its names without what wrappers put in front of all.

    A checkpoint may hold it as one of `_HELD_AS`, of which the first is taken. Names
    may begin with `_PREFIXES`, one after another: those of `DataParallel`, of
    `torch.compile`, and of a Lightning module that holds the network.
    """
    for name in _HELD_AS:
        if isinstance(state, Mapping) and isinstance(state.get(name), Mapping):
            state = state[name]
            break
    if not isinstance(state, Mapping):
        return state
    named = {str(name): value for name, value in state.items()}
    while named:
        fit = [p for p in _PREFIXES if all(name.startswith(p) for name in named)]
        if not fit:
            break
        named = {name.removeprefix(fit[0]): value for name, value in named.items()}
    return named


def read_torch(source: Path) -> tuple[Any, str]:
    """What a file of `torch.save` holds, tensors and containers only; its SHA-256.

    Raises:
        ConfigError: If PyTorch is not installed (E234) or the file is unfit (E235).
    """
    try:
        found = file_hash(source)
    except OSError as error:
        raise ConfigError(
            "E235", f"--torch={source} cannot be read: {error.strerror}."
        ) from None
    named = re.search(r"-([0-9a-f]{8,64})\.pth$", source.name)
    if named and not found.startswith(named[1]):
        raise ConfigError(
            "E235",
            f"--torch={source} has the SHA-256 {found}, which does not begin with "
            f"{named[1]} as its name says: fetch it again.",
        )
    try:
        import torch
    except (ImportError, OSError) as error:  # OSError: a library of it is missing
        broken = not isinstance(error, ModuleNotFoundError)
        reason = f" ({' '.join(str(error).split())[:200]})" if broken else ""
        raise ConfigError(
            "E234", f"PyTorch is needed to convert: pip install torch{reason}."
        ) from None
    try:
        load = torch.load  # pyright: ignore[reportAttributeAccessIssue]
        return load(source, weights_only=True, map_location="cpu"), found
    except Exception as error:  # a damaged file may raise any
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        if type(error).__name__ == "UnpicklingError":  # torch advises to run the code
            reason = (
                "it is damaged or holds more than tensors, which could run code and is "
                "not read; save the state dict alone."
            )
        raise ConfigError(
            "E235", f"--torch={source} is no file of PyTorch weights: {reason}"
        ) from None


def _tensor(state: Any, name: str, shape: tuple[int, ...]) -> np.ndarray:
    value = state.get(name) if isinstance(state, Mapping) else None
    if value is None:
        raise ValueError(f"it has no {name}.")
    if not hasattr(value, "detach"):
        raise ValueError(f"{name} is no tensor.")
    found = tuple(value.shape)
    if found != shape:
        raise ValueError(f"{name} has the shape {found}, wanted {shape}.")
    array = _array(name, value)
    if not np.isfinite(array).all():
        raise ValueError(f"{name} holds values that are not finite.")
    return array


def _array(name: str, value: Any) -> np.ndarray:
    """A dense tensor of PyTorch, float32."""
    try:
        return value.detach().float().numpy()
    except (RuntimeError, TypeError) as error:  # sparse, quantised, without storage
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(f"{name} is no dense tensor: {reason}") from None
