"""Writes `golden_public/ttsr_x4.npz` from the public TTSR.

Repository https://github.com/researchmm/TTSR, commit 550e4c9e (MIT). The main network
is built small, the state dict filled by `public.fill` (the constants of the texture
extractor's preprocessing are its own), run in float64 and evaluation mode. The grey
images are mapped to [-1, 1] and repeated; the bicubic images are PyTorch's
`interpolate(antialias=True)`, without the public loader's rounding to 8 bits; the
reference has another size than the output. Stored are the output before its clipping,
averaged over the channels and mapped back, the public argmax and its score.

    python -m tests.parity.generate_ttsr_golden --repository DIR

`torchvision` and `cv2` are replaced by what the files import of them: VGG-19's first
layers, and nothing. Versions are stored in the file.
"""

from __future__ import annotations

import argparse
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.functional import interpolate

from tests.parity import public

COMMIT = "550e4c9e"
FILE = "ttsr_x4"
FEATURES = 8
BLOCKS = "2+1+2+1"
SIZE, REFERENCE = (7, 10), (32, 28)


def vgg19(**_) -> types.SimpleNamespace:
    """Layers up to relu3_1, in the places of torchvision's VGG-19."""
    layers: list[nn.Module] = []
    before = 3
    for width in (64, 64, 0, 128, 128, 0, 256):
        if not width:
            layers.append(nn.MaxPool2d(2, 2))
            continue
        layers += [nn.Conv2d(before, width, 3, padding=1), nn.ReLU(inplace=True)]
        before = width
    return types.SimpleNamespace(features=nn.Sequential(*layers))


def network(repository: Path) -> nn.Module:
    """The public network with its own modules, small."""
    models = types.ModuleType("torchvision.models")
    models.__dict__["vgg19"] = vgg19
    torchvision = types.ModuleType("torchvision")
    torchvision.__dict__["models"] = models
    stubs = {"torchvision": torchvision, "cv2": types.ModuleType("cv2")}
    sys.modules.update(stubs, **{"torchvision.models": models})
    sys.path.insert(0, str(repository))
    from model.TTSR import TTSR  # pyright: ignore[reportMissingImports]

    settings = types.SimpleNamespace(
        num_res_blocks=BLOCKS, n_feats=FEATURES, res_scale=1
    )
    return TTSR(settings).double().eval()


def tensor(image: np.ndarray) -> torch.Tensor:
    """Grey image in [0, 1] to three channels in [-1, 1]."""
    x = torch.from_numpy(image).double().permute(0, 3, 1, 2)
    return 2 * x.repeat(1, 3, 1, 1) - 1


def resize(x: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Bicubic with antialias."""
    return interpolate(x, size, mode="bicubic", antialias=True)


def main() -> None:
    """Writes the file."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--repository", required=True, type=Path)
    net = network(parser.parse_args().repository)
    state = {
        name: tuple(value.shape)
        for name, value in net.state_dict().items()
        if "LTE_copy" not in name and "sub_mean" not in name
    }
    filled = {n: torch.from_numpy(public.fill(n, s)) for n, s in state.items()}
    net.load_state_dict(filled, strict=False)

    lr = tensor(public.image((2, *SIZE, 1), f"{FILE}_lr"))
    ref = tensor(public.image((2, *REFERENCE, 1), f"{FILE}_ref"))
    small = (REFERENCE[0] // 4, REFERENCE[1] // 4)
    blurred = resize(resize(ref, small), REFERENCE)
    bicubic = resize(lr, (4 * SIZE[0], 4 * SIZE[1]))

    kept: dict[str, Any] = {}
    last = net.get_submodule("MainNet.merge_tail.conv_tail2")
    last.register_forward_hook(
        lambda _module, _inputs, output: kept.update(picture=output)
    )
    maximum = torch.max

    def observed(x: torch.Tensor, dim: int):
        found = maximum(x, dim=dim)
        kept["index"] = found.indices
        return found

    torch.max = observed  # pyright: ignore[reportAttributeAccessIssue]
    with torch.no_grad():
        _, score, *_ = net(lr=lr, lrsr=bicubic, ref=ref, refsr=blurred)
    torch.max = maximum
    sr = (kept["picture"].mean(1, keepdim=True) + 1) / 2
    arrays = {
        "sr": sr.permute(0, 2, 3, 1).numpy().astype(np.float32),
        "index": kept["index"].reshape(1, 2, *SIZE).numpy().astype(np.int32),
        "score": score.permute(0, 2, 3, 1)[None].numpy().astype(np.float32),
    }
    about = {
        "repository": "https://github.com/researchmm/TTSR",
        "commit": COMMIT,
        "features": FEATURES,
        "blocks": BLOCKS,
        "size": SIZE,
        "reference": REFERENCE,
        "torch": torch.__version__,
        "numpy": np.__version__,
    }
    public.save(FILE, state, about, arrays)


if __name__ == "__main__":
    main()
