"""Reading a PyTorch state dict: every tensor is asked for by name and used once."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np


@dataclasses.dataclass(frozen=True)
class Converted:
    """A system of this package with the weights of another implementation.

    Attributes:
        name: Under which the model is registered.
        fields: Of the model, `scale` and `channels` included.
        params: Its parameters, nested, float32.
        batch_stats: Its running statistics, nested; empty without batch norm.
        assumed: What is in no tensor and was taken as published, for the user.
    """

    name: str
    fields: dict[str, Any]
    params: dict[str, Any]
    batch_stats: dict[str, Any] = dataclasses.field(default_factory=dict)
    assumed: str = ""


class Tensors:
    """The tensors of a state dict, under a prefix.

    Args:
        state: Name -> array, PyTorch's layouts.
    """

    def __init__(self, state: Mapping[str, np.ndarray]) -> None:
        self._state = dict(state)
        self._used: set[str] = set()

    def __contains__(self, name: str) -> bool:
        return name in self._state

    def beginning(self) -> str:
        """The first names and how many there are, for a message."""
        shown = ", ".join(list(self._state)[:3]) or "none"
        return f"its tensors are {shown} ({len(self._state)} in all)"

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor, which does not count as its use.

        Raises:
            ValueError: If there is none of that name, or it holds no values in axes.
        """
        if name not in self._state:
            raise ValueError(f"it has no {name}.")
        found = self._state[name].shape
        if not found or 0 in found:
            raise ValueError(f"{name} has the shape {found}.")
        return found

    def take(self, name: str) -> np.ndarray:
        """One tensor as it is, float32.

        Raises:
            ValueError: If there is none of that name, or it is empty or not finite.
        """
        self.shape(name)
        value = np.asarray(self._state[name], np.float32)
        if not np.isfinite(value).all():
            raise ValueError(f"{name} is not finite.")
        self._used.add(name)
        return value

    def count(self, pattern: str) -> int:
        """Number of n = 0, 1, ... for which a name starts with `pattern.format(n)`."""
        n = 0
        while any(name.startswith(pattern.format(n)) for name in self._state):
            n += 1
        return n

    def conv(self, name: str) -> dict[str, np.ndarray]:
        """Convolution: `weight` OIHW to `kernel` HWIO, `bias` where there is one."""
        weight = self.take(f"{name}.weight")
        if weight.ndim != 4:
            raise ValueError(
                f"{name}.weight has the shape {weight.shape}, wanted 4 axes."
            )
        kernel = weight.transpose(2, 3, 1, 0)
        return {"kernel": np.ascontiguousarray(kernel), **self._bias(name)}

    def dense(self, name: str) -> dict[str, np.ndarray]:
        """Linear map: `weight` (out, in) to `kernel` (in, out); also of a 1x1 conv."""
        weight = self.take(f"{name}.weight")
        if weight.ndim < 2 or weight.size != weight.shape[0] * weight.shape[1]:
            raise ValueError(f"{name}.weight has the shape {weight.shape}.")
        weight = weight.reshape(weight.shape[:2])
        return {"kernel": np.ascontiguousarray(weight.T), **self._bias(name)}

    def norm(self, name: str) -> dict[str, np.ndarray]:
        """Layer or group normalisation: `weight` and `bias` to `scale` and `bias`."""
        return {
            "scale": self.take(f"{name}.weight"),
            "bias": self.take(f"{name}.bias"),
        }

    def ignore(self, *endings: str) -> None:
        """Tensors with these endings hold nothing learned (index tables, masks)."""
        self._used |= {name for name in self._state if name.endswith(endings)}

    def finish(self) -> None:
        """Checks that nothing is left.

        Raises:
            ValueError: If a tensor was not used: the file is of another network.
        """
        left = sorted(self._state.keys() - self._used)
        if left:
            more = f" and {len(left) - 1} more" if len(left) > 1 else ""
            raise ValueError(f"nothing here takes its {left[0]}{more}.")

    def _bias(self, name: str) -> dict[str, np.ndarray]:
        bias = f"{name}.bias"
        return {"bias": self.take(bias)} if bias in self else {}


def shuffled(conv: dict[str, np.ndarray], factor: int) -> dict[str, np.ndarray]:
    """Output channels from PyTorch's pixel shuffle (c, i, j) to ours (i, j, c)."""

    def move(x: np.ndarray) -> np.ndarray:
        y = x.reshape(*x.shape[:-1], -1, factor * factor)
        return np.ascontiguousarray(y.swapaxes(-1, -2)).reshape(x.shape)

    return {name: move(value) for name, value in conv.items()}
