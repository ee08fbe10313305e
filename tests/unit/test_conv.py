"""The 3x3 convolution and its own gradient, against XLA's."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax import lax
from jax.test_util import check_grads

from daasr_jax.models.conv import Conv3, conv3x3


def reference(x, kernel, stride=1):
    return lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        ((1, 1), (1, 1)),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


def arrays(b, h, w, c, d):
    rng = np.random.default_rng(0)
    shapes = [(b, h, w, c), (3, 3, c, d), (b, h, w, d)]
    return [jnp.asarray(rng.standard_normal(s), jnp.float32) for s in shapes]


def assert_close(actual, expected, relative):
    bound = relative * float(jnp.abs(expected.astype(jnp.float32)).max())
    np.testing.assert_allclose(
        actual.astype(jnp.float32), expected.astype(jnp.float32), rtol=0, atol=bound
    )


def vjp(form, x, kernel, cotangent):
    out, pull = jax.vjp(form, x, kernel)
    return out, *pull(cotangent)


@pytest.mark.parametrize(
    "shape", [(2, 7, 9, 3, 5), (1, 1, 1, 2, 2), (3, 2, 8, 1, 4), (1, 16, 12, 8, 1)]
)
def test_output_and_gradients(shape):
    given = arrays(*shape)
    ours = jax.jit(lambda *a: vjp(conv3x3, *a))(*given)
    theirs = vjp(reference, *given)
    for a, b in zip(ours, theirs, strict=True):
        assert a.shape == b.shape
        assert_close(a, b, 1e-5)


@pytest.mark.parametrize("stride", [2, 3])
@pytest.mark.parametrize("shape", [(2, 7, 9, 3, 5), (1, 1, 1, 2, 2), (3, 2, 8, 1, 4)])
def test_strided(shape, stride):
    b, h, w, c, d = shape
    x, kernel, _ = arrays(*shape)
    cotangent = arrays(b, -(-h // stride), -(-w // stride), c, d)[2]
    ours = jax.jit(lambda *a: vjp(lambda x, k: conv3x3(x, k, stride), *a))(
        x, kernel, cotangent
    )
    theirs = vjp(lambda x, k: reference(x, k, stride), x, kernel, cotangent)
    for a, b in zip(ours, theirs, strict=True):
        assert a.shape == b.shape
        assert_close(a, b, 1e-5)


@pytest.mark.parametrize("stride", [1, 2])
def test_gradients_of_gradients(stride):
    """Of a scalar with every second derivative, by reverse over reverse."""
    x, kernel, _ = arrays(2, 5, 6, 2, 3)
    towards = (jnp.cos(x), jnp.sin(kernel))

    def second(form):
        def scalar(x, kernel):
            return jnp.sum(jnp.tanh(form(x, kernel, stride)) ** 2)

        def slope(x, kernel):
            by_x, by_kernel = jax.grad(scalar, argnums=(0, 1))(x, kernel)
            return jnp.sum(by_x * towards[0]) + jnp.sum(by_kernel * towards[1])

        return jax.jit(jax.grad(slope, argnums=(0, 1)))(x, kernel)

    for a, b in zip(second(conv3x3), second(reference), strict=True):
        assert_close(a, b, 1e-5)


def test_second_order_numerically():
    x, kernel, _ = arrays(1, 4, 5, 2, 2)
    for stride in (1, 2):
        check_grads(
            lambda x, k, s=stride: jnp.tanh(conv3x3(x, k, s)),
            (0.3 * x, 0.3 * kernel),
            order=2,
            modes=["rev"],
            atol=2e-2,
            rtol=2e-2,
        )


def test_stride_two_starts_at_the_first_pixel():
    """PyTorch's padding of one; "SAME" would start at the second at an even size."""
    x = jnp.arange(16.0).reshape(1, 4, 4, 1)
    kernel = jnp.zeros((3, 3, 1, 1)).at[1, 1].set(1.0)
    np.testing.assert_array_equal(conv3x3(x, kernel, 2)[0, ..., 0], [[0, 2], [8, 10]])


def test_one_pixel_by_hand():
    x = jnp.zeros((1, 3, 3, 1)).at[0, 0, 0, 0].set(1.0)
    kernel = jnp.arange(9.0).reshape(3, 3, 1, 1)
    # Cross-correlation: the centre tap sees the pixel at its place, the corner tap
    # (0, 0) sees it from one row below and one column to the right.
    expected = [[4.0, 3.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 0.0]]
    np.testing.assert_array_equal(conv3x3(x, kernel)[0, ..., 0], expected)


def test_vmap():
    x, kernel, cotangent = (jnp.stack([a, 2 * a + 1]) for a in arrays(2, 5, 6, 3, 4))
    ours = jax.jit(jax.vmap(lambda *a: vjp(conv3x3, *a)))(x, kernel, cotangent)
    theirs = jax.vmap(lambda *a: vjp(reference, *a))(x, kernel, cotangent)
    for a, b in zip(ours, theirs, strict=True):
        assert_close(a, b, 1e-5)


def test_vmap_over_images_only():
    x, kernel, cotangent = arrays(3, 5, 6, 3, 4)
    form = jax.vmap(lambda x, g: vjp(conv3x3, x[None], kernel, g[None])[2])
    total = jnp.sum(form(x, cotangent), 0)
    assert_close(total, vjp(reference, x, kernel, cotangent)[2], 1e-5)


def test_bfloat16():
    given = [a.astype(jnp.bfloat16) for a in arrays(2, 6, 6, 4, 4)]
    ours = jax.jit(lambda *a: vjp(conv3x3, *a))(*given)
    theirs = vjp(reference, *(a.astype(jnp.float32) for a in given))
    for a, b in zip(ours, theirs, strict=True):
        assert a.dtype == jnp.bfloat16
        assert_close(a, b, 0.01)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("use_bias", [True, False])
def test_module_is_that_of_flax(use_bias, stride):
    x = arrays(2, 6, 7, 3, 5)[0]
    ours = Conv3(5, use_bias, stride=stride)
    theirs = nn.Conv(5, (3, 3), (stride, stride), ((1, 1), (1, 1)), use_bias=use_bias)
    a, b = (m.init(jax.random.key(0), x) for m in (ours, theirs))
    assert jax.tree.structure(a) == jax.tree.structure(b)
    assert jax.tree.map(jnp.shape, a) == jax.tree.map(jnp.shape, b)
    variables = jax.tree.map(lambda v: v + 0.1, a)
    assert_close(ours.apply(variables, x), theirs.apply(variables, x), 1e-5)


def test_module_in_bfloat16_keeps_float32_parameters():
    module = Conv3(4, dtype=jnp.bfloat16)
    x = arrays(1, 6, 6, 3, 4)[0]
    variables = module.init(jax.random.key(0), x)
    assert {v.dtype for v in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    assert module.apply(variables, x).dtype == jnp.bfloat16
    grads = jax.grad(lambda v: jnp.sum(module.apply(v, x).astype(jnp.float32) ** 2))(
        variables
    )
    for grad in jax.tree.leaves(grads):
        assert grad.dtype == jnp.float32
        assert np.isfinite(grad).all()
