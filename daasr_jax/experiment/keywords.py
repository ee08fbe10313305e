"""The keywords of models in a configuration come from the fields of their classes."""

from __future__ import annotations

import dataclasses
from typing import Any

from flax import linen as nn
from ml_collections import ConfigDict, config_dict

from daasr_jax.registry import MODELS, PARTS

# Fields that the configuration has elsewhere, or that a model gives its parts.
_NOT_OF_A_MODEL = ("parent", "name", "scale", "axis_name", "dtype")
_NOT_OF_A_PART = (*_NOT_OF_A_MODEL, "features", "number")


def keywords(model: str, **changes: Any) -> ConfigDict:
    """Every keyword of a model with its default; a part by its name, see `part`.

    Args:
        model: Registered name, such as `"daasr"`.
        **changes: Keywords with another value; a part by its class.
    """
    fields = {
        field.name: changes.pop(field.name, field.default)
        for field in dataclasses.fields(MODELS.get(model))
        if field.name not in _NOT_OF_A_MODEL
    }
    if changes:
        raise ValueError(f"{model} has no keyword {', '.join(changes)}.")
    return ConfigDict({name: _written(value) for name, value in fields.items()})


def _written(value: Any) -> Any:
    if isinstance(value, type) and issubclass(value, nn.Module):
        return part(PARTS.name_of(value))
    return ConfigDict({"name": "none"}) if value is None else value


def blank(model: str) -> ConfigDict:
    """Every keyword of a model, empty: the model that is named decides."""
    given = keywords(model)
    return ConfigDict({k: config_dict.placeholder(type(v)) for k, v in given.items()})


def part(name: str) -> ConfigDict:
    """A part of a model: its name, and its options, empty for their defaults.

    Args:
        name: Registered name, such as `"sat.matching"`.

    Raises:
        ValueError: If an option has no default, whose type it would have.
    """
    given = ConfigDict({"name": name})
    for field in dataclasses.fields(PARTS.get(name)):
        if field.name in _NOT_OF_A_PART:
            continue
        if field.default is dataclasses.MISSING:
            raise ValueError(f"{name}: option {field.name} needs a default.")
        kind = str if field.default is None else type(field.default)
        given[field.name] = config_dict.placeholder(kind)
    return given
