"""Experiment files: `configs/hat_x4.py:published` to a locked ConfigDict."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

from daasr_jax.errors import ConfigError


def load(name: str) -> Any:
    """The configuration of a file, perhaps with its argument after a colon.

    Raises:
        ConfigError: If there is no such file, or it cannot be run (E225).
    """
    path, _, argument = name.partition(":")
    try:
        spec = importlib.util.spec_from_file_location(Path(path).stem, path)
        if spec is None or spec.loader is None:
            raise ValueError(f"{path} is no Python file")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module.get_config(*([argument] if argument else []))
    except Exception as error:  # a configuration file is a program: it may raise any
        text = " ".join(str(error).split())
        raise ConfigError("E225", f"cannot load the configuration: {text}") from error
