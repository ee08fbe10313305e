"""Data consistency in k-space, around any model."""

from __future__ import annotations

from typing import Any

from flax import linen as nn
from jaxtyping import Array, Float

from daasr_jax.models.outputs import Outputs
from daasr_jax.resampling import replace_centre


class DataConsistent(nn.Module):
    r"""A model whose SR has the centre of k-space that LR was made from.

    :math:`SR' = SR + D^+ (LR - D\,SR)`, see `resampling.replace_centre`: the samples
    that a scan of LR has measured are kept, and the model adds those beyond. This is
    right for LR images of the degradation D, `"kspace"`, alone. The other pictures, in
    `aux`, are the model's.

    It has no variables of its own, and those of the model have the same names as
    without it: checkpoints of either are of both.

    Attributes:
        model: Any registered one.
        scale: s.
    """

    model: nn.Module
    scale: int = 4

    def setup(self) -> None:
        """Gives the model the names of this module."""
        nn.share_scope(self, self.model)

    def __call__(
        self, lr: Float[Array, "b h w 1"], ref: Float[Array, "b *r H W 1"], **how: Any
    ) -> Outputs:
        """The model's outputs, `sr` corrected, float32.

        Args:
            lr: Input of the model.
            ref: Reference.
            how: Such as `train`, for the model.
        """
        outputs: Any = self.model(lr, ref, **how)  # pyright: ignore
        return outputs.replace(sr=replace_centre(outputs.sr, lr, self.scale))
