"""Writes `golden_public/swinir*.npz` from the public SwinIR.

Repository https://github.com/JingyunLiang/SwinIR, commit 6545850f (Apache-2.0). The
network is built small, its state dict filled by `public.fill` (index tables and masks
are its own), run in float64 and evaluation mode on images of other sizes than the one
it was built for, none a multiple of the window. A network of three channels sees the
grey image three times and its output is averaged.

    python -m tests.parity.generate_swinir_golden --repository DIR

`timm` is replaced by the three names that the file imports; none acts on a forward pass
in evaluation mode with given weights. Versions are stored in the files.
"""

from __future__ import annotations

import argparse
import importlib
import sys
import types

import numpy as np
import torch

from tests.parity import public

COMMIT = "6545850f"
COMMON = {
    "embed_dim": 12,
    "depths": [2, 2],
    "num_heads": [2, 2],
    "window_size": 4,
    "mlp_ratio": 2,
    "img_range": 1.0,
    "img_size": 16,
}
# File -> upsampler, scale, channels, size of the low-resolution image.
CASES = {
    "swinir_x2": ("pixelshuffle", 2, 1, (10, 13)),
    "swinir_x3": ("pixelshuffle", 3, 1, (9, 7)),
    "swinir_x4": ("pixelshuffle", 4, 1, (7, 10)),
    "swinir_rgb_x4": ("pixelshuffle", 4, 3, (6, 9)),
    "swinir_light_x2": ("pixelshuffledirect", 2, 1, (11, 8)),
    "swinir_light_rgb_x3": ("pixelshuffledirect", 3, 3, (8, 6)),
}
TABLES = ("relative_position_index", "attn_mask")


def stub_timm() -> None:
    """Stands in for the parts of timm that are imported."""

    def pair(x):
        return x if isinstance(x, tuple) else (x, x)

    layers = types.ModuleType("timm.models.layers")
    layers.__dict__.update(
        DropPath=lambda rate: torch.nn.Identity(),
        to_2tuple=pair,
        trunc_normal_=torch.nn.init.trunc_normal_,
    )
    for name in ("timm", "timm.models"):
        sys.modules[name] = types.ModuleType(name)
    sys.modules["timm.models.layers"] = layers


def main() -> None:
    """Writes the files."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--repository", required=True)
    sys.path.insert(0, parser.parse_args().repository)
    stub_timm()
    network = importlib.import_module("models.network_swinir").SwinIR
    for file, (upsampler, scale, channels, size) in CASES.items():
        fields = {
            **COMMON,
            "upsampler": upsampler,
            "upscale": scale,
            "in_chans": channels,
        }
        net = network(**fields).double().eval()
        state = {
            name: tuple(value.shape)
            for name, value in net.state_dict().items()
            if not name.endswith(TABLES)
        }
        filled = {n: torch.from_numpy(public.fill(n, s)) for n, s in state.items()}
        net.load_state_dict(filled, strict=False)
        lr = public.image((2, *size, 1), file)
        x = torch.from_numpy(lr).double().permute(0, 3, 1, 2).repeat(1, channels, 1, 1)
        with torch.no_grad():
            sr = net(x).mean(1, keepdim=True).permute(0, 2, 3, 1).numpy()
        about = {
            "repository": "https://github.com/JingyunLiang/SwinIR",
            "commit": COMMIT,
            "fields": fields,
            "size": size,
            "torch": torch.__version__,
            "numpy": np.__version__,
        }
        public.save(file, state, about, {"sr": sr.astype(np.float32)})


if __name__ == "__main__":
    main()
