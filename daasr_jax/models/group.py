"""The Hierarchical Feature Alignment Group (HFAG), of which DAASR stacks six."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from typing import Any

from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array

from daasr_jax.models.conv import Conv3
from daasr_jax.models.init import linear


class Group(nn.Module):
    """Hierarchical Feature Alignment Group (HFAG), Eq. 1-3.

    Attributes:
        features: Channels C.
        structure: Makes a block F -> F_CWT from its `number`, which counts the blocks
            through the groups. A block is named after its class.
        blocks: Number of such blocks.
        align: Makes the SAT, `(F_CWT, maps, index=) -> (F_SAT, P, C)`; None leaves it
            out.
        block, residual, layer_scale: `group_block` and the others of `DAASR`.
        number: Counts the groups from 0.
    """

    features: int
    structure: Callable[..., nn.Module]
    blocks: int
    align: Callable[..., nn.Module] | None
    block: str
    residual: str
    layer_scale: float
    number: int
    dtype: DTypeLike

    @nn.compact
    def __call__(self, f, maps, *, index=None):
        """Returns `(F_i, F_CWT, (F_SAT, P, C) or None)`."""
        f_cwt = f
        for i in range(self.blocks):
            number = self.number * self.blocks + i
            name = f"{_label(self.structure)}{i}"
            y = self.structure(number=number, name=name)(f_cwt)
            f_cwt = f_cwt + self._scaled(y - f_cwt, name) if self.layer_scale else y
        if self.block == "conv":
            conv = partial(Conv3, features=self.features, dtype=self.dtype)
            y = nn.relu(conv(name="conv1")(f_cwt))
            f_cwt = f_cwt + self._scaled(conv(name="conv2")(y), "conv")
        if self.align is None:
            return f_cwt, f_cwt, None
        f_sat, p, c = self.align(name="sat")(f_cwt, maps, index=index)
        back = linear(self.features, f_sat, dtype=self.dtype, name="back")
        start = {"cwt": f_cwt, "input": f, "both": f + f_cwt}[self.residual]
        return start + back, f_cwt, (f_sat, p, c)

    def _scaled(self, branch: Array, name: str) -> Array:
        """What a block adds, times the learned scale of each channel."""
        if not self.layer_scale:
            return branch
        start = nn.initializers.constant(self.layer_scale)
        scale = self.param(f"scale_{name}", start, (self.features,))
        return branch * scale.astype(branch.dtype)[None, None, None]


def class_of(make: Any) -> Any:
    """The class of a part, which may be given with options by `functools.partial`."""
    return class_of(make.func) if isinstance(make, partial) else make


def _label(make: Any) -> str:
    """Name of a part's class in small letters: `WindowBlock` -> `window_block`."""
    return re.sub(r"(?<!^)(?=[A-Z][a-z])", "_", class_of(make).__name__).lower()
