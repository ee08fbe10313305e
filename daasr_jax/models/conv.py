"""The 3x3 convolution of every part, with gradients of any order fit for CPUs.

XLA's CPU backend turns the kernel gradient of a convolution into a convolution whose
window is the whole image, four to nine times slower than its forward. Here it is a
matrix product instead, image by image: the output's gradient against the nine shifted
copies of the input. Other platforms keep XLA's own form, which JAX differentiates in
forward mode too; `cpu_forms` chooses.

<grad, conv(x, kernel)> is linear in each of its three arguments, so the convolution and
its two gradients are each other's derivatives. Written so, the gradient of a gradient
(a gradient penalty) has the quick form as well.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.typing import Initializer
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from daasr_jax.forms import cpu_forms
from daasr_jax.models.init import bias_init, kernel_init

_LAYOUT = ("NHWC", "HWIO", "NHWC")


def _convolve(x: Array, kernel: Array, stride: int) -> Array:
    return lax.conv_general_dilated(
        x, kernel, (stride, stride), ((1, 1), (1, 1)), dimension_numbers=_LAYOUT
    )


_conv = jax.custom_vjp(_convolve, nondiff_argnums=(2,))


def conv3x3(
    x: Float[Array, "b h w c"], kernel: Float[Array, "3 3 c d"], stride: int = 1
) -> Float[Array, "b h2 w2 d"]:
    """3x3 convolution (cross-correlation), zero padding of one pixel, NHWC and HWIO.

    Args:
        x: Input map.
        kernel: Kernel, in the dtype of `x`.
        stride: s; output pixel (i, j) is centred on input pixel (s i, s j).

    Returns:
        Output map of ceil(h / s) x ceil(w / s). Differentiable any number of times; in
        reverse only where `cpu_forms`.
    """
    form = _conv if cpu_forms() else _convolve
    return form(x, kernel, stride)


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _input_gradient(
    grad: Array, kernel: Array, size: tuple[int, int], stride: int
) -> Array:
    if stride == 1:
        return _convolve(grad, jnp.flip(kernel, (0, 1)).swapaxes(2, 3), 1)
    zero = jnp.zeros((grad.shape[0], *size, kernel.shape[2]), grad.dtype)
    return jax.linear_transpose(lambda x: _convolve(x, kernel, stride), zero)(grad)[0]


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _kernel_gradient(x: Array, grad: Array, stride: int) -> Array:
    c = x.shape[-1]
    _, h, w, d = grad.shape
    tall, wide = stride * (h - 1) + 1, stride * (w - 1) + 1

    def add(total: Array, image) -> tuple[Array, None]:
        x_i, grad_i = image
        x_i = jnp.pad(x_i, ((1, 1), (1, 1), (0, 0)))  # here: padded maps add up
        columns = jnp.concatenate(
            [
                x_i[i : i + tall : stride, j : j + wide : stride]
                for i in range(3)
                for j in range(3)
            ],
            axis=-1,
        )
        part = lax.dot_general(
            grad_i.reshape(h * w, d),
            columns.reshape(h * w, 9 * c),
            (((0,), (0,)), ((), ())),
            preferred_element_type=jnp.float32,
        )
        return total + part, None

    total, _ = lax.scan(add, jnp.zeros((d, 9 * c), jnp.float32), (x, grad))
    return total.T.reshape(3, 3, c, d).astype(x.dtype)


def _of_output(stride: int, saved, grad: Array):
    x, kernel = saved
    return (
        _input_gradient(grad, kernel, x.shape[1:3], stride),
        _kernel_gradient(x, grad, stride),
    )


def _of_input_gradient(size: tuple[int, int], stride: int, saved, x: Array):
    grad, kernel = saved
    return _conv(x, kernel, stride), _kernel_gradient(x, grad, stride)


def _of_kernel_gradient(stride: int, saved, kernel: Array):
    x, grad = saved
    return (
        _input_gradient(grad, kernel, x.shape[1:3], stride),
        _conv(x, kernel, stride),
    )


_conv.defvjp(lambda x, k, s: (_conv(x, k, s), (x, k)), _of_output)
_input_gradient.defvjp(
    lambda g, k, size, s: (_input_gradient(g, k, size, s), (g, k)), _of_input_gradient
)
_kernel_gradient.defvjp(
    lambda x, g, s: (_kernel_gradient(x, g, s), (x, g)), _of_kernel_gradient
)


class Conv3(nn.Module):
    """3x3 convolution with bias, float32 parameters, computed in `dtype`.

    The parameters have the names and shapes of `flax.linen.Conv`. Zero padding of one
    pixel, PyTorch's `padding=1`; Flax's `"SAME"` differs from it where `stride` is 2.
    """

    features: int
    use_bias: bool = True
    kernel_init: Initializer = kernel_init
    bias_init: Initializer | None = None
    dtype: DTypeLike = jnp.float32
    stride: int = 1

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 d"]:
        """Applies the convolution."""
        shape = (3, 3, x.shape[-1], self.features)
        kernel = self.param("kernel", self.kernel_init, shape, jnp.float32)
        y = conv3x3(x.astype(self.dtype), kernel.astype(self.dtype), self.stride)
        if self.use_bias:
            init = self.bias_init or bias_init(9 * x.shape[-1])
            bias = self.param("bias", init, (self.features,), jnp.float32)
            y = y + bias.astype(self.dtype).reshape(1, 1, 1, -1)
        return y
