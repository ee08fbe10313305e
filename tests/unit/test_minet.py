"""MINet by hand: its attentions, its two streams, its gradients."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from daasr_jax.models.minet import ChannelSpatialAttention, LayerAttention, MINet
from tests.parity.weights import flatten, random_variables

QUICK = {"xla_backend_optimization_level": 0}
TINY = {"scale": 2, "features": 4, "groups": 1, "blocks": 1}
GATES = {
    f"{gate}/{leaf}" for gate in ("gate", "ref_gate") for leaf in ("kernel", "bias")
}


def noise(*shape):
    return np.random.default_rng(0).random(shape).astype(np.float32)


def images(scale, h=4, w=5):
    return noise(2, h, w, 1), noise(2, scale * h, scale * w, 1)


def shapes(model, lr=None, ref=None):
    if lr is None:
        lr, ref = images(model.scale)
    return jax.eval_shape(lambda: model.init(jax.random.key(0), lr, ref, train=False))


@pytest.mark.parametrize(
    ("scale", "extra"), [(2, 0), (3, 5 * 64 * 577), (4, 4 * 64 * 577)]
)
def test_parameter_counts(scale, extra):
    """That of the used part of the public code; x3 and x4 upsample by more rows."""
    leaves = jax.tree.leaves(shapes(MINet(scale=scale))["params"])
    assert sum(math.prod(leaf.shape) for leaf in leaves) == 6_748_189 + extra


def test_layer_attention_by_hand():
    """Two maps a = (1, 2), b = (1, 0): inner products 5, 1 and 1, 1."""
    maps = jnp.array([[[[[1.0, 2.0], [1.0, 0.0]]]]])
    params = {"params": {"gamma": jnp.array(0.5)}}
    low = 1 / (1 + math.e**4)  # the weight of a in its own row
    expected = [
        1 + 0.5,
        2 + 0.5 * 2 * low,
        1 + 0.5,
        0 + 0.5 * (0.5 * 2),
    ]
    got = LayerAttention().apply(params, maps)
    np.testing.assert_allclose(got.ravel(), expected, atol=1e-6)


def test_spatial_attention_is_a_convolution_of_three_axes():
    """Against a sum over all 27 shifts of the padded map."""
    x = noise(2, 4, 5, 3)
    kernel = noise(3, 3, 3, 1, 1) - 0.5
    params = {"gamma": np.float32(0.7), "kernel": kernel, "bias": np.float32(0.2)}
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (1, 1)))
    total = np.full(x.shape, 0.2)
    for i, j, k in np.ndindex(3, 3, 3):
        total += kernel[i, j, k, 0, 0] * padded[:, i : i + 4, j : j + 5, k : k + 3]
    expected = x + 0.7 / (1 + np.exp(-total)) * x
    with jax.default_matmul_precision("float32"):
        got = ChannelSpatialAttention().apply({"params": params}, x)
    np.testing.assert_allclose(got, expected, atol=1e-5)


def gradients(variables):
    """Of the mean of both pictures squared, by path."""
    model = MINet(**TINY)
    lr, ref = images(2)

    def loss(params):
        out = model.apply({"params": params}, lr, ref, train=True)
        return jnp.mean(out.sr**2) + jnp.mean(out.aux["ref_rec"] ** 2)

    grads = jax.jit(jax.grad(loss), compiler_options=QUICK)(variables["params"])
    return {name: np.asarray(value) for name, value in flatten(grads).items()}


def test_every_parameter_has_a_gradient():
    for name, grad in gradients(
        random_variables(shapes(MINet(**TINY)), seed=1)
    ).items():
        assert np.isfinite(grad).all(), name
        assert np.any(grad), name


def test_at_the_start_only_the_kernels_behind_gamma_have_none():
    model = MINet(**TINY)
    lr, ref = images(2)
    variables = jax.jit(
        lambda: model.init(jax.random.key(0), lr, ref, train=False),
        compiler_options=QUICK,
    )()
    grads = gradients(variables)
    assert {name for name, grad in grads.items() if not np.any(grad)} >= GATES
    for name in ("layers/gamma", "gate/gamma", "ref_gate/gamma"):
        assert np.any(grads[name])


def test_reference_feeds_the_target_and_not_the_other_way():
    model = MINet(**TINY)
    lr, ref = images(2)
    variables = random_variables(shapes(model), seed=1)
    run = jax.jit(
        lambda *given: model.apply(variables, *given, train=False),
        compiler_options=QUICK,
    )
    first, other_lr, other_ref = run(lr, ref), run(1 - lr, ref), run(lr, 1 - ref)
    assert first.aux["ref_rec"].shape == ref.shape
    np.testing.assert_array_equal(first.aux["ref_rec"], other_lr.aux["ref_rec"])
    assert np.abs(first.sr - other_ref.sr).max() > 1e-3


def test_errors():
    with pytest.raises(ValueError, match="scale must be one of"):
        shapes(MINet(**{**TINY, "scale": 1}))
    lr, ref = images(3)
    with pytest.raises(ValueError, match=r"ref must have the HR size \(8, 10\)"):
        shapes(MINet(**TINY), lr, ref)
