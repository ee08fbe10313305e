"""The perceptual term of Eq. 13: preprocessing, unit, stand-in, gradient, pooling."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from daasr_jax.losses.perceptual import (
    VGG16_FACTORS,
    calibration_image,
    gram,
    make_perceptual,
    make_texture,
    relu3_3,
    unit,
)
from daasr_jax.models import vgg as vgg_module
from daasr_jax.models.outputs import Outputs
from daasr_jax.models.vgg import CONVENTIONS, FrozenVGG, max_pool, preprocess
from daasr_jax.weights.vgg import LAYERS
from tests.parity.weights import fingerprint, uniform

GOLDEN = Path(__file__).parent / "golden"
DOCS = Path(__file__).parents[2] / "docs/results/perceptual.md"


def random_vgg(preprocessing: str, seed: int = 7) -> FrozenVGG:
    """Full widths, weights from the seed; activations keep their size in depth."""
    params = {}
    for name, shape in LAYERS.items():
        kernel = 2 * uniform(shape, seed=seed, name=f"{name}.kernel") - 1
        bias = 2 * uniform(shape[-1:], seed=seed, name=f"{name}.bias") - 1
        scale = np.float32(np.sqrt(6 / np.prod(shape[:3])))
        params[name] = {"kernel": kernel * scale, "bias": bias * np.float32(0.2)}
    return FrozenVGG(params, preprocessing, "vgg19", f"seed {seed}", "")


def pictures(shape=(2, 26, 33, 1)) -> tuple[np.ndarray, np.ndarray]:
    """A picture and HR, of odd sizes, in [0, 1]."""
    names = ("picture", "hr")
    a, b = (uniform(shape, seed=7, name=name) for name in names)
    return a, b


def relative(a, b) -> float:
    """Largest difference over the largest entry of `b`."""
    return float(np.abs(np.asarray(a) - np.asarray(b)).max() / np.abs(b).max())


def loss_and_gradient(vgg: FrozenVGG, picture, hr):
    loss = make_perceptual(vgg, "rec", scale=4)
    return jax.jit(jax.value_and_grad(lambda x: loss(Outputs(sr=x, aux={}), hr)))(
        picture
    )


@pytest.fixture(scope="module")
def vgg() -> FrozenVGG:
    return random_vgg("caffe")


class TestPreprocess:
    def test_caffe(self):
        out = preprocess(jnp.full((1, 2, 2, 1), 0.5), "caffe")
        assert out.shape == (1, 2, 2, 3)
        np.testing.assert_allclose(out[0, 1, 0], [23.561, 10.721, 3.82], rtol=1e-5)

    def test_torchvision(self):
        out = preprocess(jnp.full((1, 2, 2, 1), 0.5), "torchvision")
        wanted = [0.015 / 0.229, 0.044 / 0.224, 0.094 / 0.225]
        np.testing.assert_allclose(out[0, 1, 0], wanted, rtol=1e-5)

    def test_unknown(self):
        with pytest.raises(ValueError, match="got 'tf'"):
            preprocess(jnp.zeros((1, 2, 2, 1)), "tf")

    def test_is_lpips_scaling_on_its_range(self):
        """LPIPS scales [-1, 1] by its own constants: the same three channels."""
        grey = np.linspace(0, 1, 50, dtype=np.float32).reshape(1, 5, 10, 1)
        shift, scale = (
            np.array([-0.030, -0.088, -0.188]),
            np.array([0.458, 0.448, 0.45]),
        )
        theirs = ((2.0 * grey - 1.0) - shift.reshape(1, 1, 1, 3)) / scale.reshape(
            1, 1, 1, 3
        )
        np.testing.assert_allclose(
            preprocess(jnp.asarray(grey), "torchvision"), theirs, rtol=1e-6, atol=1e-6
        )


def in_torchvision_convention(vgg: FrozenVGG, rgb_mean_255: np.ndarray) -> FrozenVGG:
    """The same network for `(RGB - mean) / std`, RGB in [0, 1]."""
    std = np.array([0.229, 0.224, 0.225])
    keras_mean = np.array([123.68, 116.779, 103.939])  # RGB
    first = vgg.params["block1_conv1"]
    kernel = np.flip(first["kernel"], 2).astype(np.float64)
    shift = (rgb_mean_255 - keras_mean).reshape(1, 1, 3, 1)
    params = dict(vgg.params)
    params["block1_conv1"] = {
        "kernel": (kernel * 255 * std.reshape(1, 1, 3, 1)).astype(np.float32),
        "bias": (first["bias"] + (kernel * shift).sum((0, 1, 2))).astype(np.float32),
    }
    return dataclasses.replace(vgg, params=params, preprocessing="torchvision")


class TestConventions:
    GREY = uniform((1, 64, 64, 1), seed=3, name="grey")

    def test_same_network_has_the_same_features_in_the_interior(self, vgg):
        """Zeros are padded after the subtraction: they stand for two different greys.

        A border of one pixel at conv1_1 reaches five positions into relu3_3.
        """
        mean = 255 * np.array([0.485, 0.456, 0.406])
        other = in_torchvision_convention(vgg, mean)
        a, b = (np.asarray(relu3_3(v)(self.GREY)) for v in (vgg, other))
        assert a.shape == (1, 16, 16, 256)
        inner = (slice(None), slice(5, -5), slice(5, -5))
        assert relative(b[inner], a[inner]) < 1e-5
        assert relative(b, a) > 1e-5

    def test_equal_everywhere_where_the_means_are_equal(self, vgg, monkeypatch):
        mean = np.array([123.68, 116.779, 103.939])
        _, _, std = vgg_module.CONVENTIONS["torchvision"]
        monkeypatch.setitem(
            vgg_module.CONVENTIONS, "torchvision", (1.0, tuple(mean / 255), std)
        )
        other = in_torchvision_convention(vgg, mean)
        assert relative(relu3_3(other)(self.GREY), relu3_3(vgg)(self.GREY)) < 1e-5


class TestPool:
    @pytest.mark.parametrize("shape", [(2, 8, 6, 3), (1, 7, 9, 2), (1, 1, 4, 1)])
    def test_value_and_gradient_are_xla_s(self, shape):
        """With ties, also between positive values, as background has them."""
        rng = np.random.default_rng(0)
        x = jnp.asarray(rng.integers(0, 3, shape).astype(np.float32))
        theirs, back = jax.vjp(lambda y: nn.max_pool(y, (2, 2), strides=(2, 2)), x)
        ours, own_back = jax.vjp(max_pool, x)
        grad = jnp.asarray(rng.random(ours.shape, np.float32))
        np.testing.assert_array_equal(ours, theirs)
        np.testing.assert_array_equal(own_back(grad)[0], back(grad)[0])

    def test_first_of_equal_maxima_by_hand(self):
        x = jnp.array([[1.0, 2.0], [2.0, 2.0]]).reshape(1, 2, 2, 1)
        slope = jax.grad(lambda y: 3 * max_pool(y).sum())(x)
        assert slope.reshape(-1).tolist() == [0.0, 3.0, 0.0, 0.0]


class TestUnit:
    def test_calibration_image(self):
        image = calibration_image()
        assert image.shape == (1, 64, 64, 1)
        assert image.dtype == np.float32
        assert (image.min(), image.max()) == (0.0, 1.0)
        assert 0.1 < image.std() < 0.3
        power = np.abs(np.fft.fft2(image[0, ..., 0] - image.mean())) ** 2
        cycles = 64 * np.fft.fftfreq(64)
        coarse = np.hypot(cycles[:, None], cycles[None]) <= 6
        assert power[coarse].sum() > 0.8 * power.sum()

    def test_is_the_mean_square_of_the_features(self, vgg):
        features = np.asarray(relu3_3(vgg)(jnp.asarray(calibration_image())))
        assert unit(vgg) == pytest.approx(float((features**2).mean()), rel=1e-5)

    def test_scale_of_the_features_does_not_matter(self, vgg):
        last = {k: 100 * v for k, v in vgg.params["block3_conv3"].items()}
        large = dataclasses.replace(vgg, params={**vgg.params, "block3_conv3": last})
        assert unit(large) == pytest.approx(1e4 * unit(vgg), rel=1e-4)
        a, b = pictures()
        values = [loss_and_gradient(v, a, b)[0] for v in (vgg, large)]
        assert float(values[1]) == pytest.approx(float(values[0]), rel=1e-5)

    def test_dead_network(self, vgg):
        last = {k: 0 * v for k, v in vgg.params["block3_conv3"].items()}
        dead = dataclasses.replace(vgg, params={**vgg.params, "block3_conv3": last})
        with pytest.raises(ValueError, match="mean square 0"):
            make_perceptual(dead, "rec", scale=4)


class TestLoss:
    def test_by_hand_from_the_features(self, vgg):
        a, b = pictures()
        f, g = (np.asarray(relu3_3(vgg)(jnp.asarray(x)), np.float64) for x in (a, b))
        wanted = ((f - g) ** 2).mean() / unit(vgg)
        loss, slope = loss_and_gradient(vgg, a, b)
        assert loss.dtype == jnp.float32
        assert float(loss) == pytest.approx(wanted, rel=1e-5)
        assert np.isfinite(slope).all()
        assert np.abs(slope).max() > 0

    def test_equal_pictures(self, vgg):
        a, _ = pictures()
        loss, slope = loss_and_gradient(vgg, a, a)
        assert float(loss) == 0
        np.testing.assert_array_equal(slope, 0)

    def test_sat_is_averaged_over_its_pictures(self, vgg):
        a, b = map(jnp.asarray, pictures())
        sat = make_perceptual(vgg, "sat", scale=4)
        rec = make_perceptual(vgg, "rec", scale=4)
        heads = jnp.stack([a, 0.5 * a, b])
        each = [float(rec(Outputs(sr=x, aux={}), b)) for x in heads]
        loss = sat(Outputs(sr=b, aux={"sat": heads}), b, anything="else")
        assert each[2] == 0
        assert float(loss) == pytest.approx(np.mean(each), rel=1e-5)

    def test_no_sat_is_zero_and_has_no_gradient(self, vgg):
        a, b = map(jnp.asarray, pictures())
        loss = make_perceptual(vgg, "sat", scale=4)
        value, slope = jax.value_and_grad(lambda x: loss(Outputs(sr=x, aux={}), b))(a)
        assert value.dtype == jnp.float32
        assert float(value) == 0
        np.testing.assert_array_equal(slope, 0)

    def test_no_gradient_goes_to_hr(self, vgg):
        a, b = map(jnp.asarray, pictures())
        loss = make_perceptual(vgg, "rec", scale=4)
        slope = jax.grad(lambda hr: loss(Outputs(sr=a, aux={}), hr))(b)
        np.testing.assert_array_equal(slope, 0)

    def test_half_precision_picture(self, vgg):
        a, b = map(jnp.asarray, pictures())
        loss = make_perceptual(vgg, "rec", scale=4)
        half = a.astype(jnp.bfloat16)
        value = loss(Outputs(sr=half, aux={}), b)
        assert value.dtype == jnp.float32
        full = loss(Outputs(sr=half.astype(jnp.float32), aux={}), b)
        assert float(value) == float(full)

    def test_stand_in_factor(self, vgg):
        a, b = pictures()
        stand_in = dataclasses.replace(vgg, network="vgg16")
        values = [float(loss_and_gradient(v, a, b)[0]) for v in (vgg, stand_in)]
        assert values[1] == pytest.approx(VGG16_FACTORS[4] * values[0], rel=1e-6)

    @pytest.mark.parametrize("scale", [2, 3, 4])
    def test_stand_in_factor_is_the_measured_one(self, scale):
        text = DOCS.read_text(encoding="utf-8")
        assert f"x{scale}: **{VGG16_FACTORS[scale]:.3f}**" in text

    def test_wrong_arguments(self, vgg):
        with pytest.raises(ValueError, match=r"picture must be one of .* got 'cwt'"):
            make_perceptual(vgg, "cwt", scale=4)
        other = dataclasses.replace(vgg, network="vgg11")
        with pytest.raises(ValueError, match=r"network must be .* got 'vgg11'"):
            make_perceptual(other, "rec", scale=4)
        with pytest.raises(ValueError, match=r"scale must be one of .* got 5"):
            make_perceptual(vgg, "rec", scale=5)


class TestTexture:
    def test_gram_by_hand(self):
        x = np.arange(8, dtype=np.float32).reshape(1, 2, 2, 2)
        flat = x.reshape(4, 2)
        np.testing.assert_allclose(gram(jnp.asarray(x))[0], flat.T @ flat / 4)

    def test_by_hand_from_the_features(self, vgg):
        loss = make_texture(vgg, "rec")
        features = relu3_3(vgg)
        image, hr = (jnp.asarray(x) for x in pictures((1, 32, 32, 1)))
        a, b, own = (gram(features(x)) for x in (image, hr, calibration_image()))
        want = np.mean((a - b) ** 2) / np.mean(own**2)
        got = loss(Outputs(sr=image, aux={}), hr)
        np.testing.assert_allclose(got, want, rtol=1e-4)
        assert float(loss(Outputs(sr=hr, aux={}), hr)) == 0.0
        assert float(loss(Outputs(sr=image, aux={}), hr)) > 0.0

    def test_refusal_and_absent_picture(self, vgg):
        with pytest.raises(ValueError, match="picture must be one of"):
            make_texture(vgg, "lr")
        image = jnp.ones((1, 16, 16, 1))
        assert float(make_texture(vgg, "sat")(Outputs(sr=image, aux={}), image)) == 0.0


def golden_slices(features, slope) -> dict[str, np.ndarray]:
    """What the golden file keeps of the large arrays."""
    return {
        "features": np.asarray(features)[:, :, 1, ::4],
        "gradient": np.asarray(slope)[:, ::3, ::2, 0],
    }


@pytest.mark.parametrize("preprocessing", CONVENTIONS)
def test_golden(preprocessing):
    """Against PyTorch in float64 (`python -m tests.parity.test_torch_perceptual`)."""
    with np.load(GOLDEN / f"perceptual_{preprocessing}.npz") as file:
        golden = dict(file)
    vgg, (a, b) = random_vgg(preprocessing), pictures()
    np.testing.assert_allclose(
        fingerprint(vgg.params, {"a": a, "b": b}), golden["fingerprint"], rtol=1e-12
    )
    loss, slope = loss_and_gradient(vgg, a, b)
    kept = golden_slices(relu3_3(vgg)(jnp.asarray(a)), slope)
    assert relative(kept["features"], golden["features"]) < 1e-5
    assert relative(kept["gradient"], golden["gradient"]) < 1e-5
    assert float(loss) == pytest.approx(float(golden["loss"]), rel=1e-5)
    assert unit(vgg) == pytest.approx(float(golden["unit"]), rel=1e-5)
