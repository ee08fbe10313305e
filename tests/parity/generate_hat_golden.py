"""Writes `golden_public/hat*.npz` from the public HAT.

Repository https://github.com/XPixelGroup/HAT, commit 1638a9a8 (Apache-2.0). The network
is built small, its state dict filled by `public.fill` (index tables are its own), run
in float64 and evaluation mode on images that are no multiple of the window; the
repository's inference code pads them by reflection before the network and crops after,
which is done here. A network of three channels sees the grey image three times and its
output is averaged.

    python -m tests.parity.generate_hat_golden --repository DIR

`basicsr` is replaced by the three names that the file imports, and `einops` must be
there. Versions are stored in the files.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
import types
from pathlib import Path

import numpy as np
import torch

from tests.parity import public

COMMIT = "1638a9a8"
WINDOW = 4
COMMON = {
    "embed_dim": 12,
    "depths": [2, 2],
    "num_heads": [2, 2],
    "window_size": WINDOW,
    "compress_ratio": 3,
    "squeeze_factor": 4,
    "conv_scale": 0.01,
    "overlap_ratio": 0.5,
    "mlp_ratio": 2,
    "img_range": 1.0,
    "img_size": 16,
    "upsampler": "pixelshuffle",
}
# File -> fields of its own, size of the low-resolution image.
CASES = {
    "hat_x2": ({"upscale": 2, "in_chans": 1}, (10, 13)),
    "hat_x3": ({"upscale": 3, "in_chans": 1}, (9, 7)),
    "hat_x4": ({"upscale": 4, "in_chans": 1}, (7, 10)),
    "hat_rgb_x4": ({"upscale": 4, "in_chans": 3}, (6, 9)),
}
TABLES = ("relative_position_index_SA", "relative_position_index_OCA")


def stub_basicsr() -> None:
    """Stands in for the parts of basicsr that are imported."""

    class Registry:
        def register(self):
            return lambda item: item

    registry = types.ModuleType("basicsr.utils.registry")
    registry.__dict__.update(ARCH_REGISTRY=Registry())
    arch_util = types.ModuleType("basicsr.archs.arch_util")
    arch_util.__dict__.update(
        to_2tuple=lambda x: x if isinstance(x, tuple) else (x, x),
        trunc_normal_=torch.nn.init.trunc_normal_,
    )
    for name in ("basicsr", "basicsr.utils", "basicsr.archs"):
        sys.modules[name] = types.ModuleType(name)
    sys.modules["basicsr.utils.registry"] = registry
    sys.modules["basicsr.archs.arch_util"] = arch_util


def network(repository: Path):
    """The class, loaded from its file: the package imports all of basicsr."""
    path = repository / "hat" / "archs" / "hat_arch.py"
    spec = importlib.util.spec_from_file_location("hat_arch", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.HAT


def main() -> None:
    """Writes the files."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--repository", required=True, type=Path)
    repository = parser.parse_args().repository
    stub_basicsr()
    hat = network(repository)
    for file, (own, size) in CASES.items():
        fields = {**COMMON, **own}
        net = hat(**fields).double().eval()
        state = {
            name: tuple(value.shape)
            for name, value in net.state_dict().items()
            if not name.endswith(TABLES)
        }
        filled = {n: torch.from_numpy(public.fill(n, s)) for n, s in state.items()}
        net.load_state_dict(filled, strict=False)
        channels, scale = fields["in_chans"], fields["upscale"]
        lr = public.image((2, *size, 1), file)
        x = torch.from_numpy(lr).double().permute(0, 3, 1, 2).repeat(1, channels, 1, 1)
        bottom, right = -size[0] % WINDOW, -size[1] % WINDOW
        x = torch.nn.functional.pad(x, (0, right, 0, bottom), "reflect")
        with torch.no_grad():
            y = net(x)[:, :, : scale * size[0], : scale * size[1]]
            sr = y.mean(1, keepdim=True).permute(0, 2, 3, 1).numpy()
        about = {
            "repository": "https://github.com/XPixelGroup/HAT",
            "commit": COMMIT,
            "fields": fields,
            "size": size,
            "torch": torch.__version__,
            "numpy": np.__version__,
        }
        public.save(file, state, about, {"sr": sr.astype(np.float32)})


if __name__ == "__main__":
    main()
