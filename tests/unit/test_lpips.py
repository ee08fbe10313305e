"""LPIPS against PyTorch in float64 (`golden/lpips.json`), properties, refusals."""

from __future__ import annotations

import functools
import json
import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from skimage.io import imread

from daasr_jax.metrics.lpips import lpips, lpips_many
from daasr_jax.models.lpips_backbones import SMALLEST
from daasr_jax.weights.lpips import load_lpips
from tests.parity.generate_lpips_golden import CASES, images

GOLDEN = json.loads((Path(__file__).parent / "golden/lpips.json").read_text())
EXAMPLES = os.environ.get("DAASR_LPIPS_IMAGES")
NETS = ("alex", "vgg")

weights = functools.cache(load_lpips)


@functools.cache
def compiled(net):
    return jax.jit(functools.partial(lpips, net=net))


def measure(net, x, y):
    x, y = (jnp.asarray(z, jnp.float32) for z in (x, y))
    return np.asarray(compiled(net)(x, y, weights(net)))


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("name", CASES)
def test_is_pytorch(name, net):
    got = measure(net, *images(name))
    np.testing.assert_allclose(got, GOLDEN[name][net], rtol=1e-5)


@pytest.mark.parametrize("net", NETS)
class TestProperties:
    def test_zero_for_equal_images_and_symmetric(self, net):
        x, y = images("grey")
        assert measure(net, x, x)[0] == pytest.approx(0, abs=1e-10)
        np.testing.assert_allclose(
            measure(net, x, y), measure(net, y, x), rtol=1e-6, atol=0
        )

    def test_repeated_grey_is_grey(self, net):
        x, y = images("grey")
        rgb = (np.repeat(z, 3, axis=-1) for z in (x, y))
        np.testing.assert_array_equal(measure(net, *rgb), measure(net, x, y))

    def test_each_image_of_a_batch_by_itself(self, net):
        x, y = images("batch")
        alone = [measure(net, x[i : i + 1], y[i : i + 1])[0] for i in range(len(x))]
        np.testing.assert_allclose(measure(net, x, y), alone, rtol=1e-5)

    def test_several_estimates_of_one_target(self, net):
        side = SMALLEST[net]
        x, y = (z[:2, :side, :side] for z in images("batch"))
        preds = jnp.asarray(np.stack([x, y[::-1], 0.9 * y]), jnp.float32)
        many = jax.jit(functools.partial(lpips_many, net=net))
        got = many(preds, jnp.asarray(y, jnp.float32), weights(net))
        assert got.shape == (3, len(x))
        want = [measure(net, pred, y) for pred in preds]
        np.testing.assert_allclose(got, want, rtol=1e-5)

    def test_more_noise_is_farther(self, net):
        x, y = images("grey")
        near, far = (measure(net, y + t * (x - y), y)[0] for t in (0.1, 0.5))
        assert 0 < near < far

    def test_nan_is_never_a_score(self, net):
        x, y = (np.array(z) for z in images("grey"))
        x[0, 30, 30] = np.nan
        assert np.isnan(measure(net, x, y)).all()

    def test_smallest_image(self, net):
        side = SMALLEST[net]
        x, y = (z[:, :side, :side] for z in images("grey"))
        assert np.isfinite(measure(net, x, y)).all()
        for pair in ((x[:, 1:], y[:, 1:]), (x[:, :, 1:], y[:, :, 1:])):
            with pytest.raises(ValueError, match=f"smaller than the {side}x{side}"):
                measure(net, *pair)

    @pytest.mark.usefixtures("unchecked")
    def test_shapes_and_channels(self, net):
        x = jnp.zeros((1, 32, 32, 1))
        with pytest.raises(ValueError, match="not the same"):
            lpips(x, jnp.zeros((2, 32, 32, 1)), weights(net), net=net)
        with pytest.raises(ValueError, match="not the same"):
            lpips(x, jnp.zeros((1, 32, 32, 3)), weights(net), net=net)
        for channels in (2, 4):
            y = jnp.zeros((1, 32, 32, channels))
            with pytest.raises(ValueError, match=f"1 or 3 channels, got {channels}"):
                lpips(y, y, weights(net), net=net)


def test_unknown_net():
    x = jnp.zeros((1, 32, 32, 1))
    with pytest.raises(ValueError, match="'alex' or 'vgg', got 'squeeze'"):
        load_lpips("squeeze")
    with pytest.raises(ValueError, match="'alex' or 'vgg', got 'squeeze'"):
        lpips(x, x, weights("alex"), net="squeeze")


@pytest.mark.skipif(
    not EXAMPLES,
    reason="DAASR_LPIPS_IMAGES does not name the folder imgs/ of the authors' package",
)
@pytest.mark.parametrize(
    ("net", "p0", "p1"), [("alex", 0.72188, 0.13757), ("vgg", 0.56861, 0.42166)]
)
def test_the_authors_examples(net, p0, p1):
    ref, *preds = (
        imread(Path(EXAMPLES or "") / f"ex_{name}.png")[None] / 127.5 - 1
        for name in ("ref", "p0", "p1")
    )
    got = [measure(net, pred, ref)[0] for pred in preds]
    np.testing.assert_allclose(got, [p0, p1], atol=1e-4)
