"""L1 terms of Eq. 12-14: final reconstruction, structure (CWT) and texture (SAT).

`pixel.mse` is the mean squared error that SRCNN and MCSR train with.

A loss is `(outputs, hr, **context) -> scalar float32`. A term whose picture the model
does not give (the SAT picture of a network without SAT) is zero.
"""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float

from daasr_jax.models.outputs import Outputs
from daasr_jax.registry import LOSSES


def l1(pred: Float[Array, "*n h w 1"], hr: Float[Array, "*m h w 1"]) -> Array:
    """Mean absolute difference, float32; `pred` may have leading axes over `hr`."""
    difference = pred.astype(jnp.float32) - jnp.broadcast_to(
        hr.astype(jnp.float32), pred.shape
    )
    return jnp.mean(jnp.abs(difference))


def mse(pred: Float[Array, "b h w 1"], hr: Float[Array, "b h w 1"]) -> Array:
    """Mean squared difference, float32."""
    difference = pred.astype(jnp.float32) - hr.astype(jnp.float32)
    return jnp.mean(difference**2)


@LOSSES.register("pixel.rec")
def reconstruction(outputs: Outputs, hr: Float[Array, "b h w 1"], **_) -> Array:
    """L_rec of Eq. 14: L1 between SR and HR, in the intensity unit of `hr`."""
    return l1(outputs.sr, hr)


@LOSSES.register("pixel.mse")
def squared(outputs: Outputs, hr: Float[Array, "b h w 1"], **_) -> Array:
    """Mean squared error between SR and HR, in the squared unit of `hr`."""
    return mse(outputs.sr, hr)


@LOSSES.register("pixel.cwt")
def structure(outputs: Outputs, hr: Float[Array, "b h w 1"], **_) -> Array:
    """L_CWT, Eq. 12: L1 of the pictures of the CWT heads, averaged over heads."""
    return _auxiliary(outputs, hr, "cwt")


@LOSSES.register("pixel.sat")
def texture(outputs: Outputs, hr: Float[Array, "b h w 1"], **_) -> Array:
    """L1 part of L_SAT, Eq. 13: L1 of the picture of the SAT head."""
    return _auxiliary(outputs, hr, "sat")


def _auxiliary(outputs: Outputs, hr: Array, name: str) -> Array:
    if name not in outputs.aux:
        return jnp.zeros((), jnp.float32)
    return l1(outputs.aux[name], hr[None])
