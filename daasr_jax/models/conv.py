"""The 3x3 convolution of every part, with a kernel gradient fit for CPUs.

XLA's CPU backend turns the kernel gradient of a convolution into a convolution whose
window is the whole image, four to nine times slower than its forward. Here it is a
matrix product instead, image by image: the output's gradient against the nine shifted
copies of the input. Other platforms keep XLA's own form.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.typing import Initializer
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from daasr_jax.models.init import bias_init, kernel_init

_LAYOUT = ("NHWC", "HWIO", "NHWC")


def _convolve(x: Array, kernel: Array) -> Array:
    return lax.conv_general_dilated(
        x, kernel, (1, 1), "SAME", dimension_numbers=_LAYOUT
    )


@jax.custom_vjp
def conv3x3(
    x: Float[Array, "b h w c"], kernel: Float[Array, "3 3 c d"]
) -> Float[Array, "b h w d"]:
    """3x3 convolution (cross-correlation), zero padding, stride 1, NHWC and HWIO.

    Args:
        x: Input map.
        kernel: Kernel, in the dtype of `x`.

    Returns:
        Output map of the same height and width. Reverse-mode differentiable once.
    """
    return _convolve(x, kernel)


def _forward(x: Array, kernel: Array):
    return _convolve(x, kernel), (x, kernel)


def _backward(saved, grad: Array):
    x, kernel = saved
    turned = jnp.flip(kernel, (0, 1)).swapaxes(2, 3)
    grad_kernel = lax.platform_dependent(
        x, grad, cpu=_kernel_gradient_product, default=_kernel_gradient_xla
    )
    return _convolve(grad, turned), grad_kernel.astype(kernel.dtype)


def _kernel_gradient_xla(x: Array, grad: Array) -> Array:
    shape = (3, 3, x.shape[-1], grad.shape[-1])
    zero = jnp.zeros(shape, x.dtype)
    return jax.linear_transpose(lambda k: _convolve(x, k), zero)(grad)[0]


def _kernel_gradient_product(x: Array, grad: Array) -> Array:
    _, h, w, c = x.shape
    d = grad.shape[-1]
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))

    def add(total: Array, image) -> tuple[Array, None]:
        x_i, grad_i = image
        columns = jnp.concatenate(
            [x_i[i : i + h, j : j + w] for i in range(3) for j in range(3)], axis=-1
        )
        part = lax.dot_general(
            grad_i.reshape(h * w, d),
            columns.reshape(h * w, 9 * c),
            (((0,), (0,)), ((), ())),
            preferred_element_type=jnp.float32,
        )
        return total + part, None

    total, _ = lax.scan(add, jnp.zeros((d, 9 * c), jnp.float32), (padded, grad))
    return total.T.reshape(3, 3, c, d).astype(x.dtype)


conv3x3.defvjp(_forward, _backward)


class Conv3(nn.Module):
    """3x3 convolution with bias, float32 parameters, computed in `dtype`.

    The parameters have the names and shapes of `flax.linen.Conv`.
    """

    features: int
    use_bias: bool = True
    kernel_init: Initializer = kernel_init
    bias_init: Initializer | None = None
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w d"]:
        """Applies the convolution."""
        shape = (3, 3, x.shape[-1], self.features)
        kernel = self.param("kernel", self.kernel_init, shape, jnp.float32)
        y = conv3x3(x.astype(self.dtype), kernel.astype(self.dtype))
        if self.use_bias:
            init = self.bias_init or bias_init(9 * x.shape[-1])
            bias = self.param("bias", init, (self.features,), jnp.float32)
            y = y + bias.astype(self.dtype).reshape(1, 1, 1, -1)
        return y
