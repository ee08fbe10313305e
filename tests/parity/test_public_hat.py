"""HAT against the public code's output, and what its conversion refuses."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from daasr_jax.registry import MODELS
from daasr_jax.weights.hat import convert
from daasr_jax.weights.tensors import Tensors
from tests.parity import public

CASES = ["hat_x2", "hat_x3", "hat_x4", "hat_rgb_x4"]
GROUP = "layers.0.residual_group"


@pytest.mark.parametrize("case", CASES)
def test_output_is_the_public_one(case):
    state, arrays, about = public.load(case)
    converted = convert(Tensors(state))
    fields = about["fields"]
    assert converted.name == "hat"
    assert converted.fields == {
        "scale": fields["upscale"],
        "features": fields["embed_dim"],
        "groups": len(fields["depths"]),
        "blocks": fields["depths"][0],
        "heads": fields["num_heads"][0],
        "window": fields["window_size"],
        "mlp_ratio": fields["mlp_ratio"],
        "compress": fields["compress_ratio"],
        "squeeze": fields["squeeze_factor"],
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
    return public.load("hat_x2")[0]


def test_tables_of_official_files_are_ignored(state):
    state["relative_position_index_SA"] = np.zeros((16, 16))
    state["relative_position_index_OCA"] = np.zeros((16, 36))
    convert(Tensors(state))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({f"{GROUP}.overlap_attn.qkv.weight": None}, "not HAT"),
        ({"upsample.0.weight": None}, "not for super-resolution"),
        ({"layers.0.conv.weight": None}, "identity"),
        ({"absolute_pos_embed": np.zeros((1, 256, 12))}, "position embedding"),
        (
            {
                f"{GROUP}.overlap_attn.relative_position_bias_table": (
                    np.zeros((121, 2))
                )
            },
            "half a window",
        ),
        ({"other.weight": np.zeros(3)}, r"nothing here takes its other\.weight"),
    ],
)
def test_refusals(state, change, message):
    state |= {name: value for name, value in change.items() if value is not None}
    for name in [name for name, value in change.items() if value is None]:
        del state[name]
    with pytest.raises(ValueError, match=message):
        convert(Tensors(state))
