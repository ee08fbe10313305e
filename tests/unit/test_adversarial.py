"""Discriminator and adversarial objectives: by hand, and PyTorch's golden arrays."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from daasr_jax.losses.adversarial import OBJECTIVES, discriminator_loss, generator_loss
from daasr_jax.models.discriminator import PatchDiscriminator
from tests.parity.adversarial_cases import GOLDEN, assert_close, inputs_of, jax_results
from tests.parity.weights import fingerprint

QUICK = {"xla_backend_optimization_level": 0}
HALF = jnp.full((2, 1, 1, 1), 0.5)


def small(**fields):
    module = PatchDiscriminator(**({"features": 2, "stages": 2} | fields))
    return module, module.init(jax.random.key(0), jnp.zeros((1, 8, 8, 1)))


def images(seed, n=2, side=8):
    rng = np.random.default_rng(seed)
    return jnp.asarray(rng.random((n, side, side, 1)), jnp.float32)


def d_loss(objective, discriminate, real, fake, mix=HALF, penalty_weight=10.0):
    return discriminator_loss(
        objective, discriminate, real, fake, mix=mix, penalty_weight=penalty_weight
    )


def test_golden():
    with np.load(GOLDEN, allow_pickle=False) as file:
        expected = {key: file[key] for key in file.files}
    np.testing.assert_allclose(
        fingerprint(*inputs_of("golden")), expected.pop("fingerprint"), rtol=1e-9
    )
    assert_close(jax_results("golden"), expected)


@pytest.mark.parametrize("stages", [1, 3])
def test_shape_at_every_size(stages):
    module = PatchDiscriminator(features=2, stages=stages)
    for h, w in [(n, n + 7) for n in range(1, 50)] + [(256, 255), (160, 20), (80, 81)]:
        x = jax.ShapeDtypeStruct((1, h, w, 1), jnp.float32)
        out, variables = jax.eval_shape(module.init_with_output, jax.random.key(0), x)
        cells = [math.ceil(n / 2**stages) for n in (h, w)]
        assert out.shape == (1, *cells, 1), (h, w)
        assert out.dtype == jnp.float32
        assert variables["params"]["out"]["kernel"].shape[2] == 2**stages


@pytest.mark.parametrize("side", [1, 2, 5])
def test_tiny_images(side):
    module, variables = small(stages=3)
    assert np.isfinite(module.apply(variables, images(0, side=side))).all()


def test_default_widths():
    tree = jax.eval_shape(
        PatchDiscriminator().init, jax.random.key(0), jnp.zeros((1, 8, 8, 1))
    )["params"]
    shapes = {name: layer["kernel"].shape for name, layer in tree.items()}
    assert shapes == {
        "stage0_conv1": (3, 3, 1, 64),
        "stage0_conv2": (3, 3, 64, 64),
        "stage1_conv1": (3, 3, 64, 128),
        "stage1_conv2": (3, 3, 128, 128),
        "stage2_conv1": (3, 3, 128, 256),
        "stage2_conv2": (3, 3, 256, 256),
        "out": (3, 3, 256, 1),
    }


@pytest.mark.parametrize(("stages", "side"), [(1, 9), (2, 21), (3, 45)])
def test_receptive_field(stages, side):
    module, variables = small(stages=stages)
    assert module.receptive_field == side
    x = images(0, n=1, side=64)
    centre = 32 // 2**stages
    seen = jax.grad(lambda x: module.apply(variables, x)[0, centre, centre, 0])(x)
    assert (np.abs(seen[0, ..., 0]).max(1) > 0).sum() == side
    assert (np.abs(seen[0, ..., 0]).max(0) > 0).sum() == side


def test_bfloat16_gives_float32_logits_and_parameters():
    module, variables = small(dtype=jnp.bfloat16)
    wide, _ = small()
    assert {v.dtype for v in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    x = images(1)
    logits = module.apply(variables, x)
    assert logits.dtype == jnp.float32
    np.testing.assert_allclose(logits, wide.apply(variables, x), atol=0.02)


@pytest.mark.parametrize("field", ["features", "stages"])
def test_refuses_an_empty_network(field):
    with pytest.raises(ValueError, match=f"{field} must be 1 or more, got 0"):
        small(**{field: 0})


def test_images_are_judged_on_their_own():
    module, variables = small()
    x = images(2, n=3)
    together = module.apply(variables, x)
    other = x.at[1:].set(images(3, n=2))
    np.testing.assert_array_equal(together[0], module.apply(variables, other)[0])
    np.testing.assert_allclose(
        together[:1], module.apply(variables, x[:1]), rtol=1e-5, atol=1e-7
    )


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_gradient_of_a_batch_is_the_mean_of_its_images(objective):
    """So a batch may be spread over devices and the gradients averaged."""
    module, variables = small(stages=1)
    real, fake, mix = images(4), images(5), jnp.array([0.2, 0.7]).reshape(2, 1, 1, 1)

    def gradient(real, fake, mix):
        return jax.grad(
            lambda v: d_loss(objective, lambda x: module.apply(v, x), real, fake, mix)[
                0
            ]
        )(variables)

    run = jax.jit(gradient, compiler_options=QUICK)
    parts = [run(real[i : i + 1], fake[i : i + 1], mix[i : i + 1]) for i in range(2)]
    mean = jax.tree.map(lambda a, b: (a + b) / 2, *parts)
    for a, b in zip(*map(jax.tree.leaves, (mean, run(real, fake, mix))), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("constant", [False, True])
def test_gradients_are_finite(objective, constant):
    """Also on black images, where real and fake agree."""
    module, variables = small()
    real, fake = (jnp.zeros((2, 8, 8, 1)),) * 2 if constant else (images(6), images(7))

    def both(v):
        def judge(x):
            return module.apply(v, x)

        total, _ = d_loss(objective, judge, real, fake)
        return total + generator_loss(objective, judge(fake))

    gradients = jax.jit(jax.grad(both), compiler_options=QUICK)(variables)
    for path, gradient in jax.tree.leaves_with_path(gradients):
        assert np.isfinite(gradient).all(), path
        if not constant:
            assert np.abs(gradient).max() > 0, path


def test_bce_by_hand():
    """Logits 0 and log 3: sigmoids 1/2 and 3/4."""
    real, fake = jnp.zeros((2, 1, 2, 1)), jnp.full((2, 1, 2, 1), math.log(3.0))
    total, terms = d_loss("bce", lambda x: x, real, fake)
    assert set(terms) == {"real", "fake"}
    assert float(terms["real"]) == pytest.approx(math.log(2), rel=1e-6)
    assert float(terms["fake"]) == pytest.approx(math.log(4), rel=1e-6)
    assert float(total) == pytest.approx(math.log(8), rel=1e-6)
    assert float(generator_loss("bce", fake)) == pytest.approx(
        math.log(4 / 3), rel=1e-6
    )


def test_wgan_gp_by_hand():
    """D = x^2 on 2x2 pixels: its mean's gradient is x / 2, of norm u at x = u."""
    real, fake = jnp.ones((2, 2, 2, 1)), jnp.zeros((2, 2, 2, 1))
    mix = jnp.array([0.25, 0.75]).reshape(2, 1, 1, 1)
    total, terms = d_loss("wgan-gp", jnp.square, real, fake, mix, penalty_weight=4.0)
    assert {k: float(v) for k, v in terms.items()} == pytest.approx(
        {"real": -1.0, "fake": 0.0, "penalty": (0.75**2 + 0.25**2) / 2}
    )
    assert float(total) == pytest.approx(-1.0 + 4.0 * 0.3125)
    logits = jnp.array([1.0, 2.0, 4.0, 5.0]).reshape(2, 1, 2, 1)
    assert float(generator_loss("wgan-gp", logits)) == -3.0


