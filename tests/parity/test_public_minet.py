"""MINet against the public code, repaired as its generator says; x2 only exists."""

from __future__ import annotations

import jax
import numpy as np

from daasr_jax.models.minet import MINet
from daasr_jax.weights.tensors import Tensors
from tests.parity import minet_weights, public


def test_output_is_the_public_one():
    state, arrays, about = public.load("minet_x2")
    fields, params = minet_weights.convert(Tensors(state))
    assert fields == {
        "scale": 2,
        "features": about["fields"]["n_feats"],
        "groups": about["fields"]["n_resgroups"],
        "blocks": about["fields"]["n_resblocks"],
    }
    model = MINet(**fields)
    h, w = about["size"]
    lr = public.image((2, h, w, 1), "minet_x2/lr")
    ref = public.image((2, 2 * h, 2 * w, 1), "minet_x2/ref")
    with jax.default_matmul_precision("float32"):
        run = jax.jit(lambda *given: model.apply(*given, train=False))
        out = run({"params": params}, lr, ref)
    for got, name in ((out.sr, "sr"), (out.aux["ref_rec"], "ref_rec")):
        expected = arrays[name]
        assert got.shape == expected.shape
        assert np.abs(got - expected).max() <= 1e-5 * np.abs(expected).max()
