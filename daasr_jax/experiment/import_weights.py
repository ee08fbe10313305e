"""Official weights of PyTorch as a run of this package, offline:

    python -m daasr_jax.experiment.import_weights \\
        --config configs/swinir_x4.py --torch FILE.pth --out DIR
    python -m daasr_jax.experiment.import_weights \\
        --vgg19 --torch FILE.pth --out FILE.npz

The configuration names the system: EDSR, HAT, SwinIR or TTSR, of 1 or 3 channels. DIR
becomes a run that `eval.py` evaluates and `train.start_from` continues from. `--vgg19`
keeps the convolutions up to conv3_3 of torchvision's VGG-19
(https://pytorch.org/vision), for the perceptual term. Only this command needs PyTorch.
"""

from __future__ import annotations

import argparse
import importlib
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from daasr_jax.errors import ConfigError
from daasr_jax.experiment import parts
from daasr_jax.experiment.arguments import command_parser, run_command
from daasr_jax.experiment.begun import has_checkpoints
from daasr_jax.experiment.configuration import load
from daasr_jax.experiment.installation import command
from daasr_jax.experiment.places import place
from daasr_jax.experiment.record import record_config
from daasr_jax.runtime import devices
from daasr_jax.training.checkpoints import Checkpoints
from daasr_jax.training.state import start_from
from daasr_jax.weights.tensors import Converted
from daasr_jax.weights.torch import convert_vgg19, read_tensors

SYSTEMS = ("edsr", "hat", "swinir", "ttsr")


def import_system(config_file: str, source: Path, target: Path) -> str:
    """Converts official weights of a compared system into a run at step 0.

    Args:
        config_file: Configuration of the system, `configs/swinir_x4.py`.
        source: File of PyTorch, see `read_tensors`.
        target: Folder of the run; it must hold no checkpoints yet.

    Returns:
        What was assumed, where something was, and the command that evaluates it.

    Raises:
        ConfigError: If the configuration cannot be read (E225), PyTorch is not
            installed (E234), or the file cannot be read, is of another network, or the
            folder cannot be used (E235).
    """
    config = load(config_file)
    system = config.model.name.partition("_")[0]
    if system not in SYSTEMS:
        raise ConfigError(
            "E235",
            f"--config={config_file} is of {config.model.name}; weights are imported "
            f"of {', '.join(SYSTEMS)}.",
        )
    if has_checkpoints(target):
        raise ConfigError("E235", f"--out={target} holds a run; give another folder.")
    tensors = None
    try:
        tensors, sha256 = read_tensors(source)
        module = importlib.import_module(f"daasr_jax.weights.{system}")
        return write_run(
            module.convert(tensors),
            target,
            config,
            {"converted": source.name, "sha256": sha256},
        )
    except ValueError as error:
        shown = f" Of the file, {tensors.beginning()}." if tensors is not None else ""
        raise ConfigError(
            "E235", f"--torch={source} is not a supported {system}: {error}{shown}"
        ) from None


def write_run(
    converted: Converted,
    folder: Path,
    config: Any,
    source: dict[str, str],
) -> str:
    """Writes `config.json` and a checkpoint at step 0, which is nobody's training.

    Args:
        converted: The weights and the model that holds them.
        folder: Of the run, made where it is absent.
        config: Of the system; its model is changed to the one of the weights.
        source: What names the weights in reports: `converted`, `sha256`.

    Returns:
        What was assumed, if anything, and the command that evaluates the run, but for
        the place of the data.

    Raises:
        ConfigError: If the folder cannot be written.
        ValueError: If the weights do not fit the model.
    """
    fields = dict(converted.fields)
    flags = {"model.name": converted.name, "scale": fields.pop("scale")}
    flags |= {f"model.kwargs.{name}": value for name, value in fields.items()}
    with config.unlocked():
        config.model.pretrained = False
        config.update_from_flattened_dict(flags)
    state = parts.make_state(
        config, *parts.make_training(config, steps=1, steps_per_epoch=1)
    )
    state = start_from(
        state,
        jax.tree.map(
            jnp.asarray,
            {"params": converted.params, "batch_stats": converted.batch_stats},
        ),
    )
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            "E235", f"--out={folder} cannot be made: {error.strerror}."
        ) from None
    inputs = {
        "prepared_sha256": "",
        "perceptual": {"network": "none"},
        "start": source,
    }
    record_config(config.to_dict(), folder, inputs)
    checkpoints = Checkpoints(folder)
    try:
        checkpoints.save(0, state, {})
    finally:
        checkpoints.close()
    words = ["--workdir", str(folder), "--config.data.root=DIR"]
    last = f"evaluate by: {command('eval')} {shlex.join(words)}"
    return f"{converted.assumed}\n{last}" if converted.assumed else last


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = command_parser("python -m daasr_jax.experiment.import_weights", __doc__)
    wanted = parser.add_mutually_exclusive_group(required=True)
    wanted.add_argument("--config", help="of the system: configs/swinir_x4.py")
    wanted.add_argument("--vgg19", action="store_true", help="torchvision's VGG-19")
    parser.add_argument(
        "--torch", required=True, type=place, help="the file to convert"
    )
    parser.add_argument(
        "--out", required=True, type=place, help="a folder; --vgg19: .npz to write"
    )
    return run_command(parser, _import, arguments)


def _import(given: argparse.Namespace) -> None:
    devices.find()
    if given.vgg19:
        last = f"sha256 {convert_vgg19(given.torch, given.out)}"
    else:
        last = import_system(given.config, given.torch, given.out)
    print(f"wrote {given.out}\n{last}")


if __name__ == "__main__":
    sys.exit(main())
