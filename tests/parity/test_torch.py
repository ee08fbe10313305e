"""`daasr_jax` against the same network in PyTorch (written for 2.13.0).

Weights are copied and P is injected. PyTorch computes in float64: in float32 its own
gradient by a temperature, a sum that cancels, is 2.5e-4 off in one case, JAX's 2e-5.
Tolerances are those of `cases.assert_close`: outputs 1e-5, gradients 1e-4 of the
largest entry.
"""

from __future__ import annotations

import jax
import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed (extra: parity)")

from daasr_jax import matching, resampling  # noqa: E402
from tests.parity import torch_daasr  # noqa: E402
from tests.parity.cases import (  # noqa: E402
    CASES,
    assert_close,
    inputs_of,
    jax_results,
    module_of,
)
from tests.parity.torch_cases import build, torch_results  # noqa: E402


@pytest.mark.parametrize("name", CASES)
def test_outputs_and_gradients(name):
    actual = jax_results(name)
    if CASES[name].fields.get("sat") == "none":
        actual = {k: v for k, v in actual.items() if k != "grad/ref"}
    assert_close(name, actual, torch_results(name))


def test_no_reference_has_zero_gradient():
    assert not jax_results("no_reference")["grad/ref"].any()


@pytest.mark.parametrize("method", ["diagonal", "chunked"])
@pytest.mark.parametrize("sizes", [((12, 11), (9, 14)), ((16, 16), (16, 16))])
def test_search_scores_against_float64(method, sizes):
    rng = np.random.default_rng(0)
    query, key = (rng.standard_normal((2, *size, 8)).astype("f") for size in sizes)
    query[:, :5] = 0.0  # background
    key[:, :, :4] = 0.0
    index = matching.search(query, key, method=method)
    score = matching.pair_score(query, key, index)
    wide = (torch.tensor(x, dtype=torch.float64).movedim(-1, 1) for x in (query, key))
    best, _ = torch_daasr.search(*wide)
    gap = best.numpy().reshape(index.shape) - np.asarray(score[..., 0], np.float64)
    assert np.abs(gap).max() <= 1e-5


def test_default_search_of_the_network_agrees():
    """Without injected P the confidences agree, whatever patch a tie resolves to."""
    name = "fast_x3"
    case, inputs = CASES[name], inputs_of(name)
    fields = {k: inputs.arrays[k] for k in ("lr", "ref")}
    run = jax.jit(
        lambda v, a: module_of(case).apply(v, *a.values(), train=False),
        compiler_options={"xla_backend_optimization_level": 0},
    )
    out = run(inputs.variables, fields)
    twin = build(case).eval()
    torch_daasr.copy_variables(twin, inputs.variables)
    with torch.no_grad():
        peer = twin(*(torch.tensor(x).movedim(-1, 1) for x in fields.values()))
    np.testing.assert_allclose(
        out.aux["confidence"][0, ..., 0], peer.confidence[0, :, 0].numpy(), atol=1e-5
    )
    assert len(out.aux["index"]) == 1  # a second group would start from other patches


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_bicubic_is_torch_antialias(scale):
    x = np.random.default_rng(1).random((2, 12, 24, 1), np.float32)
    nchw = torch.tensor(x).movedim(-1, 1)
    pairs = [
        (resampling.upsample(x, scale), torch_daasr.upsample(nchw, scale)),
        (resampling.blur(x, scale), torch_daasr.blur(nchw, scale)),
        (
            resampling.downsample(x, scale),
            torch_daasr.resize(nchw, (12 // scale, 24 // scale)),
        ),
    ]
    for ours, theirs in pairs:
        np.testing.assert_allclose(ours, theirs.movedim(1, -1).numpy(), atol=1e-6)


def test_torch_without_antialias_is_another_kernel():
    x = np.random.default_rng(2).random((1, 12, 12, 1), np.float32)
    other = torch.nn.functional.interpolate(
        torch.tensor(x).movedim(-1, 1), scale_factor=2, mode="bicubic"
    )
    ours = np.asarray(resampling.upsample(x, 2))
    assert np.abs(other.movedim(1, -1).numpy() - ours).max() > 1e-2


def test_copy_refuses_a_partial_tree():
    inputs = inputs_of("cwt")
    module = torch_daasr.CWT(8)
    params = {k: v for k, v in inputs.variables["params"].items() if k != "mlp_in"}
    with pytest.raises(ValueError, match="mlp_in"):
        torch_daasr.copy_variables(module, {"params": params})
