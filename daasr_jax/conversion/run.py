"""A folder with converted weights that is a run like any other."""

from __future__ import annotations

import importlib
import shlex
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from daasr_jax import build
from daasr_jax.conversion.tensors import Converted
from daasr_jax.errors import ConfigError
from daasr_jax.provenance import record_config
from daasr_jax.training.checkpoints import Checkpoints
from daasr_jax.training.state import start_from


def write_run(
    converted: Converted, folder: Path, system: str, source: dict[str, str]
) -> str:
    """Writes `config.json` and a checkpoint at step 0, which is nobody's training.

    Args:
        converted: The weights and the model that holds them.
        folder: Of the run, made where it is absent.
        system: Whose configuration is taken, `configs/<system>_x4.py`.
        source: What names the weights in reports: `converted`, `sha256`.

    Returns:
        What was assumed, if anything, and the command that evaluates the run, but for
        the place of the data.

    Raises:
        ConfigError: If the configurations are not there, or the folder cannot be
            written.
        ValueError: If the weights do not fit the model.
    """
    try:
        module = importlib.import_module(f"configs.{system}_x4")
    except ImportError:
        raise ConfigError(
            "E235", "configs/ is not found; run this from the repository's folder."
        ) from None
    config: Any = module.get_config()
    fields = dict(converted.fields)
    flags = {"model.name": converted.name, "scale": fields.pop("scale")}
    flags |= {f"model.kwargs.{name}": value for name, value in fields.items()}
    with config.unlocked():
        config.model.pretrained = False
        config.update_from_flattened_dict(flags)
    state = build.make_state(
        config, *build.make_training(config, steps=1, steps_per_epoch=1)
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
    words = ["python", "eval.py", "--config", f"configs/{system}_x4.py"]
    words += [f"--config.{name}={_flag(value)}" for name, value in flags.items()]
    words += ["--workdir", str(folder), "--config.data.root=DIR"]
    command = f"evaluate by: {shlex.join(words)}"
    return f"{converted.assumed}\n{command}" if converted.assumed else command


def _flag(value: Any) -> str:
    return "".join(str(value).split())
