"""Names to classes and functions, imported on first use; a new item needs no list."""

from __future__ import annotations

import difflib
import functools
import importlib
import pkgutil
from collections.abc import Callable, Mapping
from typing import Any

from daasr_jax.errors import ConfigError, checked


class Registry:
    """`"file"` or `"file.item"` -> an object registered in `package/file.py`.

    Args:
        package: Dotted package that holds one file per item, such as
            `"daasr_jax.models"`.

    Example:
        >>> MODELS.get("daasr").__name__
        'DAASR'
    """

    def __init__(self, package: str) -> None:
        self._package = package
        self._items: dict[str, Any] = {}

    def register(self, name: str) -> Callable[[Any], Any]:
        """Decorator that files the item under `name`; a name is given once."""

        def add(item: Any) -> Any:
            if name in self._items:
                raise KeyError(f"{name!r} is already registered in {self._package}.")
            self._items[name] = item
            return item

        return add

    def modules(self) -> list[str]:
        """Files of the package, each of which may register items."""
        package = importlib.import_module(self._package)
        names = (m.name for m in pkgutil.iter_modules(package.__path__))
        return sorted(name for name in names if not name.startswith("_"))

    def names(self) -> list[str]:
        """All registered names."""
        for module in self.modules():
            importlib.import_module(f"{self._package}.{module}")
        return sorted(self._items)

    def name_of(self, item: Any) -> str:
        """The name under which an item is registered."""
        return next(name for name, known in self._items.items() if known is item)

    def get(self, name: str) -> Any:
        """The item of that name.

        Raises:
            ConfigError: If no file registers it; the message has the nearest names.
        """
        module = name.split(".")[0]
        if name not in self._items and module in self.modules():
            importlib.import_module(f"{self._package}.{module}")
        if name not in self._items and name not in (known := self.names()):
            near = difflib.get_close_matches(name, known, n=3, cutoff=0.3) or known
            raise ConfigError(
                "E227", f"{self._package} has no {name!r}; nearest: {', '.join(near)}"
            )
        return self._items[name]


MODELS = Registry("daasr_jax.models")
# Of DAASR: structures, alignments and fusions.
PARTS = Registry("daasr_jax.models")
LOSSES = Registry("daasr_jax.losses")


def resolved(given: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of a model: parts made, what is None left to the model's default.

    Args:
        given: Keyword -> value. A part is a mapping: its `name`, and its options, None
            for their defaults. A part named `"none"` is left out: None is the argument.

    Raises:
        ConfigError: If a part has an unknown name (E227) or option (E210).
    """
    parts = {k: _made(v) for k, v in given.items() if hasattr(v, "items")}
    return {k: v for k, v in given.items() if v is not None} | parts


def _made(given: Mapping[str, Any]) -> Callable[..., Any] | None:
    if given["name"] == "none":
        return None
    options = {k: v for k, v in given.items() if k != "name" and v is not None}
    make = functools.partial(PARTS.get(given["name"]), **options)
    checked(make)
    return make
