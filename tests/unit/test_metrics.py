"""PSNR and SSIM against scikit-image, in float64 there and float32 here."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from daasr_jax.metrics.psnr import psnr
from daasr_jax.metrics.ssim import ssim

WINDOWS = {
    "gaussian11": {
        "gaussian_weights": True,
        "sigma": 1.5,
        "use_sample_covariance": False,
    },
    "uniform7": {},
}


def _images():
    rng = np.random.default_rng(0)
    y, x = np.mgrid[0:1:40j, 0:1:48j]
    smooth = 0.5 + 0.4 * np.sin(9 * x) * np.cos(7 * y)
    noise = rng.random((40, 48))
    dark = np.where(x > 0.5, noise, 0.0)
    return {
        "noise": (noise, rng.random((40, 48))),
        "smooth": (smooth, smooth + 0.02 * noise),
        "black half": (dark, dark + 0.05 * np.roll(noise, 1, 0)),
        "low contrast": (0.7 + 1e-3 * noise, 0.7 + 1e-3 * smooth),
        "lower contrast": (0.9 + 1e-4 * smooth, 0.9 + 1e-4 * noise),
        "other mean": (smooth, 0.5 * smooth),
        "inverse": (smooth, 1 - smooth),
        "smallest": (noise[:11, :11], smooth[:11, :11]),
        "beyond the range": (2 * noise - 0.5, smooth),
    }


IMAGES = _images()


def four(x):
    return jnp.asarray(x, jnp.float32)[None, :, :, None]


@pytest.mark.parametrize("name", IMAGES)
@pytest.mark.parametrize("data_range", [1.0, 255.0])
def test_psnr_is_scikit_image(name, data_range):
    x, y = (data_range * a for a in IMAGES[name])
    want = peak_signal_noise_ratio(y, x, data_range=data_range)
    got = float(psnr(four(x), four(y), data_range=data_range)[0])
    # float32 pixels of 0.9 carry 6e-8, which shows at a contrast of 1e-4
    assert got == pytest.approx(want, rel=1e-5, abs=1e-3 if "low" in name else 1e-5)


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("name", IMAGES)
def test_ssim_is_scikit_image(name, window):
    x, y = (np.float32(a).astype(np.float64) for a in IMAGES[name])
    want = structural_similarity(x, y, data_range=1.0, **WINDOWS[window])
    if window == "gaussian11":
        # scikit-image truncates at 3.5 sigma and leaves the border of 5 out
        assert int(3.5 * 1.5 + 0.5) == 5
    assert float(ssim(four(x), four(y), window=window)[0]) == pytest.approx(
        want, abs=1e-5
    )


@pytest.mark.parametrize("window", WINDOWS)
def test_ssim_of_another_range(window):
    x, y = (300 * a for a in IMAGES["smooth"])
    want = structural_similarity(x, y, data_range=300.0, **WINDOWS[window])
    got = float(ssim(four(x), four(y), data_range=300.0, window=window)[0])
    assert got == pytest.approx(want, abs=1e-5)


def test_each_image_of_a_batch_by_itself():
    pairs = [IMAGES[n] for n in ("noise", "smooth", "inverse")]
    x, y = (jnp.concatenate([four(p[k]) for p in pairs]) for k in (0, 1))
    for metric in (psnr, ssim):
        alone = [float(metric(x[i : i + 1], y[i : i + 1])[0]) for i in range(3)]
        np.testing.assert_allclose(metric(x, y), alone, rtol=1e-6)


def test_psnr_by_hand():
    x = jnp.zeros((1, 2, 2, 1))
    y = jnp.array([0.2, 0.0, 0.0, 0.0]).reshape(1, 2, 2, 1)  # MSE 0.01
    assert float(psnr(x, y)[0]) == pytest.approx(20.0, abs=1e-5)
    assert float(psnr(x, y, data_range=10.0)[0]) == pytest.approx(40.0, abs=1e-5)


def test_equal_and_constant_images():
    x = four(IMAGES["smooth"][0])
    flat = jnp.full((1, 16, 16, 1), 0.3)
    assert np.isinf(psnr(x, x)[0])
    for window in WINDOWS:
        assert float(ssim(x, x, window=window)[0]) == pytest.approx(1.0, abs=1e-6)
        assert float(ssim(flat, flat, window=window)[0]) == pytest.approx(1.0, abs=1e-6)
        # constants 0.3 and 0.6: (2 mx my + C1) / (mx^2 + my^2 + C1)
        want = (2 * 0.18 + 1e-4) / (0.09 + 0.36 + 1e-4)
        got = float(ssim(2 * flat, flat, window=window)[0])
        assert got == pytest.approx(want, abs=1e-5)


def test_nan_is_never_a_score():
    x = four(IMAGES["smooth"][0])
    bad = x.at[0, 20, 20, 0].set(jnp.nan)
    assert np.isnan(psnr(bad, x)[0])
    assert np.isnan(ssim(bad, x)[0])


@pytest.mark.parametrize("metric", [psnr, ssim])
@pytest.mark.parametrize("data_range", [0.0, -1.0, float("nan")])
def test_data_range_must_be_positive(metric, data_range):
    x = jnp.zeros((1, 16, 16, 1))
    with pytest.raises(ValueError, match="data_range must be positive"):
        metric(x, x, data_range=data_range)


@pytest.mark.parametrize(("window", "side"), [("gaussian11", 10), ("uniform7", 6)])
def test_image_smaller_than_the_window(window, side):
    x = jnp.zeros((1, side, 20, 1))
    with pytest.raises(ValueError, match=f"{side}x20 is smaller"):
        ssim(x, x, window=window)


@pytest.mark.usefixtures("unchecked")
def test_unknown_window_and_unlike_shapes():
    x = jnp.zeros((1, 16, 16, 1))
    with pytest.raises(ValueError, match="gaussian11"):
        ssim(x, x, window="hann")
    for metric in (psnr, ssim):
        with pytest.raises(ValueError, match="not the same"):
            metric(x, jnp.zeros((2, 16, 16, 1)))
