"""Bicubic against Pillow and the cell layout against hand computation."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from daasr_jax.resampling import (
    blur,
    depth_to_space,
    downsample,
    space_to_depth,
    upsample,
)


def pillow(x, height, width):
    images = [
        Image.fromarray(v[..., 0]).resize((width, height), Image.Resampling.BICUBIC)
        for v in x
    ]
    return np.stack(images)[..., None]


def random(*shape):
    return np.random.default_rng(0).random(shape, np.float32)


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_downsample_is_that_of_pillow(scale):
    x = random(2, 24, 36, 1)
    expected = pillow(x, 24 // scale, 36 // scale)
    np.testing.assert_allclose(downsample(x, scale), expected, atol=1e-6)


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_upsample_is_that_of_pillow(scale):
    x = random(2, 11, 8, 1)
    expected = pillow(x, 11 * scale, 8 * scale)
    np.testing.assert_allclose(upsample(x, scale), expected, atol=1e-6)


@pytest.mark.parametrize(("size", "scale"), [(24, 2), (24, 3), (24, 4), (15, 4)])
def test_blur_is_both_in_turn(size, scale):
    x = random(1, size, size, 1)
    small = -(-size // scale)
    expected = pillow(pillow(x, small, small), size, size)
    result = blur(x, scale)
    assert result.shape == x.shape
    np.testing.assert_allclose(result, expected, atol=1e-6)


@pytest.mark.parametrize("form", [upsample, downsample, blur])
@pytest.mark.parametrize("constant", [0.0, 1.0, 0.3])
def test_constant_stays_constant(form, constant):
    x = jnp.full((1, 12, 24, 1), constant)
    np.testing.assert_allclose(form(x, 3), constant, atol=1e-6)


def test_linear_ramp_by_hand():
    # Away from the border Keys' kernel reproduces a ramp: sample i of the x2 image
    # lies at (i + 0.5) / 2 - 0.5.
    ramp = jnp.arange(10.0).reshape(1, 1, 10, 1)
    result = upsample(jnp.broadcast_to(ramp, (1, 10, 10, 1)), 2)[0, 10, :, 0]
    expected = (np.arange(20) + 0.5) / 2 - 0.5
    np.testing.assert_allclose(result[4:-4], expected[4:-4], atol=1e-5)


def test_dtype_is_kept():
    x = jnp.ones((1, 6, 6, 2), jnp.bfloat16)
    for form in (upsample, downsample, blur):
        assert form(x, 2).dtype == jnp.bfloat16


def test_space_to_depth_by_hand():
    # 2 x 4 pixels of two channels (n, 100 + n), n = 0..7 by rows.
    n = jnp.arange(8.0).reshape(1, 2, 4)
    x = jnp.stack([n, 100 + n], -1)
    expected = [
        [0, 100, 1, 101, 4, 104, 5, 105],
        [2, 102, 3, 103, 6, 106, 7, 107],
    ]
    np.testing.assert_array_equal(space_to_depth(x, 2)[0, 0], expected)


def test_depth_to_space_of_one_channel_is_the_pixel_shuffle():
    # PyTorch: pixel_shuffle of channels 0..3 at one place is [[0, 1], [2, 3]].
    x = jnp.arange(4.0).reshape(1, 1, 1, 4)
    np.testing.assert_array_equal(depth_to_space(x, 2)[0, ..., 0], [[0, 1], [2, 3]])


def test_depth_to_space_is_the_pixel_shuffle_of_permuted_channels():
    # PyTorch orders channels (channel, row, column), this project (row, column,
    # channel): channel 1 of pixel (1, 0) is number 6 there and number 5 here.
    x = jnp.arange(8.0).reshape(1, 1, 1, 8)
    result = depth_to_space(x, 2)[0]
    assert result[1, 0, 1] == 5
    theirs = jnp.arange(8.0).reshape(2, 2, 2).transpose(1, 2, 0).reshape(1, 1, 1, 8)
    np.testing.assert_array_equal(
        depth_to_space(theirs, 2)[0, ..., 1], [[4.0, 5.0], [6.0, 7.0]]
    )


@pytest.mark.parametrize("s", [2, 3, 4])
def test_cell_layouts_are_inverse(s):
    x = random(2, 2 * s, 3 * s, 5)
    cells = space_to_depth(x, s)
    assert cells.shape == (2, 2, 3, s * s * 5)
    np.testing.assert_array_equal(depth_to_space(cells, s), x)
    y = random(2, 3, 2, s * s * 2)
    np.testing.assert_array_equal(space_to_depth(depth_to_space(y, s), s), y)


def test_gradients_are_finite():
    x = random(1, 12, 12, 1)
    for form in (upsample, downsample, blur):
        grad = jax.grad(lambda v, form=form: jnp.sum(form(v, 2) ** 2))(x)
        assert np.isfinite(grad).all()


@pytest.mark.parametrize("shape", [(1, 10, 12, 1), (1, 12, 10, 1)])
def test_downsample_wants_a_multiple(shape):
    with pytest.raises(ValueError, match="not divisible by scale 3"):
        downsample(jnp.zeros(shape), 3)
