"""Writes `golden_public/mcmrsr_x2.npz` and `mcmrsr_x4.npz` from the public McMRSR.

Repository https://github.com/XAIMI-Lab/McMRSR, commit 38ddd920 (no licence: its code is
run, nothing of it is here). The network alone, without the data consistency around it,
with one channel, which its constructor allows, and a small Swin stack; the numbers of
residual blocks are fixed in it. `timm`, of which it imports three names, is replaced by
a module with the same three. In evaluation mode, float64, on a CPU, nothing else is
changed.

The state dict is filled by `public.fill`; the file names the parameters that have a
gradient from the output, for at x2 the network holds some that it does not use: a third
convolution of the reference, which it even runs, so that sides must be multiples of 16,
and four residual blocks. Stored are the output, the positions that the two searches
find, in the whole map of the reference, and their cosines. Inputs are `public.image`;
the reference's LR counterpart is `interpolate(mode="bicubic", antialias=True)`.

    python -m tests.parity.generate_mcmrsr_golden --repository DIR
"""

from __future__ import annotations

import argparse
import importlib
import sys
import types
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.functional import interpolate

from tests.parity import public

COMMIT = "38ddd920"
FIELDS = {
    "in_chans": 1,
    "embed_dim": 12,
    "depths": [2, 2],
    "num_heads": [2, 2],
    "window_size": 8,
    "mlp_ratio": 2,
}
# By scale: batch and LR size; the reference is `scale` times as large.
SHAPES = {2: (2, 16, 32), 4: (1, 24, 16)}
CROP = 15  # side of the window of the fine search, 13 candidates along it


def stub() -> None:
    """Puts a `timm.models.layers` in place; nothing is dropped in evaluation mode."""
    layers = types.ModuleType("timm.models.layers")
    layers.__dict__.update(
        DropPath=lambda _rate: nn.Identity(),
        to_2tuple=lambda x: x if isinstance(x, tuple) else (x, x),
        trunc_normal_=nn.init.trunc_normal_,
    )
    for name in ("timm", "timm.models"):
        sys.modules[name] = types.ModuleType(name)
    sys.modules[layers.__name__] = layers


def network(repository: str, scale: int) -> Any:
    """The public network, filled."""
    stub()
    if repository not in sys.path:
        sys.path.insert(0, repository)
    module = importlib.import_module("networks.network_mcmrsr")
    net = module.McMRSR(upscale=scale, img_size=SHAPES[scale][1:], **FIELDS)
    filled = {
        name: torch.from_numpy(public.fill(name, tuple(value.shape)))
        for name, value in net.named_parameters()
    }
    net.load_state_dict(filled, strict=False)  # index tables and masks stay
    return net.double().eval()


def recorded(net: Any) -> dict[str, torch.Tensor]:
    """What the two searches return, filled as the network runs."""
    kept: dict[str, torch.Tensor] = {}
    coarse, fine = net.search, net.search_org

    def observed_coarse(*args: Any, **kwargs: Any) -> Any:
        kept["coarse_score"], kept["coarse"] = coarse(*args, **kwargs)
        return kept["coarse_score"], kept["coarse"]

    def observed_fine(*args: Any, **kwargs: Any) -> Any:
        kept["fine_score"], kept["fine"] = fine(*args, **kwargs)
        return kept["fine_score"], kept["fine"]

    net.search, net.search_org = observed_coarse, observed_fine
    return kept


def positions(coarse: np.ndarray, fine: np.ndarray, size: tuple[int, int]):
    """Centres of the chosen patches in the map of `size`, `(B, h, w)`."""
    h, w = size
    y, x = (
        np.clip(at - CROP // 2, 0, n - CROP)[..., None, None]
        for at, n in ((coarse // w, h), (coarse % w, w))
    )
    inner = CROP - 2
    y, x = y + fine // inner + 1, x + fine % inner + 1
    return unblocked(y * w + x).astype(np.int32)


def unblocked(x: np.ndarray) -> np.ndarray:
    """`(B, m, n, 8, 8)` to the map."""
    b, m, n = x.shape[:3]
    return x.transpose(0, 1, 3, 2, 4).reshape(b, 8 * m, 8 * n)


def run(repository: str, scale: int) -> None:
    """Writes one file."""
    file = f"mcmrsr_x{scale}"
    b, h, w = SHAPES[scale]
    net = network(repository, scale)
    kept = recorded(net)
    lr, ref = (
        torch.from_numpy(public.image((b, h * k, w * k, 1), f"{file}/{name}"))
        .double()
        .permute(0, 3, 1, 2)
        for name, k in (("lr", 1), ("ref", scale))
    )
    small = interpolate(ref, (h, w), mode="bicubic", antialias=True)
    sr = net(lr, small, ref)
    sr.sum().backward()
    state = {
        name: tuple(value.shape)
        for name, value in net.named_parameters()
        if value.grad is not None
    }
    blocks = (b, h // 8, w // 8)
    coarse = kept["coarse"].reshape(blocks).numpy()
    fine = kept["fine"].reshape(*blocks, 8, 8).numpy()
    score = kept["fine_score"].detach().reshape(*blocks, 8, 8).numpy()
    arrays = {
        "sr": sr.detach().permute(0, 2, 3, 1).numpy().astype(np.float32),
        "index": positions(coarse, fine, (h, w))[None],
        "score": unblocked(score)[None, ..., None].astype(np.float32),
    }
    about = {
        "repository": "https://github.com/XAIMI-Lab/McMRSR",
        "commit": COMMIT,
        "fields": FIELDS,
        "shape": SHAPES[scale],
        "torch": torch.__version__,
        "numpy": np.__version__,
    }
    public.save(file, state, about, arrays)


def main() -> None:
    """Writes the files."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--repository", required=True)
    repository = parser.parse_args().repository
    for scale in SHAPES:
        run(repository, scale)


if __name__ == "__main__":
    main()
