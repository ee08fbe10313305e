"""TTSR against the public code's output and argmax, and what its conversion refuses."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from daasr_jax.registry import MODELS
from daasr_jax.weights.tensors import Tensors
from daasr_jax.weights.ttsr import convert
from tests.parity import public

FILE = "ttsr_x4"


@pytest.fixture(scope="module")
def golden():
    """State dict, arrays, model, and a function `indices or None -> outputs`."""
    state, arrays, about = public.load(FILE)
    converted = convert(Tensors(state))
    model = MODELS.get(converted.name)(**converted.fields)
    lr, ref = (
        jnp.asarray(public.image((2, *about[size], 1), f"{FILE}_{name}"))
        for name, size in (("lr", "size"), ("ref", "reference"))
    )

    def run(indices):
        with jax.default_matmul_precision("float32"):
            return jax.jit(
                lambda p: model.apply(p, lr, ref, train=False, indices=indices)
            )({"params": converted.params})

    return state, arrays, about, converted, run


def test_fields(golden):
    _, _, about, converted, _ = golden
    assert converted.name == "ttsr"
    assert converted.fields == {
        "scale": 4,
        "features": about["features"],
        "blocks": tuple(map(int, about["blocks"].split("+"))),
        "fold": "ninth",
        "preprocessing": "torchvision",
        "channels": 3,
    }


def test_output_is_the_public_one(golden):
    _, arrays, _, _, run = golden
    out = run(jnp.asarray(arrays["index"]))
    for name, got in (("sr", out.sr), ("score", out.aux["confidence"])):
        expected = arrays[name]
        assert got.shape == expected.shape
        assert np.abs(got - expected).max() <= 1e-5 * np.abs(expected).max()


def test_search_finds_the_public_argmax(golden):
    """Where two keys are equally good the index may differ; the score may not."""
    _, arrays, _, _, run = golden
    aux = run(None).aux
    assert aux["index"].dtype == np.int32
    assert np.mean(aux["index"] == arrays["index"]) > 0.98
    np.testing.assert_allclose(aux["confidence"], arrays["score"], rtol=0, atol=2e-6)


def test_copy_and_constants_of_a_whole_state_dict_are_ignored(golden):
    state = dict(golden[0])
    for name in list(state):
        if name.startswith("LTE."):
            state[name.replace("LTE.", "LTE_copy.")] = np.zeros(1)
    for prefix in ("LTE", "LTE_copy"):
        state |= {
            f"{prefix}.sub_mean.{kind}": np.zeros(3) for kind in ("weight", "bias")
        }
    convert(Tensors(state))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("LTE.slice1.0.weight", "not TTSR"),
        ("MainNet.ex123.conv32.weight", r"has no MainNet\.ex123\.conv32"),
        (None, r"nothing here takes its other\.weight"),
    ],
)
def test_refusals(golden, name, message):
    state = dict(golden[0])
    if name is None:
        state["other.weight"] = np.zeros(3)
    else:
        del state[name]
    with pytest.raises(ValueError, match=message):
        convert(Tensors(state))
