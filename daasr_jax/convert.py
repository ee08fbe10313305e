"""Converts the files of other frameworks, offline:

    python -m daasr_jax.convert --system vgg19 --torch FILE.pth --out FILE.npz
    python -m daasr_jax.convert --system swinir --torch FILE.pth --out DIR

`vgg19` is torchvision's VGG-19 (https://pytorch.org/vision), of which the convolutions
up to conv3_3 are kept. `edsr`, `hat`, `swinir` and `ttsr` are the official weights of
the compared systems, of 1 or 3 channels; DIR becomes a run that `eval.py` evaluates and
`train.start_from` continues from. PyTorch is needed for this command and for nothing
else.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import io
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from daasr_jax.conversion.tensors import Tensors
from daasr_jax.errors import ConfigError, UserError
from daasr_jax.files import file_hash, write_atomically
from daasr_jax.pretrained import LAYERS
from daasr_jax.provenance import has_checkpoints

SYSTEMS = ("edsr", "hat", "swinir", "ttsr")

# Places of the convolutions in torchvision's `features`; conv3_4, which VGG-16 lacks,
# is asked for and not kept.
_INDICES = (0, 2, 5, 7, 10, 12, 14, 16)
_SHAPES = (*LAYERS.values(), (3, 3, 256, 256))


def vgg19(state: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """torchvision's state dict to the arrays that `pretrained.read_vgg19` reads.

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
    state = read_torch(source)[0]
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


def convert_system(system: str, source: Path, target: Path) -> str:
    """Converts official weights of a compared system into a run at step 0.

    Args:
        system: One of `SYSTEMS`.
        source: File of `torch.save`: a state dict, or a dict that holds one as
            `params_ema`, `params` or `state_dict`, of which the first is taken. Names
            may begin with `module.`, as those of `DataParallel` do.
        target: Folder of the run; it must hold no checkpoints yet.

    Returns:
        What was assumed, where something was, and the command that evaluates it.

    Raises:
        ConfigError: If PyTorch is not installed (E234), or the file cannot be read, is
            of another network, or the folder cannot be used (E235).
    """
    from daasr_jax.conversion.run import write_run

    if has_checkpoints(target):
        raise ConfigError("E235", f"--out={target} holds a run; give another folder.")
    state, sha256 = read_torch(source)
    for name in ("params_ema", "params", "state_dict"):
        if isinstance(state, Mapping) and isinstance(state.get(name), Mapping):
            state = state[name]
            break
    try:
        if not isinstance(state, Mapping) or not state:
            raise ValueError("it holds no state dict.")
        tensors = {
            str(name).removeprefix("module."): _array(str(name), value)
            for name, value in state.items()
            if hasattr(value, "detach")
        }
        module = importlib.import_module(f"daasr_jax.conversion.{system}")
        converted = module.convert(Tensors(tensors))
        return write_run(
            converted, target, system, {"converted": source.name, "sha256": sha256}
        )
    except ValueError as error:
        raise ConfigError(
            "E235", f"--torch={source} is not a supported {system}: {error}"
        ) from None


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
        import torch  # pyright: ignore[reportMissingImports]
    except (ImportError, OSError) as error:  # OSError: a library of it is missing
        broken = not isinstance(error, ModuleNotFoundError)
        reason = f" ({' '.join(str(error).split())[:200]})" if broken else ""
        raise ConfigError(
            "E234", f"PyTorch is needed to convert: pip install torch{reason}."
        ) from None
    try:
        return torch.load(source, weights_only=True, map_location="cpu"), found
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


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m daasr_jax.convert", description="Converts weights, offline."
    )
    parser.add_argument("--system", required=True, choices=("vgg19", *SYSTEMS))
    parser.add_argument("--torch", required=True, type=Path, help="the file to convert")
    parser.add_argument(
        "--out", required=True, type=Path, help="vgg19: .npz to write; others: a folder"
    )
    options = parser.parse_args(arguments)
    try:
        if options.system == "vgg19":
            last = f"sha256 {convert_vgg19(options.torch, options.out)}"
        else:
            last = convert_system(options.system, options.torch, options.out)
    except UserError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    print(f"wrote {options.out}\n{last}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
