"""Terms of the multi-contrast systems: pictures that are not the super-resolved one.

MINet (C.-M. Feng et al., "Multi-Contrast MRI Super-Resolution via a Multi-Stage
Integration Network", MICCAI 2021) trains with 0.3 `pixel.rec` +
0.7 `multi_contrast.reference`. A term whose picture the model does not give is zero.
"""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float

from daasr_jax.losses.pixel import l1, mse
from daasr_jax.models.outputs import Outputs
from daasr_jax.registry import LOSSES
from daasr_jax.resampling import downsample


@LOSSES.register("multi_contrast.reference")
def reference(
    outputs: Outputs,
    hr: Float[Array, "b h w 1"],
    *,
    ref: Float[Array, "b h w 1"] | None = None,
    **_,
) -> Array:
    """L1 between the picture `ref_rec` and the reference, scalar float32.

    Args:
        outputs: Of the model.
        hr: Not used.
        ref: The reference the model was given.

    Raises:
        ValueError: If the model gives `ref_rec` and `ref` is missing.
    """
    if "ref_rec" not in outputs.aux:
        return jnp.zeros((), jnp.float32)
    if ref is None:
        raise ValueError("ref must be the reference of the batch, got None.")
    return l1(outputs.aux["ref_rec"], ref)


@LOSSES.register("multi_contrast.level1")
def level1(outputs: Outputs, hr: Float[Array, "b h w 1"], **_) -> Array:
    """Mean squared error of the picture `level1`, scalar float32.

    The target is HR, reduced bicubically to the grid of that picture.

    Raises:
        ValueError: If the picture's size does not divide that of `hr`.
    """
    if "level1" not in outputs.aux:
        return jnp.zeros((), jnp.float32)
    picture = outputs.aux["level1"]
    scale = max(1, hr.shape[1] // picture.shape[1])
    if hr.shape[1:3] != tuple(scale * n for n in picture.shape[1:3]):
        raise ValueError(
            f"hr must be a multiple of level1's {picture.shape[1:3]}, "
            f"got {hr.shape[1:3]}."
        )
    return mse(picture, downsample(hr.astype(jnp.float32), scale))