def test_penalty_of_a_flat_discriminator():
    """Norm 0, penalty 1, and a finite gradient: zero, as the norm's least value has."""

    def penalty(slope):
        zero = jnp.zeros((2, 2, 2, 1))
        return d_loss("wgan-gp", lambda x: slope * x, zero, zero)[1]["penalty"]

    value, gradient = jax.value_and_grad(penalty)(0.0)
    assert (float(value), float(gradient)) == (1.0, 0.0)
    assert float(jax.grad(penalty)(1e-3)) < 0.0


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("logit", [1e4, -1e4])
def test_extreme_logits(objective, logit):
    def everything(shift):
        def judge(x):
            return x + shift

        zero = jnp.zeros((2, 2, 2, 1))
        total, terms = d_loss(objective, judge, zero, zero)
        return total + generator_loss(objective, judge(zero)), terms

    (total, terms), slope = jax.value_and_grad(everything, has_aux=True)(logit)
    assert np.isfinite([total, slope, *terms.values()]).all()
    if objective == "bce":
        assert float(max(terms.values())) == pytest.approx(1e4)
        assert float(min(terms.values())) == 0.0


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_half_precision_logits_are_averaged_in_float32(objective):
    logits = jnp.full((1, 64, 64, 1), 0.1, jnp.bfloat16)
    loss = generator_loss(objective, logits)
    wide = generator_loss(objective, logits.astype(jnp.float32))
    assert loss.dtype == jnp.float32
    assert float(loss) == pytest.approx(float(wide), rel=1e-6)


def test_unknown_objective():
    x = jnp.zeros((2, 2, 2, 1))
    for call in (
        lambda: generator_loss("lsgan", x),
        lambda: d_loss("lsgan", lambda x: x, x, x),
    ):
        with pytest.raises(ValueError, match="one of bce, wgan-gp, got 'lsgan'"):
            call()
