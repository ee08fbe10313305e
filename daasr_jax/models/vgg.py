"""The convolutions of VGG-16 and VGG-19, frozen feature extractors.

Reference: K. Simonyan and A. Zisserman, "Very deep convolutional networks for
large-scale image recognition", ICLR 2015, https://arxiv.org/abs/1409.1556.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from daasr_jax.forms import cpu_forms

WIDTHS = (64, 128, 256, 512, 512)
RELU3_3 = (2, 2, 3)  # the same layers in VGG-16 and VGG-19
VGG16 = (2, 2, 3, 3, 3)
# Value of white, mean and standard deviation of the three channels: Keras
# (`imagenet_utils.preprocess_input`, mode "caffe", BGR) and torchvision (RGB).
CONVENTIONS = {
    "caffe": (255.0, (103.939, 116.779, 123.68), (1.0, 1.0, 1.0)),
    "torchvision": (1.0, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}


@dataclasses.dataclass(frozen=True, eq=False)
class FrozenVGG:
    """A network up to conv3_3 and what its weights expect of an image.

    Attributes:
        params: `{"block1_conv1": {"kernel", "bias"}, ...}` up to `block3_conv3`,
            kernels HWIO, float32 NumPy: the parameters of `VGG`.
        preprocessing: `"caffe"` (BGR in [0, 255], the means 103.939, 116.779, 123.68
            subtracted, as in Keras) or `"torchvision"` (RGB in [0, 1], means 0.485,
            0.456, 0.406 subtracted, divided by 0.229, 0.224, 0.225).
        network: `"vgg19"` or `"vgg16"`.
        source: Where the weights come from, for log and report.
        sha256: Of the file, hexadecimal.
    """

    params: dict[str, dict[str, np.ndarray]]
    preprocessing: str
    network: str
    source: str
    sha256: str


def preprocess(
    grey: Float[Array, "b h w 1"], preprocessing: str
) -> Float[Array, "b h w 3"]:
    """The three channels a network was trained on, from grey images in [0, 1].

    Args:
        grey: Images; white is 1, computed in float32.
        preprocessing: `"caffe"` or `"torchvision"`, see `FrozenVGG`. Grey
            has the same value in every channel: BGR and RGB differ by the means only.

    Raises:
        ValueError: If `preprocessing` is unknown.
    """
    if preprocessing not in CONVENTIONS:
        raise ValueError(
            f"preprocessing must be one of {sorted(CONVENTIONS)}, "
            f"got {preprocessing!r}."
        )
    white, *constants = CONVENTIONS[preprocessing]
    mean, std = (np.array(c, np.float32).reshape(1, 1, 1, 3) for c in constants)
    channels = jnp.broadcast_to(grey.astype(jnp.float32), (*grey.shape[:-1], 3))
    return (white * channels - mean) / std


def max_pool(x: Float[Array, "b h w c"]) -> Float[Array, "b h//2 w//2 c"]:
    """Maximum of every 2x2 cell; an odd last row or column is left out.

    The gradient goes to the first maximum of a cell in row order, as in PyTorch and
    XLA. Where `cpu_forms` it goes by comparisons, in reverse only and once: XLA's own
    form takes a fifth of the gradient of `RELU3_3` on a CPU.
    """
    return _quick_pool(x) if cpu_forms() else _pool(x)


def _pool(x: Array) -> Array:
    return nn.max_pool(x, (2, 2), strides=(2, 2))


_quick_pool = jax.custom_vjp(_pool)


def _pool_forward(x: Array):
    peak = _pool(x)
    return peak, (x, peak)


def _pool_backward(saved, grad: Array):
    x, peak = saved
    b, h, w, c = peak.shape
    free = jnp.ones(peak.shape, bool)
    rows = []
    for i in (0, 1):
        row = []
        for j in (0, 1):
            first = free & (x[:, i : 2 * h : 2, j : 2 * w : 2] == peak)
            row.append(jnp.where(first, grad, 0))
            free = free & ~first
        rows.append(jnp.stack(row, axis=3))
    cells = jnp.stack(rows, axis=2).reshape(b, 2 * h, 2 * w, c)
    odd = (0, x.shape[1] - 2 * h), (0, x.shape[2] - 2 * w)
    return (jnp.pad(cells, ((0, 0), *odd, (0, 0))),)


_quick_pool.defvjp(_pool_forward, _pool_backward)


class VGG(nn.Module):
    """Blocks of 3x3 convolutions with ReLU, a 2x2 maximum between blocks.

    The parameters have Keras' names, `block1_conv1` and so on, each with `kernel`
    (HWIO) and `bias`.

    Attributes:
        blocks: Number of convolutions of each block.
        dtype: Of the computation.
        precision: Of the products; TF32 by default on recent GPUs.
    """

    blocks: tuple[int, ...] = RELU3_3
    dtype: DTypeLike | None = None
    precision: lax.Precision | None = None

    @nn.compact
    def __call__(self, x: Float[Array, "b h w 3"]) -> tuple[Array, ...]:
        """The last ReLU of every block, before its maximum: `(B, h/2^i, w/2^i, C_i)`.

        Args:
            x: Images after the preprocessing of the weights.
        """
        taps = []
        for i, convolutions in enumerate(self.blocks):
            if i:
                x = max_pool(x)
            for j in range(convolutions):
                name = f"block{i + 1}_conv{j + 1}"
                x = nn.relu(
                    nn.Conv(
                        WIDTHS[i],
                        (3, 3),
                        padding=1,
                        dtype=self.dtype,
                        precision=self.precision,
                        name=name,
                    )(x)
                )
            taps.append(x)
        return tuple(taps)
