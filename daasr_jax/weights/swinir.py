"""SwinIR's official weights, classical and light, to `models.swinir`."""

from __future__ import annotations

from typing import Any

from daasr_jax.resampling import SCALES
from daasr_jax.weights.tensors import Converted, Tensors, shuffled

TABLE = "relative_position_bias_table"
_TAIL = 64  # width of the classical tail


def convert(tensors: Tensors) -> Converted:
    """Converts a state dict of https://github.com/JingyunLiang/SwinIR.

    All fields come from names and shapes; `drop_path` does not matter to inference and
    keeps its default. The image range of the network must be 1, as published for
    super-resolution.

    Raises:
        ValueError: If it is a variant that is not supported (denoising, JPEG,
            real-world "nearest+conv", three-convolution groups, x8) or another network.
    """
    _refuse_variants(tensors)
    features, channels = tensors.shape("conv_first.weight")[:2]
    groups = tensors.count("layers.{}.")
    blocks, heads, window = layout(tensors, groups)
    tensors.ignore(".relative_position_index", ".attn_mask")
    block = "layers.0.residual_group.blocks.0"
    fields: dict[str, Any] = {
        "features": features,
        "groups": groups,
        "blocks": blocks,
        "heads": heads,
        "window": window,
        "mlp_ratio": mlp_ratio(tensors, f"{block}.mlp.fc1", features),
        "channels": channels,
    }
    params: dict[str, Any] = ends(tensors)
    for i in range(groups):
        prefix = f"layers.{i}.residual_group.blocks"
        group = {
            f"layer{j}": swin_layer(tensors, f"{prefix}.{j}") for j in range(blocks)
        }
        params[f"group{i}"] = {**group, "conv": tensors.conv(f"layers.{i}.conv")}
    if "conv_before_upsample.0.weight" in tensors:
        scale, params["tail"] = shuffle_tail(tensors)
        name, fields["upsampler"] = "swinir", "pixelshuffle"
    else:
        scale, params["up"] = _direct_tail(tensors, channels)
        name, fields["upsampler"] = "swinir_light", "pixelshuffledirect"
    tensors.finish()
    return Converted(name, {"scale": scale, **fields}, params)


def layout(tensors: Tensors, groups: int) -> tuple[int, int, int]:
    """(layers in a group, heads, window), which must be the same in every group.

    Raises:
        ValueError: If they differ, or there is no group.
    """
    if not groups:
        raise ValueError("it has no layers.0: not a network of residual Swin groups.")
    found = set()
    for i in range(groups):
        prefix = f"layers.{i}.residual_group.blocks"
        blocks = tensors.count(prefix + ".{}.")
        for j in range(blocks):
            table = f"{prefix}.{j}.attn.{TABLE}"
            rows, heads = tensors.shape(table)
            found.add((blocks, heads, (side(rows, table) + 1) // 2))
    if len(found) != 1:
        raise ValueError(
            "layers, heads and window must be the same in every group, got "
            f"{sorted(found)}."
        )
    return found.pop()


def side(rows: int, name: str) -> int:
    """Square root of the rows of a relative position table.

    Raises:
        ValueError: If they are no square.
    """
    root = round(rows**0.5)
    if root * root != rows:
        raise ValueError(f"{name} has {rows} rows, which is no square.")
    return root


def mlp_ratio(tensors: Tensors, name: str, features: int) -> int:
    """Hidden width of an MLP over the features.

    Raises:
        ValueError: If it is not a whole number.
    """
    hidden = tensors.shape(f"{name}.weight")[0]
    if hidden % features:
        raise ValueError(
            f"{name} has {hidden} channels, not a multiple of the {features} features."
        )
    return hidden // features


def ends(tensors: Tensors) -> dict[str, Any]:
    """Parameters around the groups."""
    return {
        "shallow": tensors.conv("conv_first"),
        "norm_in": tensors.norm("patch_embed.norm"),
        "norm_out": tensors.norm("norm"),
        "body_out": tensors.conv("conv_after_body"),
    }


def swin_layer(tensors: Tensors, prefix: str) -> dict[str, Any]:
    """Parameters of `swin.SwinLayer`, and of that part of a HAB."""
    return {
        "norm1": tensors.norm(f"{prefix}.norm1"),
        "attention": {
            "qkv": tensors.dense(f"{prefix}.attn.qkv"),
            "proj": tensors.dense(f"{prefix}.attn.proj"),
            "bias": {"table": tensors.take(f"{prefix}.attn.{TABLE}")},
        },
        "norm2": tensors.norm(f"{prefix}.norm2"),
        "mlp": mlp(tensors, f"{prefix}.mlp"),
    }


def mlp(tensors: Tensors, prefix: str) -> dict[str, Any]:
    """Parameters of `swin.MLP`."""
    return {
        "in": tensors.dense(f"{prefix}.fc1"),
        "out": tensors.dense(f"{prefix}.fc2"),
    }


def shuffle_tail(tensors: Tensors) -> tuple[int, dict[str, Any]]:
    """Scale and parameters of `swin.ShuffleTail`.

    Raises:
        ValueError: If the width is not 64 or the scale not 2, 3 or 4.
    """
    width = tensors.shape("conv_before_upsample.0.weight")[0]
    if width != _TAIL:
        raise ValueError(f"conv_before_upsample.0 has {width} channels, not {_TAIL}.")
    ratio = tensors.shape("upsample.0.weight")[0] / width
    steps = sum(f"upsample.{2 * i}.weight" in tensors for i in range(4))
    scale = {(4.0, 1): 2, (9.0, 1): 3, (4.0, 2): 4}.get((ratio, steps))
    if scale is None:
        raise ValueError(
            f"upsample has {steps} steps, the first of {ratio:g} times the channels; "
            "only x2, x3 and x4 are supported."
        )
    factor = 3 if scale == 3 else 2
    ups = {
        f"up{i}": shuffled(tensors.conv(f"upsample.{2 * i}"), factor)
        for i in range(steps)
    }
    before, last = tensors.conv("conv_before_upsample.0"), tensors.conv("conv_last")
    return scale, {"before": before, **ups, "last": last}


def _direct_tail(tensors: Tensors, channels: int) -> tuple[int, dict[str, Any]]:
    """Scale and parameters of the one convolution before the pixel shuffle."""
    out = tensors.shape("upsample.0.weight")[0]
    scale = round((out / channels) ** 0.5)
    if scale * scale * channels != out or scale not in SCALES:
        raise ValueError(
            f"upsample.0 has {out} output channels for {channels} image channels; only "
            "x2, x3 and x4 are supported."
        )
    return scale, shuffled(tensors.conv("upsample.0"), scale)


def _refuse_variants(tensors: Tensors) -> None:
    """Raises ValueError for the networks of other tasks of the same repository."""
    what = None
    if "conv_up1.weight" in tensors:
        what = "is the real-world variant (nearest+conv upsampling)"
    elif "upsample.0.weight" not in tensors:
        what = "has no upsample.0: a denoising or JPEG variant, or not SwinIR"
    elif "layers.0.conv.0.weight" in tensors:
        what = "has groups that end in three convolutions (3conv)"
    elif "absolute_pos_embed" in tensors:
        what = "has an absolute position embedding, made for one image size"
    if what:
        raise ValueError(
            f"it {what}; only classical and lightweight super-resolution is supported."
        )
