"""HAT's official weights to `models.hat`."""

from __future__ import annotations

from typing import Any

import numpy as np

from daasr_jax.weights.swinir import (
    TABLE,
    ends,
    layout,
    mlp,
    mlp_ratio,
    shuffle_tail,
    side,
    swin_layer,
)
from daasr_jax.weights.tensors import Converted, Tensors


def convert(tensors: Tensors) -> Converted:
    """Converts a state dict of https://github.com/XPixelGroup/HAT.

    All fields come from names and shapes, so the small and the large network are
    `"hat"` with other fields; `drop_path` does not matter to inference and keeps its
    default.

    Raises:
        ValueError: If it is a variant that is not supported (identity connections,
            another overlap, x8) or another network.
    """
    _refuse_variants(tensors)
    features, channels = tensors.shape("conv_first.weight")[:2]
    groups = tensors.count("layers.{}.")
    blocks, heads, window = layout(tensors, groups)
    block = "layers.0.residual_group.blocks.0"
    tensors.ignore("relative_position_index_SA", "relative_position_index_OCA")
    fields = {
        "features": features,
        "groups": groups,
        "blocks": blocks,
        "heads": heads,
        "window": window,
        "mlp_ratio": mlp_ratio(tensors, f"{block}.mlp.fc1", features),
        "compress": _ratio(tensors, f"{block}.conv_block.cab.0", features),
        "squeeze": _ratio(tensors, f"{block}.conv_block.cab.3.attention.1", features),
        "channels": channels,
    }
    params: dict[str, Any] = ends(tensors)
    for i in range(groups):
        prefix = f"layers.{i}.residual_group"
        group = {
            f"block{j}": {
                **swin_layer(tensors, f"{prefix}.blocks.{j}"),
                "cab": _cab(tensors, f"{prefix}.blocks.{j}.conv_block.cab"),
            }
            for j in range(blocks)
        }
        group["overlap"] = _overlap(tensors, f"{prefix}.overlap_attn", window)
        params[f"group{i}"] = {**group, "conv": tensors.conv(f"layers.{i}.conv")}
    scale, params["tail"] = shuffle_tail(tensors)
    tensors.finish()
    return Converted("hat", {"scale": scale, **fields}, params)


def _refuse_variants(tensors: Tensors) -> None:
    what = None
    if "layers.0.residual_group.overlap_attn.qkv.weight" not in tensors:
        what = "has no overlap_attn, so it is not HAT"
    elif "upsample.0.weight" not in tensors:
        what = "has no upsample.0, so it is not for super-resolution"
    elif "layers.0.conv.weight" not in tensors:
        what = "has groups without a convolution (identity)"
    elif "absolute_pos_embed" in tensors:
        what = "has an absolute position embedding, made for one image size"
    if what:
        raise ValueError(f"it {what}; only HAT for super-resolution is supported.")


def _ratio(tensors: Tensors, name: str, features: int) -> int:
    """Divisor that gives the width of a bottleneck."""
    return features // tensors.shape(f"{name}.weight")[0]


def _cab(tensors: Tensors, prefix: str) -> dict[str, Any]:
    return {
        "conv1": tensors.conv(f"{prefix}.0"),
        "conv2": tensors.conv(f"{prefix}.2"),
        "squeeze": tensors.dense(f"{prefix}.3.attention.1"),
        "expand": tensors.dense(f"{prefix}.3.attention.3"),
    }


def _overlap(tensors: Tensors, prefix: str, window: int) -> dict[str, Any]:
    """Parameters of `hat.OCAB`.

    The public table counts offsets from query to key and shifts them by n - m + 1, so
    that negative rows wrap around; `swin.relative_index` counts from key to query.
    """
    name = f"{prefix}.{TABLE}"
    table = tensors.take(name)
    span = side(table.shape[0], name)
    if span != 2 * window + window // 2 - 1:
        raise ValueError(
            f"{name} has {span} offsets a side for windows of {window}; only an "
            "overlap of half a window is supported."
        )
    order = (window * (span + 1) - np.arange(span * span)) % (span * span)
    return {
        "norm1": tensors.norm(f"{prefix}.norm1"),
        "qkv": tensors.dense(f"{prefix}.qkv"),
        "bias": {"table": np.ascontiguousarray(table[order])},
        "proj": tensors.dense(f"{prefix}.proj"),
        "norm2": tensors.norm(f"{prefix}.norm2"),
        "mlp": mlp(tensors, f"{prefix}.mlp"),
    }
