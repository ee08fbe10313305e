"""TTSR's official weights to `models.ttsr`."""

from __future__ import annotations

from typing import Any

from daasr_jax.weights.tensors import Converted, Tensors, shuffled

_TEXTURE = {
    "block1_conv1": "slice1.0",
    "block1_conv2": "slice2.2",
    "block2_conv1": "slice2.5",
    "block2_conv2": "slice3.7",
    "block3_conv1": "slice3.10",
}
# The extractor's copy that a loss uses, and the constants of its preprocessing.
_COPY = tuple(
    f"LTE_copy.{name}.{kind}"
    for name in _TEXTURE.values()
    for kind in ("weight", "bias")
)
_CONSTANTS = ("sub_mean.weight", "sub_mean.bias")


def convert(tensors: Tensors) -> Converted:
    """Converts a state dict of https://github.com/researchmm/TTSR, which is of x4.

    `fold` is `"ninth"`, what these weights were trained with.

    Raises:
        ValueError: If it is of another network.
    """
    for name in ("MainNet.SFE.conv_head", "LTE.slice1.0"):
        if f"{name}.weight" not in tensors:
            raise ValueError(f"it has no {name}, so it is not TTSR.")
    features, channels = tensors.shape("MainNet.SFE.conv_head.weight")[:2]
    lists = ("SFE.RBs", "RB11", "RB21", "RB31")
    blocks = tuple(tensors.count(f"MainNet.{name}." + "{}.") for name in lists)
    fields = {
        "scale": 4,
        "features": features,
        "blocks": blocks,
        "fold": "ninth",
        "preprocessing": "torchvision",
        "channels": channels,
    }
    main = "MainNet."
    params: dict[str, Any] = {
        "texture": {
            name: tensors.conv(f"LTE.{place}") for name, place in _TEXTURE.items()
        },
        "stem": tensors.conv(f"{main}SFE.conv_head"),
        "stem_body": _body(
            tensors, f"{main}SFE.RBs", f"{main}SFE.conv_tail", blocks[0]
        ),
        "exchange1": _exchange2(tensors, f"{main}ex12"),
        "exchange2": _exchange3(tensors, f"{main}ex123"),
        "tail": {
            "up0": tensors.dense(f"{main}merge_tail.conv13"),
            "up1": tensors.dense(f"{main}merge_tail.conv23"),
            "merge": tensors.conv(f"{main}merge_tail.conv_merge"),
            "narrow": tensors.conv(f"{main}merge_tail.conv_tail1"),
            "picture": tensors.dense(f"{main}merge_tail.conv_tail2"),
        },
    }
    for level in range(3):
        n = level + 1
        params[f"fuse{level}"] = tensors.conv(f"{main}conv{n}{n}_head")
        if level:
            params[f"up{level}"] = shuffled(tensors.conv(f"{main}conv{level}{n}"), 2)
        for i in range(n):
            place = f"{n}{i + 1}"
            params[f"level{level}_body{i}"] = _body(
                tensors, f"{main}RB{place}", f"{main}conv{place}_tail", blocks[n]
            )
    tensors.ignore(*_COPY, *_CONSTANTS)
    tensors.finish()
    return Converted("ttsr", fields, params)


def _body(tensors: Tensors, blocks: str, tail: str, count: int) -> dict[str, Any]:
    """Parameters of `ttsr_parts.Body`."""
    convs = {
        f"block{i}_conv{j}": tensors.conv(f"{blocks}.{i}.conv{j}")
        for i in range(count)
        for j in (1, 2)
    }
    return {**convs, "last": tensors.conv(tail)}


def _exchange2(tensors: Tensors, prefix: str) -> dict[str, Any]:
    """Parameters of `ttsr_parts.Exchange` of two branches."""
    return {
        "up0_1": tensors.dense(f"{prefix}.conv12"),
        "down1_0_0": tensors.conv(f"{prefix}.conv21"),
        "merge0": tensors.conv(f"{prefix}.conv_merge1"),
        "merge1": tensors.conv(f"{prefix}.conv_merge2"),
    }


def _exchange3(tensors: Tensors, prefix: str) -> dict[str, Any]:
    """Parameters of `ttsr_parts.Exchange` of three branches."""
    return {
        **_exchange2(tensors, prefix),
        "up0_2": tensors.dense(f"{prefix}.conv13"),
        "up1_2": tensors.dense(f"{prefix}.conv23"),
        "down2_0_0": tensors.conv(f"{prefix}.conv31_1"),
        "down2_0_1": tensors.conv(f"{prefix}.conv31_2"),
        "down2_1_0": tensors.conv(f"{prefix}.conv32"),
        "merge2": tensors.conv(f"{prefix}.conv_merge3"),
    }
