"""McMRSR against the public network: output, score, and both searches' choices."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from daasr_jax.models.mcmrsr import McMRSR
from daasr_jax.weights.tensors import Tensors
from tests.parity import mcmrsr_weights, public


@pytest.fixture(scope="module", params=[pytest.param(2, marks=pytest.mark.full), 4])
def case(request):
    """Golden arrays, and a function `indices or None -> outputs`."""
    scale = request.param
    file = f"mcmrsr_x{scale}"
    state, arrays, about = public.load(file)
    fields, params = mcmrsr_weights.convert(Tensors(state), scale)
    theirs = about["fields"]
    assert fields == {
        "scale": scale,
        "features": theirs["embed_dim"],
        "groups": len(theirs["depths"]),
        "blocks": theirs["depths"][0],
        "heads": theirs["num_heads"][0],
        "window": theirs["window_size"],
        "mlp_ratio": theirs["mlp_ratio"],
        "level_blocks": (12, 8, 4)[: scale // 2 + 1],
    }
    model = McMRSR(**fields)
    b, h, w = about["shape"]
    lr = jnp.asarray(public.image((b, h, w, 1), f"{file}/lr"))
    ref = jnp.asarray(public.image((b, h * scale, w * scale, 1), f"{file}/ref"))

    def run(indices):
        with jax.default_matmul_precision("float32"):
            return jax.jit(
                lambda p, i: model.apply(p, lr, ref, train=False, indices=i)
            )({"params": params}, indices)

    return arrays, run


def test_output_is_the_public_one(case):
    arrays, run = case
    out = run(jnp.asarray(arrays["index"]))
    np.testing.assert_array_equal(out.aux["index"], arrays["index"])
    for got, name in ((out.sr, "sr"), (out.aux["confidence"], "score")):
        expected = arrays[name]
        assert got.shape == expected.shape
        assert np.abs(got - expected).max() <= 1e-5 * np.abs(expected).max()


def test_searches_find_the_public_positions(case):
    """Where two are equally good the position may differ; the score may not."""
    arrays, run = case
    aux = run(None).aux
    assert aux["index"].dtype == np.int32
    assert np.mean(aux["index"] == arrays["index"]) > 0.98
    np.testing.assert_allclose(aux["confidence"], arrays["score"], rtol=0, atol=1e-5)
