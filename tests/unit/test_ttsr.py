"""What the shared contract does not say about TTSR: counts, hand-computed parts."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from daasr_jax.models.ttsr import TTSR, texture_params
from daasr_jax.models.ttsr_parts import TextureExtractor, enlarge, transfer_texture
from daasr_jax.models.vgg import VGG, FrozenVGG, preprocess
from daasr_jax.resampling import downsample
from daasr_jax.weights.vgg import LAYERS
from tests.parity.weights import random_variables, uniform

FAST_COMPILE = {"xla_backend_optimization_level": 0}


def jit(f):
    return jax.jit(f, compiler_options=FAST_COMPILE)


def shapes(model, lr=(1, 8, 8), ref=None):
    """`(sr, aux, parameters)` without values."""
    b, h, w = lr
    ref = ref or (h * model.scale, w * model.scale)
    images = jnp.zeros((b, h, w, 1)), jnp.zeros((b, *ref, 1))

    def init(key):
        out, variables = model.init_with_output(key, *images, train=False)
        return out.sr, out.aux, variables["params"]

    return jax.eval_shape(init, jax.random.key(0))


def count(tree):
    return sum(int(np.prod(x.shape)) for x in jax.tree.leaves(tree))


@pytest.mark.parametrize(
    ("channels", "main"), [(3, 6_174_275), (1, 6_174_275 - 1_152 - 66)]
)
def test_parameter_counts_of_the_paper(channels, main):
    params = dict(shapes(TTSR(channels=channels))[2])
    assert count(params.pop("texture")) == 555_328
    assert count(params) == main


@pytest.mark.parametrize(("scale", "up"), [(2, 147_712), (3, 332_352)])
def test_parameter_counts_of_two_levels(scale, up):
    """The layers of x4 that are left, with fewer channels where there is less."""
    params = dict(shapes(TTSR(scale=scale))[2])
    assert count(params.pop("texture")) == 1_792 + 36_928 + 73_856
    conv = 64 * 64 * 9 + 64
    fuses = (192 + 128) * 64 * 9 + 2 * 64
    exchange = 64 * 64 + 64 + conv + 2 * (conv + 64 * 64 * 9)
    bodies = (2 * 16 + 1) * 2 + (2 * 8 + 1) * 2
    tail = 64 * 64 + 64 + conv + 64 * 64 * 9 + 64 * 32 * 9 + 32 + 33
    assert count(params) == 640 + fuses + up + exchange + bodies * conv + tail


def test_sizes_of_reference_and_output_are_independent():
    sr, aux, _ = shapes(TTSR(scale=3, features=4, blocks=1), (2, 5, 7), (12, 9))
    assert sr.shape == (2, 15, 21, 1)
    assert aux["index"].shape == (1, 2, 5, 7)
    assert aux["confidence"].shape == (1, 2, 5, 7, 1)


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_a_reference_that_is_the_answer_is_found(scale):
    """Query and key are one image then: every patch is its own, with the score 1."""
    model = TTSR(scale=scale, features=4, blocks=1)
    hr = jnp.asarray(uniform((1, 5 * scale, 6 * scale, 1), seed=1, name="hr"))
    lr = downsample(hr, scale)
    params = random_variables(shapes(model, (1, 5, 6))[2], seed=1)
    run = jit(lambda p: model.apply({"params": p}, lr, hr, train=False).aux)
    aux = run(params)
    np.testing.assert_array_equal(
        aux["index"], np.arange(30, dtype=np.int32).reshape(1, 1, 5, 6)
    )
    np.testing.assert_allclose(aux["confidence"], 1.0, atol=1e-6)


def test_enlargement_is_keys_with_three_quarters():
    impulse = jnp.zeros((1, 1, 7, 1)).at[0, 0, 3, 0].set(1.0)
    kernel = [-9, -27, 67, 225, 225, 67, -27, -9]  # at 7/4, 5/4, 3/4 and 1/4, by 256
    line = enlarge(impulse, 2)[0, 0, :, 0] * 256
    np.testing.assert_allclose(line, [0, 0, 0, *kernel, 0, 0, 0], atol=1e-4)
    ones = enlarge(jnp.ones((1, 3, 4, 2)), 3)
    np.testing.assert_allclose(ones, np.ones((1, 9, 12, 2)), atol=1e-6)


@pytest.mark.parametrize("cell", [1, 2])
def test_folds(cell):
    """Of ones: every place its own patch, then everywhere the patch of a corner."""
    ones = jnp.ones((1, 4 * cell, 4 * cell, 3))
    own = jnp.arange(16, dtype=jnp.int32).reshape(1, 4, 4)
    for index in (own, 0 * own):
        mean = transfer_texture(ones, index, cell=cell, fold="mean")
        np.testing.assert_array_equal(mean, ones)
    n = np.array([2, 3, 3, 2])
    # A row or column gets the first corner's patch from the place before it, its own
    # and the one after it; the last of these brings what lies outside the reference.
    corner = np.array([1, 2, 2, 2])
    for index, side in ((own, n), (0 * own, corner)):
        got = transfer_texture(ones, index, cell=cell, fold="ninth")
        expected = np.kron(np.outer(side, side) / 9, np.ones((cell, cell)))
        np.testing.assert_allclose(
            got, np.broadcast_to(expected[None, :, :, None], got.shape), rtol=1e-6
        )


@pytest.mark.parametrize("preprocessing", ["caffe", "torchvision"])
def test_imagenet_weights_give_the_features_of_vgg(preprocessing):
    params = random_variables(
        {
            name: {
                "kernel": jax.ShapeDtypeStruct(shape, jnp.float32),
                "bias": jax.ShapeDtypeStruct(shape[-1:], jnp.float32),
            }
            for name, shape in LAYERS.items()
        },
        seed=2,
    )
    vgg = FrozenVGG(params, preprocessing, "vgg19", "random", "")
    grey = jnp.asarray(uniform((1, 10, 8, 1), seed=2, name="grey"))
    extractor = TextureExtractor(preprocessing=preprocessing)
    taps = jit(extractor.apply)({"params": texture_params(vgg)}, grey)
    whole = VGG((2, 2, 1), jnp.float32)
    kept = {name: params[name] for name in texture_params(vgg)}
    kept["block2_conv2"] = params["block2_conv2"]
    expected = jit(whole.apply)({"params": kept}, preprocess(grey, preprocessing))[-1]
    assert [x.shape[1:] for x in taps] == [(10, 8, 64), (5, 4, 128), (2, 2, 256)]
    scale = np.abs(expected).max()
    np.testing.assert_allclose(taps[-1] / scale, expected / scale, atol=1e-6)


def test_imagenet_weights_fit_every_scale():
    vgg = FrozenVGG(
        {
            name: {"kernel": np.zeros(shape), "bias": np.zeros(shape[-1:])}
            for name, shape in LAYERS.items()
        },
        "caffe",
        "vgg19",
        "zeros",
        "",
    )
    for scale in (2, 3, 4):
        params = shapes(TTSR(scale=scale, features=4, blocks=1))[2]
        put = texture_params(vgg, scale=scale)
        assert jax.tree.map(jnp.shape, put) == jax.tree.map(
            jnp.shape, dict(params["texture"])
        )


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"scale": 5}, "scale must be one of"),
        ({"fold": "sum"}, "fold must be one of"),
        ({"channels": 2}, "channels must be 1 or 3"),
        ({"preprocessing": "tf"}, "preprocessing must be one of"),
        ({"blocks": (1, 1, 1)}, "blocks must have 4 numbers at x4"),
    ],
)
def test_wrong_fields(fields, message):
    with pytest.raises(ValueError, match=message):
        shapes(TTSR(**{"features": 4, "blocks": 1, **fields}), (1, 4, 4), (16, 16))


def test_wrong_size_of_reference():
    with pytest.raises(ValueError, match="ref of 16x18 is not divisible by scale 4"):
        shapes(TTSR(features=4, blocks=1), (1, 4, 4), (16, 18))
