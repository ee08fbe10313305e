"""P and C on the grid of the result, the choice from a bank, and what is measured."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from daasr_jax.enhancement import overlays, quality
from daasr_jax.enhancement.references import (
    SIDE,
    nearest,
    resampled,
    same_image,
    signature,
)


def test_cells_are_spread_over_their_pixels():
    values = np.arange(6).reshape(1, 2, 3)
    found = overlays.spread(values, (4, 9))
    assert found.shape == (1, 4, 9)
    np.testing.assert_array_equal(found[0, 2], [3, 3, 3, 4, 4, 4, 5, 5, 5])
    with pytest.raises(ValueError, match="do not fill"):
        overlays.spread(values, (4, 8))


def test_a_match_is_the_pixel_at_the_same_place_in_its_cell():
    index = np.array([[[5, 0], [11, 2]]], np.int32)  # of maps of 2 x 3 cells
    which, y, x = overlays.places(index, (2, 3), (4, 4))
    # cell (0, 0) was matched with place 5: row 1, column 2 of the first reference
    np.testing.assert_array_equal(y[0, :2, :2], [[2, 2], [3, 3]])
    np.testing.assert_array_equal(x[0, :2, :2], [[4, 5], [4, 5]])
    # cell (1, 0) with place 11: place 5 of the second
    np.testing.assert_array_equal(which[0, 2:, :2], 1)
    np.testing.assert_array_equal(y[0, 2:, :2], [[2, 2], [3, 3]])
    assert not which[0, :2].any()


def test_tissue_without_a_match():
    lr = np.zeros((1, 2, 4), np.float32)
    lr[0, 0] = 0.5
    c = np.array([[[0.9, 0.1, 0.2, 0.9], [0, 0, 0, 0]]])
    assert overlays.untrusted(c, lr, low=0.5) == 0.5
    assert overlays.untrusted(c, lr * 0, low=0.5) == 0
    fine = np.repeat(np.repeat(c, 2, 1), 2, 2)  # C on a finer grid than LR
    assert overlays.untrusted(fine, lr, low=0.5) == 0.5


def brain(seed: int, size: tuple[int, int] = (60, 50)) -> np.ndarray:
    noise = np.random.default_rng(seed).random((60, 50))
    image = ndimage.gaussian_filter(noise, 4)
    image = (image - image.min()) / (image.max() - image.min())
    zoom = [n / m for n, m in zip(size, image.shape, strict=True)]
    return ndimage.zoom(image, zoom, order=1, grid_mode=True, mode="nearest")


def test_the_most_similar_slice_is_found_at_any_size():
    images = [brain(i) for i in range(6)]
    bank = np.stack([signature(x, (1.0, 1.0), 60.0) for x in images])
    assert bank.shape == (6, SIDE * SIDE)
    np.testing.assert_allclose(np.linalg.norm(bank, axis=1), 1, atol=1e-5)
    # the same slices at another sampling, contrast and noise
    others = [0.4 * brain(i, (30, 25)) ** 1.3 + 0.1 for i in range(6)]
    targets = np.stack([signature(x, (2.0, 2.0), 60.0) for x in others])
    order, scores = nearest(targets, bank, count=2)
    np.testing.assert_array_equal(order[:, 0], np.arange(6))
    assert (scores[:, 0] > scores[:, 1]).all()


def test_a_field_larger_than_the_slice_pads_it():
    image = brain(0)
    small = signature(image, (1.0, 1.0), 120.0).reshape(SIDE, SIDE)
    edge = small[0, 0]
    assert (small[:5] == edge).all()
    assert (small[SIDE // 2, 8:16] != edge).all()
    assert not signature(np.zeros((9, 9)), (1.0, 1.0), 9.0).any()


def test_pixels_get_the_sides_that_are_wanted():
    image = brain(1)
    assert resampled(image, (1.0, 2.0), (0.5, 0.5)).shape == (120, 200)
    assert resampled(image, (1.0, 2.0), (2.0, 2.0)).shape == (30, 50)


def test_the_same_image_in_another_unit_is_known():
    a = np.random.default_rng(0).integers(0, 900, (9, 8, 7))
    assert same_image(a, a)
    assert same_image(a, (a * 2.5).astype(np.float32))
    assert not same_image(a, np.random.default_rng(1).integers(0, 900, (9, 8, 7)))
    assert not same_image(a, 1 / (1 + a))
    assert not same_image(a, np.zeros_like(a))


def test_scores_are_those_of_the_evaluation():
    hr = np.stack([brain(i) for i in range(3)]).astype(np.float32)
    hr[2] = 0
    off = hr.copy()
    off[:2] += 0.1
    found = quality.scores({"a": off, "b": off * 0.5}, hr, border=2)
    assert found["a"]["psnr"] == pytest.approx(20, abs=1e-3)
    assert found["a"]["of_slices"][2] is None  # exact: a blank slice
    assert found["b"]["of_slices"][2] is None
    assert 0 < found["a"]["ssim"] < 1
    nothing = quality.scores({"a": hr}, hr, border=2)
    assert nothing["a"]["psnr"] is None


def test_the_bicubic_image_explains_the_input_and_another_does_not():
    lr = np.stack([brain(i, (24, 20)) for i in range(2)]).astype(np.float32)
    sr = quality.bicubic(lr, 2)
    assert sr.shape == (2, 48, 40)
    fit = quality.data_consistency(sr, lr, "bicubic")
    assert fit > 40
    assert quality.data_consistency(sr + 0.1, lr, "bicubic") == pytest.approx(
        20, abs=0.5
    )
