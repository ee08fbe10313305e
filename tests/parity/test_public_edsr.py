"""EDSR against the public code's output, and what its conversion refuses."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from daasr_jax.registry import MODELS
from daasr_jax.weights.edsr import convert
from daasr_jax.weights.tensors import Tensors
from tests.parity import public

CASES = ["edsr_x2", "edsr_x3", "edsr_x4", "edsr_rgb_x4", "edsr_l_rgb_x2"]


@pytest.mark.parametrize("case", CASES)
def test_output_is_the_public_one(case):
    state, arrays, about = public.load(case)
    converted = convert(Tensors(state))
    fields = about["fields"]
    large = fields["num_feat"] == 256
    assert converted.name == ("edsr_l" if large else "edsr")
    assert converted.fields == {
        "scale": fields["upscale"],
        "features": fields["num_feat"],
        "blocks": fields["num_block"],
        "channels": fields["num_in_ch"],
        "res_scale": 0.1 if large else 1.0,
        "img_range": 255.0,
    }
    untold = {name: fields[name] for name in ("res_scale", "img_range")}
    model = MODELS.get(converted.name)(**{**converted.fields, **untold})
    lr = public.image((2, *about["size"], 1), case)
    ref = np.zeros((2, 8, 8, 1), np.float32)
    with jax.default_matmul_precision("float32"):
        run = jax.jit(lambda *given: model.apply(*given, train=False).sr)
        sr = np.asarray(run({"params": converted.params}, lr, ref))
    expected = arrays["sr"]
    assert sr.shape == expected.shape
    assert np.abs(sr - expected).max() <= 1e-5 * np.abs(expected).max()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"head.0.weight": np.zeros((16, 3, 3, 3))}, "layout of EDSR-PyTorch"),
        ({"conv_first.weight": np.zeros((16, 2, 3, 3))}, "1 or 3 input channels"),
        (
            {f"upsample.{i}.weight": np.zeros((64, 16, 3, 3)) for i in (2, 4)},
            "only x2, x3 and x4",
        ),
        ({"upsample.0.weight": np.zeros((80, 16, 3, 3))}, "only x2, x3 and x4"),
        ({"conv_last.weight": None}, r"it has no conv_last\.weight"),
        ({"other.weight": np.zeros(3)}, r"nothing here takes its other\.weight"),
    ],
)
def test_refusals(change, message):
    state = public.load("edsr_x2")[0]
    state |= {name: value for name, value in change.items() if value is not None}
    for name in [name for name, value in change.items() if value is None]:
        del state[name]
    with pytest.raises(ValueError, match=message):
        convert(Tensors(state))
