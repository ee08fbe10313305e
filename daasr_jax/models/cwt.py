"""Channel-Wise Transformer (CWT), section 3.2: attention between channels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from daasr_jax.models.init import linear
from daasr_jax.registry import PARTS

_EPSILON = 1e-5  # on the mean square, as in the layer norms


class ChannelAttention(nn.Module):
    r"""Attention of Eq. 4-5 on tokens `X (hw, C)`.

    :math:`Q, K, V = (X W_{q,k,v})^T \in R^{C \times hw}`;
    :math:`softmax(Q K^T / t)\, V`, transposed back. The C x C product and its softmax
    are float32 whatever `dtype` is, and never TF32.

    All else is of one token. So tokens can come in parts: with the collection `"sums"`
    mutable a part leaves its share of the product there, `whole_gram` joins the shares,
    and the collection `"whole"` gives the result back to each part.

    Attributes:
        heads: Groups of channels that attend among themselves.
        attention_scale: `"temperature"`: Q and K normalised over hw, learned t per
            head, so logits do not depend on the image size; `"sqrt_hw"`: t = sqrt(hw),
            the usual form; the text at hand has no formula.
        temperature: t at the start.
        projection: Mix the channels of all heads linearly at the end.
    """

    heads: int = 1
    attention_scale: str = "temperature"
    temperature: float = 1.0
    projection: bool = False
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b n c"]) -> Float[Array, "b n c"]:
        """Applies the attention.

        Raises:
            ValueError: If channels do not divide into heads, or the scale is unknown.
        """
        b, n, c = x.shape
        if c % self.heads:
            raise ValueError(f"{c} channels do not divide into {self.heads} heads.")

        def project(name: str) -> Array:
            y = linear(c, x, use_bias=False, dtype=self.dtype, name=name)
            return y.reshape(b, n, self.heads, c // self.heads)

        q, k, v = project("query"), project("key"), project("value")
        if self.is_mutable_collection("sums") and not self.is_initializing():
            self.put_variable("sums", "of_part", _sums(q, k))
        if self.attention_scale == "temperature":
            q, k = _normalise(q), _normalise(k)
            start = nn.initializers.constant(self.temperature)
            t = self.param("temperature", start, (self.heads, 1, 1))
        elif self.attention_scale == "sqrt_hw":
            t = jnp.sqrt(jnp.float32(self.get_variable("whole", "n", n)))
        else:
            raise ValueError(
                "attention_scale must be 'temperature' or 'sqrt_hw', "
                f"got {self.attention_scale!r}."
            )
        if self.has_variable("whole", "gram"):
            gram = self.get_variable("whole", "gram")
        else:
            gram = _products(q, k)
        attention = jax.nn.softmax(gram / t.reshape(1, -1, 1, 1), axis=-1).astype(
            self.dtype
        )
        y = jnp.einsum(
            "bhcd,bnhd->bnhc", attention, v, precision=jax.lax.Precision.HIGHEST
        )
        y = y.reshape(b, n, c)
        if self.projection:
            y = linear(c, y, use_bias=False, dtype=self.dtype, name="projection")
        return y


def whole_gram(sums: Mapping[str, Any], n: int, *, normalised: bool) -> Any:
    """Q K^T of all tokens from the sums over them.

    Args:
        sums: `qk (b, heads, c, c)`, `qq` and `kk (b, heads, c)`: the `"sums"` of all
            parts, added up.
        n: Number of tokens.
        normalised: Q and K are normalised, as for `attention_scale="temperature"`.
    """
    if not normalised:
        return sums["qk"]
    q, k = (1 / np.sqrt((sums[name] / n + _EPSILON) * n) for name in ("qq", "kk"))
    return sums["qk"] * q[..., :, None] * k[..., None, :]


def _sums(q: Array, k: Array) -> dict[str, Array]:
    """What `whole_gram` needs of some tokens."""
    q, k = q.astype(jnp.float32), k.astype(jnp.float32)
    qq, kk = (jnp.sum(x * x, axis=1) for x in (q, k))
    return {"qk": _products(q, k), "qq": qq, "kk": kk}


def _products(q: Array, k: Array) -> Array:
    """Q K^T of each head, float32."""
    return jnp.einsum(
        "bnhc,bnhd->bhcd",
        q,
        k,
        precision=jax.lax.Precision.HIGHEST,
        preferred_element_type=jnp.float32,
    )


def _normalise(x: Array) -> Array:
    """Divides each channel by its L2 norm over the positions (axis 1).

    The mean square gets an epsilon as in a layer norm: a channel that is almost zero
    everywhere (a crop of background) stays small, where an exact normalisation would
    give gradients of 1e6 and spoil Adam's second moment for thousands of steps.
    """
    x32 = x.astype(jnp.float32)
    mean_square = jnp.mean(x32 * x32, axis=1, keepdims=True)
    inverse = jax.lax.rsqrt((mean_square + _EPSILON) * x.shape[1])
    return (x32 * inverse).astype(x.dtype)


@PARTS.register("cwt")
class CWT(nn.Module):
    """One LN-CWT-LN-MLP block with its two residuals, on the LR grid.

    Attributes:
        mlp_ratio: Width of the hidden layer over the number of channels.
        heads, attention_scale, temperature, projection: See `ChannelAttention`.
        number: See `group.Group`; not used.
    """

    mlp_ratio: int = 2
    heads: int = 1
    attention_scale: str = "temperature"
    temperature: float = 1.0
    projection: bool = False
    number: int = 0
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, f: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        """Applies the block."""
        b, h, w, c = f.shape
        x = f.reshape(b, h * w, c)
        y = nn.LayerNorm(epsilon=1e-5, dtype=self.dtype, name="norm_attention")(x)
        attend = ChannelAttention(
            heads=self.heads,
            attention_scale=self.attention_scale,
            temperature=self.temperature,
            projection=self.projection,
            dtype=self.dtype,
            name="attention",
        )
        x = x + attend(y)
        y = nn.LayerNorm(epsilon=1e-5, dtype=self.dtype, name="norm_mlp")(x)
        y = linear(self.mlp_ratio * c, y, dtype=self.dtype, name="mlp_in")
        y = nn.gelu(y, approximate=False)
        y = linear(c, y, dtype=self.dtype, name="mlp_out")
        return (x + y).reshape(b, h, w, c)
