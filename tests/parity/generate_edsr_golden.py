"""Writes `golden_public/edsr*.npz` from the public EDSR.

Repository https://github.com/XPixelGroup/BasicSR, commit 8d56e3a0 (Apache-2.0). The
network is built small, its state dict filled by `public.fill`, run in float64 and
evaluation mode. The public mean is made for three channels: networks of one channel get
a mean of zero after their construction. A network of three channels sees the grey image
three times and its output is averaged.

    python -m tests.parity.generate_edsr_golden --repository DIR

The package itself is not imported: the two files that define the network are executed
with stand-ins for what they import and do not use. Versions are stored in the files.
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

COMMIT = "8d56e3a0"
# File -> scale, channels, features, blocks, res_scale, image range, size of the image.
CASES = {
    "edsr_x2": (2, 1, 16, 2, 1.0, 255.0, (6, 9)),
    "edsr_x3": (3, 1, 16, 2, 1.0, 1.0, (7, 5)),
    "edsr_x4": (4, 1, 16, 2, 0.1, 255.0, (5, 6)),
    "edsr_rgb_x4": (4, 3, 16, 2, 1.0, 255.0, (6, 5)),
    "edsr_l_rgb_x2": (2, 3, 256, 1, 0.1, 255.0, (5, 4)),
}


def stub() -> None:
    """Stands in for the parts of BasicSR and torchvision that are imported."""

    class Nothing:
        def register(self):
            return lambda item: item

    contents = {
        "torchvision": {"__version__": "0"},
        "distutils": {},
        "distutils.version": {"LooseVersion": str},
        "basicsr": {},
        "basicsr.archs": {},
        "basicsr.ops": {},
        "basicsr.ops.dcn": {
            "ModulatedDeformConvPack": torch.nn.Module,
            "modulated_deform_conv": None,
        },
        "basicsr.utils": {"get_root_logger": None},
        "basicsr.utils.registry": {"ARCH_REGISTRY": Nothing()},
    }
    for name, items in contents.items():
        module = types.ModuleType(name)
        module.__dict__.update(items)
        sys.modules[name] = module


def load(repository: str, name: str) -> types.ModuleType:
    """Executes one file of `basicsr.archs`."""
    path = Path(repository, "basicsr", "archs", f"{name}.py")
    full = f"basicsr.archs.{name}"
    spec = importlib.util.spec_from_file_location(full, path)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[full] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def main() -> None:
    """Writes the files."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--repository", required=True)
    repository = parser.parse_args().repository
    stub()
    load(repository, "arch_util")
    network = load(repository, "edsr_arch").EDSR
    for file, case in CASES.items():
        scale, channels, features, blocks, res_scale, img_range, size = case
        fields = {
            "num_in_ch": channels,
            "num_out_ch": channels,
            "num_feat": features,
            "num_block": blocks,
            "upscale": scale,
            "res_scale": res_scale,
            "img_range": img_range,
        }
        net = network(**fields).double().eval()
        if channels == 1:
            net.mean = torch.zeros(1, 1, 1, 1)
        state = {name: tuple(v.shape) for name, v in net.state_dict().items()}
        filled = {n: torch.from_numpy(public.fill(n, s)) for n, s in state.items()}
        net.load_state_dict(filled)
        lr = public.image((2, *size, 1), file)
        x = torch.from_numpy(lr).double().permute(0, 3, 1, 2).repeat(1, channels, 1, 1)
        with torch.no_grad():
            sr = net(x).mean(1, keepdim=True).permute(0, 2, 3, 1).numpy()
        about = {
            "repository": "https://github.com/XPixelGroup/BasicSR",
            "commit": COMMIT,
            "fields": fields,
            "size": size,
            "torch": torch.__version__,
            "numpy": np.__version__,
        }
        public.save(file, state, about, {"sr": sr.astype(np.float32)})


if __name__ == "__main__":
    main()
