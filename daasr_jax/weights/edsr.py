"""EDSR's weights in BasicSR's layout to `models.edsr`."""

from __future__ import annotations

from typing import Any

from daasr_jax.resampling import PIXEL_SHUFFLES
from daasr_jax.weights.tensors import Converted, Tensors, shuffled

_LARGE = 256  # channels of the large network


def convert(tensors: Tensors) -> Converted:
    """Converts a state dict of https://github.com/XPixelGroup/BasicSR.

    Two fields are in no tensor and are taken as published: `img_range` is 255, and
    `res_scale` is 0.1 for networks of 256 channels and 1 for others.

    Raises:
        ValueError: If the file is in the layout of the authors' own repository, of a
            scale that is not supported, or of another network.
    """
    if "head.0.weight" in tensors:
        raise ValueError(
            "it has head.0.weight: the layout of EDSR-PyTorch; only BasicSR's, which "
            "starts with conv_first, is supported."
        )
    features, channels = tensors.shape("conv_first.weight")[:2]
    if channels not in (1, 3):
        raise ValueError(f"conv_first must have 1 or 3 input channels, got {channels}.")
    blocks = tensors.count("body.{}.")
    params: dict[str, Any] = {
        "shallow": tensors.conv("conv_first"),
        "body_out": tensors.conv("conv_after_body"),
        "last": tensors.conv("conv_last"),
    }
    for i in range(blocks):
        params[f"block{i}"] = {
            name: tensors.conv(f"body.{i}.{name}") for name in ("conv1", "conv2")
        }
    scale, params["upsampler"] = upsampler(tensors, "upsample.{}", features)
    tensors.finish()
    large = features == _LARGE
    fields = {
        "scale": scale,
        "features": features,
        "blocks": blocks,
        "res_scale": 0.1 if large else 1.0,
        "img_range": 255.0,
        "channels": channels,
    }
    assumed = (
        f"assumed, because no tensor tells: res_scale {fields['res_scale']}, "
        "img_range 255; change the flags below where yours differ"
    )
    name = "edsr_l" if large else "edsr"
    return Converted(name, fields, params, assumed=assumed)


def upsampler(
    tensors: Tensors, pattern: str, features: int
) -> tuple[int, dict[str, Any]]:
    """Scale and parameters of `edsr.Upsampler`.

    Args:
        tensors: The state dict.
        pattern: Name of a step, such as `"upsample.{}"`; convolutions are 0, 2, ...
        features: Channels.

    Raises:
        ValueError: If the scale is not 2, 3 or 4.
    """
    names = [pattern.format(2 * i) for i in range(4)]
    names = [name for name in names if f"{name}.weight" in tensors]
    ratios = tuple(tensors.shape(f"{n}.weight")[0] / features for n in names)
    for scale, factors in PIXEL_SHUFFLES.items():
        if ratios == tuple(factor**2 for factor in factors):
            steps = zip(names, factors, strict=True)
            return scale, {
                f"up{i}": shuffled(tensors.conv(name), factor)
                for i, (name, factor) in enumerate(steps)
            }
    raise ValueError(
        f"{pattern.format(0)} and its like have {ratios} times the channels; only x2, "
        "x3 and x4 are supported."
    )
