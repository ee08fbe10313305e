"""Experiment files: `configs/hat_x4.py:published` or `hat_x4:published`, found and run.

The files import one another from `configs`: that package has the user's folder of that
name, where there is one, and the files that come with this package after it.
"""

from __future__ import annotations

import difflib
import importlib.util
import sys
import types
from importlib.machinery import SourceFileLoader
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from daasr_jax.errors import ConfigError
from daasr_jax.experiment.installation import shipped_folder
from daasr_jax.experiment.places import place

Config = Any  # an ml_collections.ConfigDict, whose attributes no checker knows


def load(name: str) -> Config:
    """The configuration of a file, locked.

    Args:
        name: The file, see `locate`, perhaps with an argument of its `get_config` after
            a colon; or the `config.json` of a run.

    Raises:
        ConfigError: If there is no such file, or it cannot be run (E225).
    """
    file, colon, argument = name.partition(":")
    try:
        if Path(name).suffix == ".json":
            from daasr_jax.experiment.record import configuration_of  # reads this

            return ConfigDict(configuration_of(Path(name))).lock()
        path = locate(file)
        _offer_shipped()
        loader = SourceFileLoader("experiment_file", str(path))
        spec = importlib.util.spec_from_loader(loader.name, loader)
        assert spec is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[loader.name] = module  # dataclasses look their module up
        loader.exec_module(module)
        if not hasattr(module, "get_config"):
            raise AttributeError(f"{path} has no get_config")
        config = module.get_config(*([argument] if colon else []))
        if not isinstance(config, ConfigDict):
            raise TypeError(f"get_config of {path} returns {type(config).__name__}")
        return config.lock()
    except Exception as error:  # a configuration file is a program: it may raise any
        text = " ".join(str(error).split()) or repr(error)
        raise ConfigError("E225", f"cannot load the configuration: {text}") from error


def locate(file: str) -> Path:
    """The file that is meant: the user's where there is one, else a shipped one.

    Args:
        file: A path. What is not there as such is looked for by its name, if it is a
            bare name, with or without `.py`, or in `configs/`: here, in `configs/`
            here, among the files that come with the package.

    Raises:
        FileNotFoundError: If there is none; the message has the nearest shipped names.

    Example:
        >>> locate("hat_x4").name, locate("configs/hat_x4.py").name
        ('hat_x4.py', 'hat_x4.py')
        >>> locate("hat_x5")  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        FileNotFoundError: there is no 'hat_x5'; nearest: hat_x4, ...
    """
    path = place(file)
    places = [path]
    if path.parent in (Path("."), Path("configs")) and path.suffix in ("", ".py"):
        name = f"{path.stem}.py"
        places += [Path(name), Path("configs", name), shipped_folder() / name]
    for found in places:
        if found.is_file():
            return found
    names = shipped()
    near = difflib.get_close_matches(path.stem, names, n=3, cutoff=0.3) or names
    raise FileNotFoundError(f"there is no {file!r}; nearest: {', '.join(near)}")


def shipped() -> list[str]:
    """Names of the configurations that come with the package."""
    return sorted(
        path.stem
        for path in shipped_folder().glob("*.py")
        if "\ndef get_config(" in path.read_text(encoding="utf-8")
    )


def _offer_shipped() -> None:
    """Lets `from configs import fastmri_x4` find the shipped file after the user's."""
    loaded, shipped = sys.modules.get("configs"), str(shipped_folder())
    if loaded is not None:
        places = list(getattr(loaded, "__path__", ()))
    else:
        spec = importlib.util.find_spec("configs")
        places = list((spec and spec.submodule_search_locations) or ())
    if shipped not in places:
        package = sys.modules["configs"] = types.ModuleType("configs")
        package.__path__ = [*places, shipped]
