"""What the paper's ablations put in the place of a part, by name.

Tables 2 and 3 replace the structure, Table 4 and Figure 6 the alignment and the fusion
of the SAT. `configs/ablation_x4.py` has all rows; `align = None` is the network without
SAT.

A CWT block at mlp_ratio r has (3 + 2 r) C^2 + (5 + r) C parameters besides its
temperatures. The width of one hidden layer gives the structures of Table 3 as many,
within 5 % from 24 features on (C = 64, r = 2: 29,121; Conv 28,889, SE 29,151, window
29,182; C = 24: 4,201; 4,354, 4,211, 4,215), so the table compares the operations.

References:
    J. Hu, L. Shen, G. Sun, "Squeeze-and-Excitation Networks", CVPR 2018. Z. Liu et al.,
    "Swin Transformer: Hierarchical Vision Transformer using Shifted Windows", ICCV
    2021.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from daasr_jax.models.conv import Conv3
from daasr_jax.models.detail import Gain
from daasr_jax.models.init import linear
from daasr_jax.models.sat import Fusion, GatedFusion, Matching, project_query
from daasr_jax.models.swin import WindowAttention, layer_norm
from daasr_jax.registry import PARTS

_REDUCTION = 16  # of the squeeze, as published
_LEAST = 4  # units of the squeeze: fewer may all be dead
_BUDGET_BYTES = 64 * 2**20  # of the float32 scores that cross-attention holds at once


@PARTS.register("ablations.identity")
class Identity(nn.Module):
    """No structure: F_CWT is the group's input. Table 2 "w/o CWT"."""

    number: int = 0
    dtype: DTypeLike = jnp.float32

    def __call__(self, f: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        """Returns `f`."""
        return f


@PARTS.register("ablations.conv")
class ConvBlock(nn.Module):
    """Residual (Conv3, ReLU, Conv3). Table 3 "CWT-to-Conv".

    Attributes:
        mlp_ratio: Of the CWT block whose number of parameters is matched.
        number: See `group.Group`; not used.
    """

    mlp_ratio: int = 2
    number: int = 0
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, f: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        """Applies the block."""
        c = f.shape[-1]
        hidden = _hidden(c, self.mlp_ratio, fixed=c, each=18 * c + 1)
        y = nn.relu(Conv3(features=hidden, dtype=self.dtype, name="conv1")(f))
        return f + Conv3(features=c, dtype=self.dtype, name="conv2")(y)


@PARTS.register("ablations.se")
class SEBlock(nn.Module):
    """The CWT block with a squeeze-and-excitation gate. Table 3 "CWT-to-CA(SE Block)".

    Fields as in `ConvBlock`.
    """

    mlp_ratio: int = 2
    number: int = 0
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, f: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        """Applies the block."""
        c = f.shape[-1]
        squeeze = max(_LEAST, c // _REDUCTION)
        y = layer_norm(self.dtype, "norm_attention")(f)
        mean = jnp.mean(y, axis=(1, 2), keepdims=True)
        mean = nn.relu(linear(squeeze, mean, dtype=self.dtype, name="squeeze"))
        x = f + y * nn.sigmoid(linear(c, mean, dtype=self.dtype, name="excite"))
        spent = 2 * c * squeeze + squeeze + c
        return _mlp(x, self.mlp_ratio, spent=spent, dtype=self.dtype)


@PARTS.register("ablations.window")
class WindowBlock(nn.Module):
    """The CWT block with attention within windows. Table 3 "CWT-to-S(W)MSA".

    The windows of odd blocks are moved by half of one.

    Attributes:
        mlp_ratio: Of the CWT block whose number of parameters is matched.
        heads: Of the attention.
        window: Side of a window.
        number: Of the block, see `group.Group`.
    """

    mlp_ratio: int = 2
    heads: int = 1
    window: int = 8
    number: int = 0
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, f: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        """Applies the block.

        Raises:
            ValueError: If the channels do not divide into heads.
        """
        c = f.shape[-1]
        attend = WindowAttention(
            heads=self.heads,
            window=self.window,
            shift=self.window // 2 if self.number % 2 else 0,
            dtype=self.dtype,
            name="attention",
        )
        x = f + attend(layer_norm(self.dtype, "norm_attention")(f))
        spent = 4 * c**2 + 4 * c + (2 * self.window - 1) ** 2 * self.heads
        return _mlp(x, self.mlp_ratio, spent=spent, dtype=self.dtype)


def _mlp(x: Array, mlp_ratio: int, *, spent: int, dtype: DTypeLike) -> Array:
    """LN-MLP with its residual, as wide as the parameters not yet spent allow."""
    c = x.shape[-1]
    hidden = _hidden(c, mlp_ratio, fixed=spent + 5 * c, each=2 * c + 1)
    y = linear(hidden, layer_norm(dtype, "norm_mlp")(x), dtype=dtype, name="mlp_in")
    y = nn.gelu(y, approximate=False)
    return x + linear(c, y, dtype=dtype, name="mlp_out")


def _hidden(c: int, mlp_ratio: int, *, fixed: int, each: int) -> int:
    """Width at which `fixed + each * width` is the CWT block's count."""
    wanted = (3 + 2 * mlp_ratio) * c**2 + (5 + mlp_ratio) * c
    return max(1, round((wanted - fixed) / each))


@PARTS.register("ablations.own_position")
class OwnPosition(nn.Module):
    """V at the query's own position, no search and no score.

    Table 4 "w/o K-V Matching", which is Figure 6 "w/o P & C" too.
    """

    features: int = 64
    dtype: DTypeLike = jnp.float32
    compares = False
    takes_several = False

    def __call__(
        self,
        base: Float[Array, "b h w c"] | None,
        query: Array | None,
        key: Array | None,
        value: Float[Array, "b h2 w2 d"],
    ) -> tuple[Float[Array, "b h2 w2 d"], None, None]:
        """Takes V."""
        return value, None, None


@PARTS.register("ablations.cross_attention")
class CrossAttention(nn.Module):
    """`softmax(Q K^T / sqrt(C)) V` over all positions of the tokens that are compared.

    There is no score. Table 4 "RC to CrossAlign".
    """

    features: int = 64
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self,
        base: Float[Array, "b h w c"] | None,
        query: Float[Array, "b h w d"] | None,
        key: Float[Array, "b *r h2 w2 d"],
        value: Float[Array, "b *r h2 w2 e"],
    ) -> tuple[Float[Array, "b h w e"], None, None]:
        """Attends to the reference."""
        q = project_query(base, query, features=self.features, dtype=self.dtype)
        return cross_attention(q, key, value), None, None


@PARTS.register("ablations.without_p")
class WithoutP(Matching):
    """V at the query's own position, with the score C of the search.

    Figure 6 "w/o Index Map (P)".
    """

    takes_several = False

    def __call__(self, base, query, key, value, *, index=None):
        """As `Matching`, but for T."""
        _, index, c = super().__call__(base, query, key, value, index=index)
        return value, index, c


class _TAlone:
    """A fusion that joins nothing to T."""

    features: int
    dtype: DTypeLike

    def join(self, t: Array, f_cwt: Array, enlarge: Callable[[Array], Array]) -> Array:
        """`Conv1x1(T)`."""
        return linear(self.features, t, dtype=self.dtype, name="fuse")


@PARTS.register("ablations.without_f_cwt")
class WithoutFCWT(_TAlone, Fusion):
    """`Conv1x1(T) * C`: F_CWT makes the query alone. Table 4 "w/o F_CWT"."""


@PARTS.register("ablations.gated_without_f_cwt")
class GatedWithoutFCWT(_TAlone, GatedFusion):
    """`Conv1x1(T * g)`: as `WithoutFCWT`, in the place of `GatedFusion`."""


@PARTS.register("ablations.without_c")
class WithoutC(Fusion):
    """`Conv1x1([T, F_CWT])`. Figure 6 "w/o Score Map (C)".

    The search has no gradient, so `W_q` then learns nothing.
    """

    def __call__(
        self,
        t: Array,
        f_cwt: Array,
        c: Array | None,
        enlarge: Callable[[Array], Array],
    ) -> Array:
        """F_SAT from T and F_CWT; arguments as those of `sat.Fusion`.

        Raises:
            ValueError: If there is no C to leave out.
        """
        if c is None:
            raise ValueError(
                "without_c leaves out C of a search, but the alignment makes none; "
                "leave fuse at sat.fusion."
            )
        return super().__call__(t, f_cwt, None, enlarge)


@PARTS.register("ablations.gain_without_c")
class GainWithoutC(Gain):
    """The detail weighed without C, beside `WithoutC`."""

    def __call__(self, f, bicubic, found, c):
        """As `detail.Gain`."""
        return super().__call__(f, bicubic, found, None)


def cross_attention(
    query: Float[Array, "b h w c"],
    key: Float[Array, "b *r h2 w2 c"],
    value: Float[Array, "b *r h2 w2 d"],
    *,
    budget_bytes: int = _BUDGET_BYTES,
) -> Float[Array, "b h w d"]:
    """softmax(Q K^T / sqrt(c)) V over all positions of the reference.

    Logits and softmax are float32. The queries go in chunks, which the backward pass
    computes again: no more than `budget_bytes` of scores are held at once, a few times
    that in the backward pass, where all of a 64x64 grid would be 64 MiB for each image
    and group. A chunk is one position of every image at least.
    """
    b, h, w, c = query.shape
    n, m = h * w, math.prod(key.shape[1:-1])
    k, v = key.reshape(b, m, c), value.reshape(b, m, -1)
    chunks = -(-n // max(1, budget_bytes // (4 * b * m)))
    size = -(-n // chunks)
    q = jnp.pad(query.reshape(b, n, c), ((0, 0), (0, chunks * size - n), (0, 0)))
    q = q.reshape(b, chunks, size, c).swapaxes(0, 1)

    @jax.checkpoint
    def attend(q: Array, k: Array, v: Array) -> Array:
        logits = jnp.einsum("bnc,bmc->bnm", q, k, preferred_element_type=jnp.float32)
        weights = jax.nn.softmax(logits * c**-0.5, axis=-1).astype(v.dtype)
        return jnp.einsum("bnm,bmd->bnd", weights, v)

    out = jax.lax.map(lambda q: attend(q, k, v), q)
    return out.swapaxes(0, 1).reshape(b, chunks * size, -1)[:, :n].reshape(b, h, w, -1)
