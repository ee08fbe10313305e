"""The range of a scan: that of training, whatever one voxel says; and back."""

from __future__ import annotations

import numpy as np
import pytest

from daasr_jax.data.slices import HOT, normalised, usual_high, voxel_fault
from daasr_jax.errors import DataError
from daasr_jax.scans import normalise, without_damaged
from tests.data_fixtures import one_line, scan_voxels


@pytest.mark.parametrize("dtype", [np.uint16, np.int32, np.float32, np.float64])
def test_as_training(dtype, caplog):
    voxels = scan_voxels(0).astype(dtype)
    images, restore = normalise(voxels)
    assert images.dtype == np.float32
    np.testing.assert_array_equal(images, normalised(voxels))
    np.testing.assert_allclose(restore(images), voxels, rtol=1e-6)
    assert (restore.top, restore.low, restore.hot, restore.remarks) == (
        voxels.max(),
        0,
        0,
        (),
    )
    assert not caplog.text


def test_scale_by_a_power_of_two_is_the_same_image():
    voxels = scan_voxels(0).astype(np.float32)
    images, _ = normalise(voxels)
    scaled, restore = normalise(voxels * np.float32(2.0**-30))
    np.testing.assert_array_equal(images, scaled)
    np.testing.assert_allclose(restore(scaled), voxels * 2.0**-30, rtol=1e-6)


@pytest.mark.parametrize("hot", [[60_000], [60_000, 55_000, 50_000]])
def test_a_hot_voxel_changes_no_other(hot, caplog):
    """The range of all others is what it was."""
    voxels = scan_voxels(0, (4, 64, 64))
    wanted, before = normalise(voxels)
    spoiled = voxels.copy()
    places = [(1, 30 + i, 30) for i in range(len(hot))]
    for place, value in zip(places, hot, strict=True):
        spoiled[place] = value
    assert voxel_fault(spoiled)
    images, restore = normalise(spoiled, "T2.nii")
    for place in places:
        assert images[place] == 1
        assert restore(images)[place] == restore.top
        images[place] = wanted[place]
    np.testing.assert_array_equal(images, wanted)
    assert (restore.top, restore.hot) == (before.top, len(hot))
    assert f"T2.nii has {len(hot)} voxel" in caplog.text
    assert "of up to 6e+04 where no other is over" in caplog.text


def test_limit_of_training():
    """For several bright voxels side by side, which are no single damaged one."""
    voxels = np.full((8, 40, 40), 10.0)
    voxels[0, 0, 0] = 0
    assert HOT * usual_high(voxels) == 200
    voxels[1, 1, 1:4] = 200
    assert (normalise(voxels)[1].hot, normalise(voxels)[1].top) == (0, 200)
    voxels[1, 1, 1:4] = 201
    assert (normalise(voxels)[1].hot, normalise(voxels)[1].top) == (3, 10)


@pytest.mark.parametrize("factor", [1.1, 2.5, 4, 10, 100])
@pytest.mark.parametrize("place", [(2, 30, 40), (0, 0, 0), (4, 63, 63), (1, 2, 3)])
def test_one_voxel_of_any_height(factor, place):
    """In a smooth image, within it, at its rim and in its corners."""
    s, y, x = np.mgrid[-1:1:5j, -1:1:64j, -1:1:64j]
    voxels = 900 * np.exp(-(s**2 + y**2 + x**2)) + 20
    wanted, before = normalise(voxels)
    spoiled = voxels.copy()
    spoiled[place] = factor * voxels.max()
    images, restore = normalise(spoiled)
    if factor > 2:
        images[place] = wanted[place]
        np.testing.assert_array_equal(images, wanted)
        assert (restore.top, restore.hot) == (before.top, 1)
    assert restore.top <= 2 * before.top  # what is hardly higher changes little


def test_a_thin_vessel_is_no_damage():
    """It goes on in the next slice, or in its own."""
    voxels = np.full((6, 40, 40), 100.0)
    voxels[:, 20, 20] = 1500
    assert normalise(voxels)[1].hot == 0
    voxels = np.full((6, 40, 40), 100.0)
    voxels[3, 5:30, 20] = 1500
    assert normalise(voxels)[1].hot == 0


def test_a_little_below_zero(caplog):
    voxels = scan_voxels(0).astype(np.float32)
    voxels[0, :3, 0] = -20
    images, restore = normalise(voxels)
    assert images.min() == 0
    assert "3 voxels below 0 (down to -20), taken as 0" in caplog.text
    assert restore.low == 0
    np.testing.assert_allclose(restore(images), voxels.clip(0), rtol=1e-6)


@pytest.mark.parametrize("shift", [-700, -5000])
def test_far_below_zero(caplog, shift):
    """Such as a standardised image: nothing is cut."""
    voxels = scan_voxels(0).astype(np.float32) + shift
    images, restore = normalise(voxels)
    assert (images.min(), images.max()) == (0, 1)
    assert f"{shift} is taken as black" in caplog.text
    np.testing.assert_allclose(restore(images), voxels, atol=1e-3)


def test_one_voxel_far_below_zero(caplog):
    voxels = scan_voxels(0).astype(np.float32)
    wanted, before = normalise(voxels)
    voxels[1, 12, 10] = -32768
    images, restore = normalise(voxels)
    assert (restore.low, restore.top) == (0, before.top)
    assert images[1, 12, 10] == 0
    images[1, 12, 10] = wanted[1, 12, 10]
    np.testing.assert_array_equal(images, wanted)
    assert "1 voxel below 0" in caplog.text


@pytest.mark.parametrize("value", [0, 7, -3])
def test_blank(value):
    with pytest.raises(DataError) as error:
        normalise(np.full((3, 20, 20), value), "a.nii")
    one_line(error.value, "E347", "a.nii is blank", f"all voxels are {value}")


def test_blank_but_for_a_voxel():
    voxels = np.zeros((3, 40, 40))
    voxels[1, 2, 3] = 500
    images, restore = normalise(voxels)  # of one bright voxel nothing can be said
    assert (images.max(), restore.top, restore.hot) == (1, 500, 0)
    voxels = np.full((3, 40, 40), 5.0)
    voxels[1, 2, 3] = 5_000
    images, restore = normalise(voxels)
    assert (images.min(), restore.top, restore.hot) == (1, 5, 1)


@pytest.mark.parametrize("dtype", [np.uint16, np.float32])
@pytest.mark.parametrize("low", [0, -1000])
def test_damaged_voxels_are_cut_before_a_spline(dtype, low):
    """In the unit and the type of the scan, of whatever range."""
    dtype = np.int32 if low and dtype == np.uint16 else dtype
    voxels = (scan_voxels(0, (4, 64, 64)) + np.int32(low)).astype(dtype)
    assert without_damaged(voxels)[0] is voxels
    hot = voxels.copy()
    hot[1, 30, 30] = 60_000
    cut, said = without_damaged(hot)
    assert cut.dtype == dtype
    assert cut[1, 30, 30] == np.delete(hot.ravel(), 1 * 64 * 64 + 30 * 64 + 30).max()
    cut[1, 30, 30] = voxels[1, 30, 30]
    np.testing.assert_array_equal(cut, voxels)
    assert said[0].startswith("has 1 voxel of up to 6e+04")
    blank = np.zeros((2, 12, 12), dtype)
    assert without_damaged(blank)[0] is blank
