"""SwinIR against the public code's output, and what its conversion refuses."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from daasr_jax.registry import MODELS
from daasr_jax.weights.swinir import convert
from daasr_jax.weights.tensors import Tensors, shuffled
from tests.parity import public

CASES = [
    "swinir_x2",
    "swinir_x3",
    "swinir_x4",
    "swinir_rgb_x4",
    "swinir_light_x2",
    "swinir_light_rgb_x3",
]
ROWS = np.zeros((256, 64, 3, 3))


@pytest.mark.parametrize("case", CASES)
def test_output_is_the_public_one(case):
    state, arrays, about = public.load(case)
    converted = convert(Tensors(state))
    fields = about["fields"]
    light = fields["upsampler"] == "pixelshuffledirect"
    assert converted.name == ("swinir_light" if light else "swinir")
    assert converted.fields == {
        "scale": fields["upscale"],
        "features": fields["embed_dim"],
        "groups": len(fields["depths"]),
        "blocks": fields["depths"][0],
        "heads": fields["num_heads"][0],
        "window": fields["window_size"],
        "mlp_ratio": fields["mlp_ratio"],
        "upsampler": fields["upsampler"],
        "channels": fields["in_chans"],
    }
    model = MODELS.get(converted.name)(**converted.fields)
    lr = public.image((2, *about["size"], 1), case)
    ref = np.zeros((2, 8, 8, 1), np.float32)
    with jax.default_matmul_precision("float32"):
        run = jax.jit(lambda *given: model.apply(*given, train=False).sr)
        sr = np.asarray(run({"params": converted.params}, lr, ref))
    expected = arrays["sr"]
    assert sr.shape == expected.shape
    assert np.abs(sr - expected).max() <= 1e-5 * np.abs(expected).max()


@pytest.fixture
def state():
    return public.load("swinir_x2")[0]


def test_tables_of_official_files_are_ignored(state):
    block = "layers.0.residual_group.blocks.1"
    state[f"{block}.attn.relative_position_index"] = np.zeros((16, 16))
    state[f"{block}.attn_mask"] = np.zeros((16, 16, 16))
    convert(Tensors(state))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"conv_up1.weight": np.zeros((64, 64, 3, 3))}, r"nearest\+conv"),
        ({"upsample.0.weight": None, "upsample.0.bias": None}, "denoising or JPEG"),
        ({"layers.0.conv.0.weight": np.zeros((3, 12, 3, 3))}, "three convolutions"),
        ({"absolute_pos_embed": np.zeros((1, 256, 12))}, "position embedding"),
        ({"upsample.2.weight": ROWS, "upsample.4.weight": ROWS}, "has 3 steps"),
        ({"conv_before_upsample.0.weight": np.zeros((32, 12, 3, 3))}, "32 channels"),
        ({"norm.weight": None}, r"it has no norm\.weight"),
        ({"other.weight": np.zeros(3)}, r"nothing here takes its other\.weight"),
        (
            {
                "layers.1.residual_group.blocks.0.attn.relative_position_bias_table": (
                    np.zeros((25, 2))
                )
            },
            "must be the same in every group",
        ),
    ],
)
def test_refusals(state, change, message):
    state |= {name: value for name, value in change.items() if value is not None}
    for name in [name for name, value in change.items() if value is None]:
        del state[name]
    with pytest.raises(ValueError, match=message):
        convert(Tensors(state))


def test_shuffled_moves_output_channels():
    bias = np.arange(8.0)  # c i j of two channels and a factor of 2
    expected = [0, 4, 1, 5, 2, 6, 3, 7]
    np.testing.assert_array_equal(shuffled({"bias": bias}, 2)["bias"], expected)
