"""The PyTorch side of the cases, in the layout of `cases.jax_results`."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from tests.parity import torch_daasr
from tests.parity.cases import CASES, Case, inputs_of, weight_of
from tests.parity.weights import flatten


def build(case: Case) -> torch.nn.Module:
    if case.kind == "daasr":
        return torch_daasr.TorchDAASR(**case.fields)
    kinds = {
        "cwt": torch_daasr.CWT,
        "sfe": torch_daasr.SFE,
        "sat": torch_daasr.SAT,
    }
    return kinds[case.kind](case.features, **case.fields)


def torch_results(
    name: str, *, dtype: torch.dtype = torch.float64
) -> dict[str, np.ndarray]:
    """Computed in `dtype`, given in float32; in float64 all of the gap is JAX's."""
    case, inputs = CASES[name], inputs_of(name)
    module = build(case).to(dtype).train(case.train)
    torch_daasr.copy_variables(module, inputs.variables)
    tensors = {
        k: torch.tensor(v.transpose(0, 3, 1, 2), dtype=dtype, requires_grad=True)
        for k, v in inputs.arrays.items()
    }
    keywords: dict[str, Any] = {}
    if inputs.index is not None:
        index = torch.tensor(inputs.index, dtype=torch.int64)
        keywords["indices" if case.kind == "daasr" else "index"] = index
    if case.kind == "sat":
        arguments = [tensors.get(k) for k in ("f_cwt", "query", "key", "value")]
    else:
        arguments = list(tensors.values())
    outputs = {
        k: v.movedim(-3, -1)
        for k, v in _outputs(case, module(*arguments, **keywords)).items()
    }
    total = sum(
        (value * torch.tensor(weight_of(name, key, tuple(value.shape)))).mean()
        for key, value in outputs.items()
    )
    total.backward()

    flat = {k: v.detach().numpy() for k, v in outputs.items()}
    for path in flatten(inputs.variables["params"]):
        parts = ("params", *path.split("/"))
        flat[f"grad/params/{path}"] = torch_daasr.flax_array(module, parts, grad=True)
    for key, tensor in tensors.items():
        # An input that reaches no output (the reference of `sat="none"`) has no
        # gradient here and a zero one in JAX.
        if tensor.grad is not None:
            flat[f"grad/{key}"] = tensor.grad.numpy().transpose(0, 2, 3, 1)
    if case.train:
        flat |= _statistics(case, module, inputs)
    return {k: np.array(v, np.float32, order="C") for k, v in flat.items()}


def _statistics(case: Case, module: torch.nn.Module, inputs) -> dict[str, np.ndarray]:
    """Running statistics as Flax keeps them, with the biased variance of the batch.

    PyTorch adds 0.1 n / (n - 1) of the biased variance of n values, Flax 0.1 of it.
    """
    grid = case.fields.get("sfe_grid" if case.kind == "daasr" else "grid")
    images = {"sfe": 1, "daasr": 2}[case.kind] + (
        case.fields.get("query", "projected") != "projected"
    )
    h, w = case.lr
    factor = 1 if grid == "lr" else case.scale
    n = inputs_batch(inputs) * images * h * w * factor**2
    flat = {}
    for path, old in flatten(inputs.variables["batch_stats"]).items():
        new = torch_daasr.flax_array(module, ("batch_stats", *path.split("/")))
        if path.endswith("/var"):
            new = 0.9 * old + (new - 0.9 * old) * (n - 1) / n
        flat[f"stats/{path}"] = new
    return flat


def inputs_batch(inputs) -> int:
    return next(iter(inputs.arrays.values())).shape[0]


def _outputs(case: Case, result: Any) -> dict[str, torch.Tensor]:
    if case.kind == "daasr":
        named = result._asdict()
        return {k: v for k, v in named.items() if k != "index" and v is not None}
    if case.kind == "sat":
        return {"f_sat": result[0], "confidence": result[2]}
    return {"out": result}
