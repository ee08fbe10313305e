"""The public McMRSR's state dict, its used part, as parameters of `models.mcmrsr`."""

from __future__ import annotations

from typing import Any

import numpy as np

from daasr_jax.weights.swinir import layout, mlp_ratio, swin_layer
from daasr_jax.weights.tensors import Tensors

STEPS = {2: 1, 4: 2}


def convert(tensors: Tensors, scale: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """`(fields, params)` of `McMRSR`; the scale does not show in a whole state dict."""
    groups = tensors.count("layers.{}.")
    blocks, heads, window = layout(tensors, groups)
    features = tensors.shape("conv_first.weight")[0]
    block = "layers.0.residual_group.blocks.0"
    steps = STEPS[scale]
    level_blocks = tuple(
        tensors.count(f"MAB.blk_x{2**level}.{{}}.") for level in range(steps + 1)
    )
    fields = {
        "scale": scale,
        "features": features,
        "groups": groups,
        "blocks": blocks,
        "heads": heads,
        "window": window,
        "mlp_ratio": mlp_ratio(tensors, f"{block}.mlp.fc1", features),
        "level_blocks": level_blocks,
    }
    deep: dict[str, Any] = {
        "norm_in": tensors.norm("patch_embed.norm"),
        "norm_out": tensors.norm("norm"),
        "out": tensors.conv("conv_after_RSTB"),
    }
    for g in range(groups):
        deep[f"group{g}_conv"] = tensors.conv(f"layers.{g}.conv")
        for i in range(blocks):
            prefix = f"layers.{g}.residual_group.blocks.{i}"
            deep[f"group{g}_layer{i}"] = swin_layer(tensors, prefix)
    params: dict[str, Any] = {
        "shallow": {
            "conv": tensors.conv("conv2d.conv_L1"),
            **{f"block{i}": _block(tensors, f"conv2d.blk_L1.{i}") for i in range(2)},
        },
        "deep": deep,
        "adapt": {
            "shared": tensors.conv("MAB.SAB.conv_shared.0"),
            "gamma": tensors.conv("MAB.SAB.conv_gamma"),
            "beta": tensors.conv("MAB.SAB.conv_beta"),
        },
        "join_same": _join(tensors, "MAB.JRFAB_same_scale", transposed=False),
        "join": _join(tensors, "MAB.JRFAB", transposed=True),
        "last": tensors.conv("MAB.conv_out"),
    }
    names = ("conv_first", "conv_second", "conv_third")
    for i, name in enumerate(names[: steps + 1]):
        params[f"ref{i}"] = tensors.conv(name)
    for level, count in enumerate(level_blocks):
        for i in range(count):
            prefix = f"MAB.blk_x{2**level}.{i}"
            params[f"level{level}_block{i}"] = _block(tensors, prefix)
    tensors.finish()
    return fields, params


def _block(tensors: Tensors, prefix: str) -> dict[str, Any]:
    return {name: tensors.conv(f"{prefix}.{name}") for name in ("conv1", "conv2")}


def _join(tensors: Tensors, prefix: str, *, transposed: bool) -> dict[str, Any]:
    up = _transposed if transposed else Tensors.conv
    return {
        "down_a": tensors.conv(f"{prefix}.conv_down_a"),
        "up_a": up(tensors, f"{prefix}.conv_up_a"),
        "down_b": tensors.conv(f"{prefix}.conv_down_b"),
        "up_b": up(tensors, f"{prefix}.conv_up_b"),
        "merge": tensors.conv(f"{prefix}.conv_cat"),
    }


def _transposed(tensors: Tensors, name: str) -> dict[str, np.ndarray]:
    """From (in, out, rows, columns), both reversed for a convolution of spread maps."""
    weight = tensors.take(f"{name}.weight").transpose(2, 3, 0, 1)[::-1, ::-1]
    kernel = np.ascontiguousarray(weight)
    return {"kernel": kernel, "bias": tensors.take(f"{name}.bias")}
