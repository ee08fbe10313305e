"""The forms for CPUs and JAX's own: the same gradients; the latter in both modes."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import fastmri_x4
from daasr_jax.experiment.parts import make_model
from daasr_jax.matching import match, transferring
from daasr_jax.models import conv, vgg
from daasr_jax.models.conv import conv3x3


@pytest.fixture
def plain(monkeypatch):
    """Makes the choice of another platform."""

    def choose():
        for module in (conv, transferring, vgg):
            monkeypatch.setattr(module, "cpu_forms", lambda: False)

    return choose


def normal(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


def assert_close(actual, expected, relative=1e-5):
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        bound = relative * float(jnp.abs(b.astype(jnp.float32)).max())
        np.testing.assert_allclose(
            a.astype(jnp.float32), b.astype(jnp.float32), rtol=0, atol=bound
        )


def product(a, b):
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return sum(float(jnp.vdot(x, y)) for x, y in pairs)


def small(preset):
    """Parameters, and `parameters -> SR`."""
    config = fastmri_x4.get_config(preset)
    config.model.kwargs.update(features=4, groups=1)
    model = make_model(config)
    lr, ref = normal(0, 1, 5, 6, 1), normal(1, 1, 20, 24, 1)
    variables = jax.jit(lambda k: model.init(k, lr, ref, train=False))(
        jax.random.key(0)
    )
    rest = {k: v for k, v in variables.items() if k != "params"}
    # All parameters count, also those that start at zero.
    params = jax.tree.map(lambda p: p + 0.05, variables["params"])
    return params, lambda p: model.apply({"params": p, **rest}, lr, ref, train=False).sr


@pytest.mark.parametrize(
    "preset", [pytest.param("paper", marks=pytest.mark.full), "fast"]
)
def test_both_modes_of_the_network(preset, plain):
    params, forward = small(preset)
    v = jax.tree.map(lambda p: jnp.cos(jnp.arange(p.size)).reshape(p.shape), params)
    u = jnp.sin(jnp.arange(20.0 * 24)).reshape(1, 20, 24, 1)

    def both(p):
        out, pull = jax.vjp(forward, p)
        return out, pull(u)[0]

    out, gradient = jax.jit(both)(params)
    with pytest.raises(TypeError, match="forward-mode"):
        jax.jvp(forward, (params,), (v,))
    plain()
    again, tangent = jax.jit(lambda p, v: jax.jvp(forward, (p,), (v,)))(params, v)
    assert_close(again, out)
    np.testing.assert_allclose(product(u, tangent), product(gradient, v), rtol=1e-5)


def parts(x, kernel):
    """Of a convolution, score and transfer, a scalar."""
    y = conv3x3(x, kernel, 1)
    t, _, c = match(y, 0.5 * x, jnp.tanh(x))
    return jnp.sum(jnp.tanh(t) ** 2) + jnp.sum(c**2)


def test_second_derivatives_by_forward_over_reverse(plain):
    plain()
    x, kernel, v = normal(2, 1, 5, 6, 3), normal(3, 3, 3, 3, 3), normal(4, 3, 3, 3, 3)

    @jax.jit
    def both(kernel, v):
        slope = jax.grad(lambda k: parts(x, k))
        reverse = jax.grad(lambda k: jnp.vdot(slope(k), v))(kernel)
        return jax.jvp(slope, (kernel,), (v,))[1], reverse

    forward, reverse = both(kernel, v)
    assert float(jnp.abs(reverse).max()) > 1e-3
    assert_close(forward, reverse, 1e-4)


@pytest.mark.parametrize(
    ("dtype", "references"), [(jnp.float32, (2,)), (jnp.bfloat16, ())]
)
def test_gradients_of_the_matching_agree(dtype, references, plain):
    """Many queries choose one key: gradients in bfloat16 add up in float32."""
    query = normal(5, 2, 17, 18, 4).at[:, :3].set(0.0)
    key, value = normal(6, 2, *references, 5, 6, 4), normal(7, 2, *references, 5, 6, 3)
    maps = [x.astype(dtype) for x in (query, key, value)]
    index = jnp.zeros((2, 17, 18), jnp.int32).at[:, 9:].set(17)

    def gradients():
        def total(*maps):
            t, _, c = match(*maps, index=index)
            return jnp.sum(t.astype(jnp.float32) ** 2) + jnp.sum(jnp.cos(c))

        return jax.jit(jax.value_and_grad(total, (0, 1, 2)))(*maps)

    ours = gradients()
    plain()
    assert_close(gradients(), ours, 1e-5 if dtype == jnp.float32 else 2**-7)


def test_both_modes_of_the_perceptual_pool(plain):
    x, v = normal(10, 1, 7, 8, 3), normal(11, 1, 7, 8, 3)

    def total(x):
        return jnp.sum(jnp.sin(vgg.max_pool(x)))

    gradient = jax.grad(total)(x)
    with pytest.raises(TypeError, match="forward-mode"):
        jax.jvp(total, (x,), (v,))
    plain()
    tangent = jax.jvp(total, (x,), (v,))[1]
    np.testing.assert_allclose(tangent, jnp.vdot(gradient, v), rtol=1e-5)


@pytest.mark.parametrize("stride", [1, 2])
def test_gradients_of_the_convolution_agree(stride, plain):
    x, kernel = normal(8, 2, 7, 9, 3), normal(9, 3, 3, 3, 5)

    def gradients():
        def total(x, kernel):
            return jnp.sum(jnp.sin(conv3x3(x, kernel, stride)))

        return jax.jit(jax.grad(total, (0, 1)))(x, kernel)

    ours = gradients()
    plain()
    assert_close(gradients(), ours)
