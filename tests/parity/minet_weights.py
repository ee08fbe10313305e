"""The public MINet's state dict, its used part, as parameters of `models.minet`."""

from __future__ import annotations

from typing import Any

import numpy as np

from daasr_jax.weights.edsr import upsampler
from daasr_jax.weights.tensors import Tensors


def convert(tensors: Tensors) -> tuple[dict[str, int], dict[str, Any]]:
    """`(fields, params)` of `MINet`; `net1` is the reference's stream, `net2` ours.

    `reduction` is not among the fields: the public code has 16.
    """
    features = tensors.shape("net1.head.0.weight")[0]
    groups = tensors.count("net1.body.{}.body.0.")
    blocks = tensors.count("net1.body.0.body.{}.body.0.")
    scale, up = upsampler(tensors, "tail.0.{}", features)
    params: dict[str, Any] = {
        "upsampler": up,
        "up_out": tensors.conv("tail.1"),
        "layers": {"gamma": _scalar(tensors, "net2.la.gamma")},
        "layers_out": tensors.conv("net2.last_conv"),
        "join": tensors.conv("net2.last"),
        "ref_join": tensors.conv("net1.last1"),
    }
    for ours, theirs in (("ref_", "net1"), ("", "net2")):
        params |= {
            f"{ours}shallow": tensors.conv(f"{theirs}.head.0"),
            f"{ours}body_out": tensors.conv(f"{theirs}.body.{groups}"),
            f"{ours}gate": _gate(tensors, f"{theirs}.csa"),
            f"{ours}last": tensors.conv(f"{theirs}.final"),
        }
        for i in range(groups):
            params[f"{ours}group{i}"] = _group(tensors, f"{theirs}.body.{i}", blocks)
    for i in range(groups + 1):
        params[f"fuse{i}"] = tensors.dense(f"fusion_convs.{i}")
    tensors.finish()
    fields = {"scale": scale, "features": features, "groups": groups, "blocks": blocks}
    return fields, params


def _group(tensors: Tensors, prefix: str, blocks: int) -> dict[str, Any]:
    group: dict[str, Any] = {"conv": tensors.conv(f"{prefix}.body.{blocks}")}
    for i in range(blocks):
        block = f"{prefix}.body.{i}.body"
        group[f"block{i}"] = {
            "conv1": tensors.conv(f"{block}.0"),
            "conv2": tensors.conv(f"{block}.2"),
            "squeeze": tensors.dense(f"{block}.3.conv_du.0"),
            "excite": tensors.dense(f"{block}.3.conv_du.2"),
        }
    return group


def _gate(tensors: Tensors, prefix: str) -> dict[str, np.ndarray]:
    """Kernel from (1, 1, channels, rows, columns) to rows, columns, channels first."""
    kernel = tensors.take(f"{prefix}.conv.weight").transpose(3, 4, 2, 1, 0)
    return {
        "gamma": _scalar(tensors, f"{prefix}.gamma"),
        "kernel": np.ascontiguousarray(kernel),
        "bias": _scalar(tensors, f"{prefix}.conv.bias"),
    }


def _scalar(tensors: Tensors, name: str) -> np.ndarray:
    return tensors.take(name).reshape(())
