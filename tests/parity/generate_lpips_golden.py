"""Writes `tests/unit/golden/lpips.json`: LPIPS of generated images by PyTorch.

    python -m tests.parity.generate_lpips_golden

Made with PyTorch 2.13.0 (CPU), float64 throughout, from functional operations and the
weights of `lpips_arrays`. The images are formulas, rounded to float32, and are not
stored.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

GOLDEN = Path(__file__).parents[1] / "unit/golden/lpips.json"
CASES = {  # images, height, width, channels, weight of the texture
    "grey": (1, 64, 64, 1, 0.5),
    "rgb": (1, 64, 64, 3, 0.5),
    "batch": (3, 40, 33, 3, 0.2),
    "alike": (1, 64, 64, 1, 0.05),
    "beyond the range": (1, 48, 48, 1, 3.0),
}


def images(name: str) -> tuple[np.ndarray, np.ndarray]:
    """Estimate and target `(B, H, W, C)` float32: waves, one with a texture added."""
    batch, height, width, channels, weight = CASES[name]
    n, y, x, c = np.ogrid[:batch, :height, :width, :channels]
    target = 0.6 * np.sin(0.21 * x + 0.5 * c + n) * np.cos(0.13 * y - 0.4 * n) + 0.1
    texture = np.sin(0.9 * x * (1 + 0.3 * c) + 0.05 * y * y + n)
    pred = target + weight * texture * np.cos(0.7 * y + c)
    return pred.astype(np.float32), target.astype(np.float32)


def torch_lpips(net: str, pred: np.ndarray, target: np.ndarray) -> list[float]:
    """LPIPS of each image in float64."""
    import torch
    from torch.nn import functional as F

    from daasr_jax.weights.lpips import lpips_arrays

    arrays = [torch.tensor(a, dtype=torch.float64) for a in lpips_arrays(net)]
    heads = arrays[-5:]
    layers = list(zip(arrays[:-5:2], arrays[1:-5:2], strict=True))

    def convolve(x, layer, side, stride, padding):
        kernel, bias = layer
        kernel = kernel.reshape(side, side, -1, len(bias)).permute(3, 2, 0, 1)
        return F.relu(F.conv2d(x, kernel, bias, stride, padding))

    def alex(x):
        taps = [convolve(x, layers[0], 11, 4, 2)]
        taps += [convolve(F.max_pool2d(taps[-1], 3, 2), layers[1], 5, 1, 2)]
        taps += [convolve(F.max_pool2d(taps[-1], 3, 2), layers[2], 3, 1, 1)]
        taps += [convolve(taps[-1], layers[3], 3, 1, 1)]
        taps += [convolve(taps[-1], layers[4], 3, 1, 1)]
        return taps

    def vgg(x):
        for i, layer in enumerate(layers):
            x = convolve(x, layer, 3, 1, 1)
            if i in (1, 3, 6, 9, 12):
                yield x
                x = F.max_pool2d(x, 2, 2)

    def features(image):
        x = torch.tensor(image, dtype=torch.float64).permute(0, 3, 1, 2)
        x = x.expand(-1, 3, -1, -1)
        shift = torch.tensor([-0.030, -0.088, -0.188], dtype=torch.float64)
        scale = torch.tensor([0.458, 0.448, 0.450], dtype=torch.float64)
        x = (x - shift[:, None, None]) / scale[:, None, None]
        for tap in alex(x) if net == "alex" else vgg(x):
            yield tap / (tap.pow(2).sum(1, keepdim=True).sqrt() + 1e-10)

    pairs = zip(features(pred), features(target), heads, strict=True)
    total = sum(
        ((a - b).pow(2) * head[:, None, None]).sum(1).mean((1, 2))
        for a, b, head in pairs
    )
    return total.tolist()


def main() -> None:
    golden = {
        name: {net: torch_lpips(net, *images(name)) for net in ("alex", "vgg")}
        for name in CASES
    }
    GOLDEN.write_text(json.dumps(golden, indent=1) + "\n")
    print(f"{GOLDEN}: {len(golden)} cases")


if __name__ == "__main__":
    main()
