"""The degradation by k-space against numpy.fft, and what it leaves as it is."""

from __future__ import annotations

import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from daasr_jax.data import prepare
from daasr_jax.metrics.psnr import psnr
from daasr_jax.resampling import degrade, downsample, replace_centre, upsample
from tests.data_fixtures import settings

DATA = os.environ.get("DAASR_TEST_DATA", "")

# Even LR sizes with a Nyquist line, odd ones without, and both at once.
SIZES = [(2, 16, 12), (2, 10, 16), (3, 15, 21), (3, 18, 15), (4, 32, 24), (4, 12, 20)]


def random(*shape):
    return np.random.default_rng(0).random(shape, np.float32)


def kspace(x, scale):
    return np.asarray(degrade(x, scale, degradation="kspace"))


def centre(x, scale):
    """The kept part of the centred orthonormal spectrum of `(B, H, W, 1)`, by lines."""
    spectrum = np.fft.fftshift(
        np.fft.fft2(x[..., 0].astype(np.float64), norm="ortho"), axes=(1, 2)
    )
    h, w = (n // scale for n in x.shape[1:3])
    top, left = x.shape[1] // 2 - h // 2, x.shape[2] // 2 - w // 2
    return spectrum[:, top : top + h, left : left + w]


def shift(n, scale):
    """Linear phase of the kept lines of an axis with n LR pixels."""
    k = np.arange(-(n // 2), n - n // 2)
    return np.exp(1j * np.pi * (scale - 1) * k / (scale * n))


def cropped(x, scale):
    """The whole degradation by numpy.fft, `(B, h, w)` complex."""
    kept = centre(x, scale)
    h, w = kept.shape[1:]
    kept = kept * shift(h, scale)[:, None] * shift(w, scale)
    return (
        np.fft.ifft2(np.fft.ifftshift(kept, axes=(1, 2)), axes=(1, 2), norm="ortho")
        / scale
    )


@pytest.mark.parametrize(("scale", "h", "w"), SIZES)
def test_is_the_real_part_of_the_crop_by_numpy(scale, h, w):
    x = random(2, h, w, 1)
    got, want = kspace(x, scale), cropped(x, scale).real
    assert got.shape == (2, h // scale, w // scale, 1)
    difference = np.fft.fft2(got[..., 0] - want, norm="ortho")
    even = [n // scale % 2 == 0 for n in (h, w)]
    if all(even):  # the corner of both Nyquist frequencies: see `degrade`
        corner = difference[:, h // scale // 2, w // scale // 2].copy()
        difference[:, h // scale // 2, w // scale // 2] = 0
        spectrum = np.fft.fft2(x[..., 0].astype(np.float64), norm="ortho")
        k, phase = h // scale // 2, np.exp(1j * np.pi * (scale - 1) / (2 * scale))
        j = w // scale // 2
        both = (spectrum[:, k, j] * phase**2).real
        other = spectrum[:, k, -j].real
        np.testing.assert_allclose(corner, (other - both) / 2 / scale, atol=1e-6)
    np.testing.assert_allclose(difference, 0, atol=1e-6)


@pytest.mark.parametrize(("scale", "h", "w"), SIZES)
def test_nyquist_line_is_the_mean_of_two_and_nothing_else_is_lost(scale, h, w):
    """By a sum over all kept waves, at the places of the LR pixels."""
    x = random(1, h, w, 1)
    spectrum = np.fft.fft2(x[0, ..., 0].astype(np.float64))

    def waves(n):
        m = n // scale
        k = np.arange(-(m // 2), m // 2 + 1)
        place = scale * np.arange(m) + (scale - 1) / 2
        weight = np.where(2 * abs(k) == m, 0.5, 1)
        return k, weight * np.exp(2j * np.pi * np.outer(place, k) / n) / n

    (ky, rows), (kx, columns) = waves(h), waves(w)
    want = rows @ spectrum[np.ix_(ky, kx)] @ columns.T
    np.testing.assert_allclose(want.imag, 0, atol=1e-12)  # real, as the image
    np.testing.assert_allclose(kspace(x, scale)[0, ..., 0], want.real, atol=1e-6)


@pytest.mark.parametrize("scale", [2, 3, 4])
@pytest.mark.parametrize("constant", [0.0, 1.0, 0.3])
def test_constant_stays_and_mean_stays(scale, constant):
    """LR is not s times too bright."""
    x = np.full((1, 24, 36, 1), constant, np.float32)
    np.testing.assert_allclose(kspace(x, scale), constant, atol=1e-6)
    x = random(3, 24, 36, 1)
    np.testing.assert_allclose(kspace(x, scale).mean((1, 2)), x.mean((1, 2)), atol=1e-6)


@pytest.mark.parametrize(("scale", "side"), [(2, 18), (3, 21), (4, 20)])
def test_energy_of_the_kept_centre_stays(scale, side):
    x = random(1, side, side, 1)  # LR has an odd side: no Nyquist line
    energy = np.sum(np.abs(centre(x, scale)) ** 2)
    got = np.sum(kspace(x, scale).astype(np.float64) ** 2)
    assert got * scale**2 == pytest.approx(energy, rel=1e-5)


def test_low_frequencies_come_out_in_place():
    """A wave that LR can hold is sampled at the centres of its cells."""

    def wave(at, n):
        return np.cos(2 * np.pi * 2 * at / n + 0.3)

    hr = wave(np.arange(24), 24)
    hr = np.broadcast_to(hr, (24, 24)).astype(np.float32)[None, :, :, None]
    want = wave(4 * np.arange(6) + 1.5, 24)
    np.testing.assert_allclose(kspace(hr, 4)[0, 3, :, 0], want, atol=1e-6)


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_turns_and_mirrors_commute(scale):
    """So that augmentation before the degradation is as good as after it."""
    x = random(1, 24, 24, 1)
    for form in (np.flip, lambda v, axis: np.rot90(v, 1, (1, 2))):
        turned, after = form(x, axis=1), form(kspace(x, scale), axis=1)
        np.testing.assert_allclose(kspace(turned, scale), after, atol=1e-6)


def test_upsampling_lies_on_the_image():
    """Bicubic of the smooth LR is near the smooth HR; a shift of a pixel is not."""
    coarse = random(1, 8, 8, 1)
    hr = upsample(coarse, 8)
    near = np.asarray(upsample(degrade(hr, 4, degradation="kspace"), 4) - hr)
    inner = np.s_[:, 8:-8, 8:-8]
    moved = np.asarray(jnp.roll(hr, 1, 1) - hr)[inner]
    assert np.mean(near[inner] ** 2) < 0.1 * np.mean(moved**2)


@pytest.mark.parametrize("dtype", [np.float16, np.float64, np.uint8, jnp.bfloat16])
@pytest.mark.parametrize("degradation", ["bicubic", "kspace"])
def test_is_float32_of_any_dtype(dtype, degradation):
    x = (random(1, 8, 8, 2) * 200).astype(dtype)
    got = degrade(x, 2, degradation=degradation)
    assert got.dtype == jnp.float32
    want = degrade(x.astype(np.float32), 2, degradation=degradation)
    np.testing.assert_array_equal(got, want)


def test_bicubic_is_downsample_bit_for_bit():
    x = random(2, 24, 36, 1)
    np.testing.assert_array_equal(
        degrade(x, 3, degradation="bicubic"), downsample(x, 3)
    )


def test_jitted_and_differentiated():
    x = random(2, 16, 12, 2)

    def square(x):
        return jnp.sum(degrade(x, 2, degradation="kspace") ** 2)

    value, gradient = jax.jit(jax.value_and_grad(square))(x)
    assert value == pytest.approx(float(square(x)), rel=1e-6)
    # Quadratic: the derivative along x is twice the value.
    assert np.vdot(gradient, x) == pytest.approx(2 * float(value), rel=1e-5)


@pytest.mark.parametrize(("scale", "h", "w"), SIZES)
class TestReplaceCentre:
    def test_then_the_image_degrades_to_lr(self, scale, h, w):
        lr = random(2, h // scale, w // scale, 1)
        sr = 1 - 2 * random(2, h, w, 1)
        got = replace_centre(sr, lr, scale)
        assert got.dtype == jnp.float32
        np.testing.assert_allclose(kspace(got, scale), lr, atol=1e-6)
        # a projection: twice is once, and the outer k-space is as it was
        again = replace_centre(got, lr, scale)
        np.testing.assert_allclose(again, got, atol=2e-6)
        change = np.asarray(got)[..., 0] - sr[..., 0]
        spectrum = np.fft.fftshift(np.fft.fft2(change), axes=(1, 2))
        ky, kx = (np.abs(np.arange(n) - n // 2) for n in (h, w))
        outer = (2 * ky[:, None] > h // scale) | (2 * kx > w // scale)
        np.testing.assert_allclose(spectrum[:, outer], 0, atol=1e-4)

    def test_what_is_consistent_stays(self, scale, h, w):
        hr = random(2, h, w, 1)
        lr = degrade(hr, scale, degradation="kspace")
        np.testing.assert_allclose(replace_centre(hr, lr, scale), hr, atol=2e-6)


def test_wrong_names_and_sizes():
    with pytest.raises(ValueError, match=r"one of \['bicubic', 'kspace'\], got 'fft'"):
        degrade(jnp.zeros((1, 8, 8, 1)), 2, degradation="fft")
    for degradation in ("bicubic", "kspace"):
        with pytest.raises(ValueError, match="10x12 is not divisible by scale 3"):
            degrade(jnp.zeros((1, 10, 12, 1)), 3, degradation=degradation)


@pytest.mark.realdata
@pytest.mark.skipif(not DATA, reason="DAASR_TEST_DATA does not name a folder")
def test_what_the_place_of_the_pixels_is_worth(tmp_path):
    """Bicubic on real scans, with LR where it is and where a plain crop has it."""
    given = settings(Path(DATA) / "fastmri_layout", tmp_path, size=256, slice_step=6)
    table = prepare(given).splits["train"]
    hr = np.stack([table.image(i) for i in range(len(table))])
    for scale in (2, 4):  # at x3 a centred transform of 255 pixels is in place itself
        kept = centre(hr, scale)
        plain = np.fft.ifft2(np.fft.ifftshift(kept, axes=(1, 2)), norm="ortho") / scale
        lr = {"here": kspace(hr, scale), "plain": plain.real[..., None]}
        got = {
            name: float(np.mean(psnr(*cut(scale, upsample(jnp.asarray(x), scale), hr))))
            for name, x in lr.items()
        }
        print(f"x{scale}, {len(hr)} slices: bicubic {got} dB")
        assert got["here"] > got["plain"] + 3


def cut(border, *images):
    return [x[:, border:-border, border:-border].astype(np.float32) for x in images]
