"""Writes `golden_public/minet_x2.npz` from the public MINet, repaired in memory.

Repository https://github.com/chunmeifeng/MINet, commit 82be4f4f (no licence: its code
is run, nothing of it is here). As published it does not run. What this script changes:

- `rgb_mean` and `rgb_std`, which the constructor of a branch asks for and nobody
  defines, are given to the module; the layer made of them is not used;
- the convolution after the layer attention gets the 2 (groups + 1) maps that reach it,
  not groups + 1.

The network has two groups of two blocks and 64 features, the width its fusion
convolutions are made for. Its state dict is filled by `public.fill`; it is run in
float64 and evaluation mode. Of its parameters the file names those that have a gradient
from the two outputs; the others are never used (repaired so, a network of six groups of
six blocks uses 6,748,189). There is a file for x2 alone: the public network has no
other scale, x3 and x4 are an extension of this package.

    python -m tests.parity.generate_minet_golden --repository DIR
"""

from __future__ import annotations

import argparse
import importlib
import sys
import types
from pathlib import Path

import numpy as np
import torch
from torch import nn

from tests.parity import public

COMMIT = "82be4f4f"
FIELDS = {"n_resgroups": 2, "n_resblocks": 2, "n_feats": 64}
SIZE = (5, 6)


def repaired(repository: str, fields: dict[str, int]) -> nn.Module:
    """The public network after the two changes."""
    for name in ("fastmri", "fastmri.models"):
        package = types.ModuleType(name)
        package.__path__ = [str(Path(repository, *name.split(".")))]
        sys.modules[name] = package
    module = importlib.import_module("fastmri.models.MINet")
    module.rgb_mean, module.rgb_std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    net = module.MINet(**fields)
    features, stages = fields["n_feats"], fields["n_resgroups"] + 1
    net.net2.last_conv = nn.Conv2d(2 * stages * features, features, 3, 1, 1)
    return net


def used(outputs: tuple[torch.Tensor, ...], net: nn.Module) -> dict[str, tuple]:
    """Names and shapes of the parameters that the outputs depend on."""
    sum(output.sum() for output in outputs).backward()
    return {
        name: tuple(value.shape)
        for name, value in net.named_parameters()
        if value.grad is not None
    }


def tensor(image: np.ndarray) -> torch.Tensor:
    """Channels first, float64."""
    return torch.from_numpy(image).double().permute(0, 3, 1, 2)


def main() -> None:
    """Writes the file."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--repository", required=True)
    repository = parser.parse_args().repository
    net = repaired(repository, FIELDS).double().eval()
    net.load_state_dict(
        {
            name: torch.from_numpy(public.fill(name, tuple(value.shape)))
            for name, value in net.named_parameters()
        },
        strict=False,  # the counter of a batch norm that is never used
    )
    h, w = SIZE
    lr = public.image((2, h, w, 1), "minet_x2/lr")
    ref = public.image((2, 2 * h, 2 * w, 1), "minet_x2/ref")
    ref_rec, sr = net(tensor(ref), tensor(lr))
    state = used((ref_rec, sr), net)
    about = {
        "repository": "https://github.com/chunmeifeng/MINet",
        "commit": COMMIT,
        "fields": FIELDS,
        "size": SIZE,
        "torch": torch.__version__,
        "numpy": np.__version__,
    }
    arrays = {
        name: value.detach().permute(0, 2, 3, 1).numpy().astype(np.float32)
        for name, value in (("sr", sr), ("ref_rec", ref_rec))
    }
    public.save("minet_x2", state, about, arrays)


if __name__ == "__main__":
    main()
