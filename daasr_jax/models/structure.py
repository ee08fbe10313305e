"""What Table 3 puts in the place of the CWT, each with as many parameters.

The CWT block at mlp_ratio r has (3 + 2 r) C^2 + (5 + r) C parameters besides its
temperatures. The width of one hidden layer makes every replacement equal to it within
5 % from 24 features on (C = 64, r = 2: 29,121; Conv 28,889, SE 29,151, window 29,182;
C = 24: 4,201; 4,354, 4,211, 4,215), so the table compares the operations.

References:
    J. Hu, L. Shen, G. Sun, "Squeeze-and-Excitation Networks", CVPR 2018. Z. Liu et al.,
    "Swin Transformer: Hierarchical Vision Transformer using Shifted Windows", ICCV
    2021.
"""

from __future__ import annotations

import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from daasr_jax.models.conv import Conv3
from daasr_jax.models.init import linear
from daasr_jax.models.swin import WindowAttention, layer_norm

REPLACEMENTS = ("conv", "se", "window")
_REDUCTION = 16  # of the squeeze, as published
_LEAST = 4  # units of the squeeze: fewer may all be dead


class Replacement(nn.Module):
    """A block on the LR grid in the place of a CWT block.

    Attributes:
        kind: `"conv"`: residual (Conv3, ReLU, Conv3), row "CWT-to-Conv". `"se"`: the
            CWT block with a squeeze-and-excitation gate for its attention, row
            "CWT-to-CA(SE Block)". `"window"`: the CWT block with attention within
            windows, row "CWT-to-S(W)MSA".
        mlp_ratio: Of the CWT block whose number of parameters is matched.
        heads: Of the window attention.
        window: Side of a window.
        shifted: Moves the windows by half of one; every other block does.
    """

    kind: str
    mlp_ratio: int = 2
    heads: int = 1
    window: int = 8
    shifted: bool = False
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, f: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        """Applies the block.

        Raises:
            ValueError: If `kind` is unknown or the channels do not divide into heads.
        """
        if self.kind not in REPLACEMENTS:
            raise ValueError(f"kind must be one of {REPLACEMENTS}, got {self.kind!r}.")
        c = f.shape[-1]
        if self.kind == "conv":
            hidden = self._hidden(c, fixed=c, each=18 * c + 1)
            y = nn.relu(Conv3(hidden, dtype=self.dtype, name="conv1")(f))
            return f + Conv3(c, dtype=self.dtype, name="conv2")(y)
        y = layer_norm(self.dtype, "norm_attention")(f)
        if self.kind == "se":
            squeeze = max(_LEAST, c // _REDUCTION)
            spent = 2 * c * squeeze + squeeze + c
            x = f + y * self._gate(y, squeeze)
        else:
            spent = 4 * c**2 + 4 * c + (2 * self.window - 1) ** 2 * self.heads
            shift = self.window // 2 if self.shifted else 0
            x = f + WindowAttention(
                self.heads, self.window, shift, self.dtype, name="attention"
            )(y)
        hidden = self._hidden(c, fixed=spent + 5 * c, each=2 * c + 1)
        y = layer_norm(self.dtype, "norm_mlp")(x)
        y = linear(hidden, y, dtype=self.dtype, name="mlp_in")
        y = nn.gelu(y, approximate=False)
        return x + linear(c, y, dtype=self.dtype, name="mlp_out")

    def _gate(self, y: Array, squeeze: int) -> Array:
        """Weight in (0, 1) of every channel, from the means over the positions."""
        mean = jnp.mean(y, axis=(1, 2), keepdims=True)
        mean = nn.relu(linear(squeeze, mean, dtype=self.dtype, name="squeeze"))
        return nn.sigmoid(linear(y.shape[-1], mean, dtype=self.dtype, name="excite"))

    def _hidden(self, c: int, *, fixed: int, each: int) -> int:
        """Width at which `fixed + each * width` is the CWT block's count."""
        r = self.mlp_ratio
        wanted = (3 + 2 * r) * c**2 + (5 + r) * c
        return max(1, round((wanted - fixed) / each))
