"""The cases both sides compute, and the JAX side of them; imports no PyTorch.

A case is one module with its fields, random variables and random inputs, P included:
two float32 searches may pick different patches of equal score, so outputs and gradients
are compared for the same P. Its results are a flat dictionary, arrays NHWC:
the outputs by name, `grad/<input>` and `grad/params/<path>` of the scalar
`sum(mean(output * weight))` over the float outputs, and `stats/<path>`, the running
statistics after the step.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from daasr_jax.models.cwt import CWT
from daasr_jax.models.daasr import DAASR, PRESETS
from daasr_jax.models.detail import Gain
from daasr_jax.models.sat import SAT, GatedFusion
from daasr_jax.models.sfe import SFE
from daasr_jax.resampling import depth_to_space
from tests.parity.weights import flatten, random_variables, uniform

BATCH = 2


@dataclass(frozen=True)
class Case:
    kind: str
    fields: dict[str, Any]
    lr: tuple[int, int] = (8, 9)
    ref: tuple[int, int] | None = None  # the size of the output where None
    train: bool = False
    golden: bool = False
    seed: int = 7
    features: int = 8

    @property
    def scale(self) -> int:
        return self.fields.get("scale", 4)


@dataclass(frozen=True)
class Inputs:
    variables: dict
    arrays: dict[str, np.ndarray]
    index: np.ndarray | None
    outputs: dict[str, np.ndarray] = field(default_factory=dict)


def network(preset: str, scale: int, **changes: Any) -> dict[str, Any]:
    base = {"scale": scale, "features": 8, "groups": 2, **_PRESETS[preset]}
    return base | changes


_FAST = {k: v for k, v in PRESETS["fast"].items() if k not in ("fuse", "detail")}
_PRESETS = {  # as the twin names them
    "paper": PRESETS["paper"],
    "fast": _FAST | {"detail": True},
    "shared": _FAST | {"query": "shared"},
}


CASES = {
    "paper_x2": Case("daasr", network("paper", 2, groups=1), golden=True, train=True),
    "paper_x3": Case("daasr", network("paper", 3, groups=1), ref=(21, 30), golden=True),
    "paper_x4": Case("daasr", network("paper", 4), golden=True, train=True),
    "fast_x2": Case("daasr", network("fast", 2, groups=1), ref=(18, 14), golden=True),
    "fast_x3": Case("daasr", network("fast", 3, groups=1), golden=True, train=True),
    "fast_x4": Case("daasr", network("fast", 4), golden=True),
    "shared_x4": Case("daasr", network("shared", 4)),
    "dense_hr": Case("daasr", network("paper", 2, groups=1, match_stride=1)),
    "dense_lr": Case(
        "daasr",
        network("paper", 3, groups=1, match_stride=1, sat_grid="lr", query="shared"),
    ),
    "group_norm": Case(
        "daasr",
        network(
            "paper",
            2,
            groups=1,
            features=16,
            sfe_norm="group",
            sat_grid="lr",
            heads=4,
            attention_scale="sqrt_hw",
            residual="both",
        ),
        features=16,
    ),
    "blur_4": Case(
        "daasr",
        network(
            "fast",
            3,
            groups=1,
            blur_factor=4,
            sfe_norm="none",
            residual="input",
            supervise_cwt="all",
            mlp_ratio=3,
            blocks_per_group=2,
            layer_scale=0.1,
        ),
    ),
    "no_reference": Case("daasr", network("shared", 4, groups=1, sat="none")),
    "cwt": Case("cwt", {}, golden=True),
    "cwt_4_heads": Case("cwt", {"heads": 4}, golden=True),
    "cwt_sqrt_hw": Case("cwt", {"attention_scale": "sqrt_hw", "mlp_ratio": 3}),
    "cwt_sqrt_hw_4_heads": Case("cwt", {"heads": 4, "attention_scale": "sqrt_hw"}),
    "sfe_hr_train": Case("sfe", {"scale": 2, "grid": "hr"}, golden=True, train=True),
    "sfe_hr_eval": Case("sfe", {"scale": 2, "grid": "hr"}),
    "sfe_hr_group": Case(
        "sfe", {"scale": 2, "grid": "hr", "norm": "group"}, features=16
    ),
    "sfe_hr_none": Case("sfe", {"scale": 2, "grid": "hr", "norm": "none"}),
    "sfe_lr_train": Case("sfe", {"scale": 3, "grid": "lr"}, train=True),
    "sfe_lr_eval": Case("sfe", {"scale": 3, "grid": "lr"}, golden=True),
    "sfe_lr_group": Case(
        "sfe", {"scale": 4, "grid": "lr", "norm": "group"}, features=16
    ),
    "sfe_lr_none": Case("sfe", {"scale": 2, "grid": "lr", "norm": "none"}),
    "sat_hr": Case("sat", {"scale": 4, "match_stride": 4}, lr=(4, 5), golden=True),
    "sat_hr_dense": Case("sat", {"scale": 2, "match_stride": 1}),
    "sat_hr_other_size": Case("sat", {"scale": 3, "match_stride": 3}, ref=(15, 33)),
    "sat_lr": Case("sat", {"scale": 2, "grid": "lr", "map_grid": "lr"}, golden=True),
    "sat_lr_of_hr": Case("sat", {"scale": 3, "grid": "lr", "match_stride": 3}),
    "sat_lr_dense": Case("sat", {"scale": 2, "grid": "lr", "match_stride": 1}),
}
# match_stride is ignored where the maps are on the LR grid.


def fields_of(twin: dict[str, Any]) -> dict[str, Any]:
    """Fields of our network from those of the twin, which takes the CWT's itself."""
    of_cwt = {"mlp_ratio", "heads", "attention_scale"}
    fields = {k: v for k, v in twin.items() if k not in {"sat", *of_cwt}}
    options = {k: v for k, v in twin.items() if k in of_cwt}
    fields["structure"] = functools.partial(CWT, **options)
    if fields["query"] == "extractor":
        fields["fuse"] = GatedFusion
    fields["detail"] = Gain if fields.get("detail") else None
    return fields | ({"align": None} if twin.get("sat") == "none" else {})


def module_of(case: Case, **changes: Any) -> Any:
    """The module of a case; `changes` are fields of a whole network."""
    if case.kind == "daasr":
        return DAASR(**fields_of(case.fields) | changes)
    if case.kind == "cwt":
        return CWT(**case.fields)
    kind = {"sfe": SFE, "sat": SAT}[case.kind]
    return kind(features=case.features, **case.fields)


@functools.cache
def inputs_of(name: str) -> Inputs:
    """Variables, arrays and P of a case: functions of its name's seed only."""
    case = CASES[name]
    h, w = case.lr
    s, c = case.scale, case.features
    rh, rw = case.ref or (h * s, w * s)
    arrays, grid = {}, None
    if case.kind == "daasr":
        arrays = {"lr": (BATCH, h, w, 1), "ref": (BATCH, rh, rw, 1)}
        if case.fields.get("sat") != "none":
            dense = case.fields.get("match_stride") == 1
            grid = (h * s, w * s, rh, rw) if dense else (h, w, rh // s, rw // s)
    elif case.kind == "cwt":
        arrays = {"f": (BATCH, h, w, c)}
    elif case.kind == "sfe":
        arrays = {"x": (BATCH, h * s, w * s, 1)}
    elif case.fields.get("map_grid") == "lr":
        maps, grid = (BATCH, rh // s, rw // s, c), (h, w, rh // s, rw // s)
        arrays = {"f_cwt": (BATCH, h, w, c), "query": (BATCH, h, w, c)}
        arrays |= {"key": maps, "value": maps}
    else:
        maps = (BATCH, rh, rw, c)
        arrays = {"f_cwt": (BATCH, h, w, c), "key": maps, "value": maps}
        dense = case.fields["match_stride"] == 1
        grid = (h * s, w * s, rh, rw) if dense else (h, w, rh // s, rw // s)
    draw = functools.partial(uniform, seed=case.seed)
    values = {k: draw(v, name=f"{name}/{k}") for k, v in arrays.items()}
    if case.kind in ("cwt", "sat"):
        values = {k: 2 * v - 1 for k, v in values.items()}
    index = None
    if grid is not None:
        shape = (BATCH, *grid[:2])
        if case.kind == "daasr":
            shape = (case.fields["groups"], *shape)
        u = draw(shape, name=f"{name}/index")
        index = np.int32(u * grid[2] * grid[3])
    train = {"train": False} if case.kind in ("daasr", "sfe") else {}
    shapes = jax.eval_shape(
        lambda key: module_of(case).init(key, *_arguments(case, values), **train),
        jax.random.key(0),
    )
    return Inputs(random_variables(shapes, seed=case.seed), values, index)


def weight_of(name: str, output: str, shape: tuple[int, ...]) -> np.ndarray:
    """Weights of an output in the scalar whose gradients are compared."""
    return 2 * uniform(shape, seed=CASES[name].seed, name=f"{name}/{output}") - 1


def gradient_of(name: str, **changes: Any) -> Callable[[dict, dict], tuple]:
    """`(params, arrays) -> (gradients by both, (outputs, updated))`, to be jitted.

    Args:
        name: Of the case.
        changes: Fields of the network that are others than the case's.
    """
    case, inputs = CASES[name], inputs_of(name)
    module = module_of(case, **changes)
    stats = {k: v for k, v in inputs.variables.items() if k != "params"}

    def loss(params, arrays):
        keywords: dict[str, Any] = {}
        if case.kind in ("daasr", "sfe"):
            keywords = {"train": case.train}
        if inputs.index is not None:
            keywords["indices" if case.kind == "daasr" else "index"] = inputs.index
        result, updated = module.apply(
            {"params": params, **stats},
            *_arguments(case, arrays),
            mutable=["batch_stats"],
            **keywords,
        )
        outputs = _outputs(case, result)
        total = sum(
            jnp.mean(value * weight_of(name, key, value.shape))
            for key, value in outputs.items()
        )
        return total, (outputs, updated)

    return jax.grad(loss, argnums=(0, 1), has_aux=True)


def computed(name: str, run: Callable[[dict, dict], tuple]) -> dict[str, np.ndarray]:
    """The results of a case by `gradient_of`, jitted."""
    case, inputs = CASES[name], inputs_of(name)
    (params, arrays), (outputs, updated) = run(
        inputs.variables["params"], inputs.arrays
    )
    flat = {**outputs}
    flat |= {f"grad/params/{k}": v for k, v in flatten(params).items()}
    flat |= {f"grad/{k}": v for k, v in arrays.items()}
    if case.train:
        flat |= {f"stats/{k}": v for k, v in flatten(updated["batch_stats"]).items()}
    return {k: np.asarray(v) for k, v in flat.items()}


@functools.cache
def jax_results(name: str) -> dict[str, np.ndarray]:
    """The results of `daasr_jax`, computed once in a process."""
    run = jax.jit(
        gradient_of(name),
        compiler_options={"xla_backend_optimization_level": 0},  # quicker to compile
    )
    return computed(name, run)


def assert_close(name: str, actual: dict, expected: dict) -> None:
    """Outputs and statistics within 1e-5, gradients within 1e-4, of the largest entry.

    The scale of an output is at least 1, that of a gradient is its own largest entry.
    """
    assert set(actual) == set(expected), name
    for key, wanted in expected.items():
        got = actual[key]
        assert got.shape == wanted.shape, (name, key)
        assert got.dtype == wanted.dtype == np.float32, (name, key)
        assert np.isfinite(got).all(), (name, key)
        largest = np.abs(wanted).max()
        assert largest > 0, f"{name}: {key} is all zero, so it tests nothing"
        gap = np.abs(got - wanted).max()
        if key.startswith("grad/"):
            assert gap <= 1e-4 * largest, f"{name}: {key} off by {gap / largest:.2e}"
        else:
            bound = 1e-5 * max(1.0, float(largest))
            assert gap <= bound, f"{name}: {key} off by {gap:.2e}, allowed {bound:.2e}"


def _arguments(case: Case, arrays: dict) -> tuple:
    if case.kind == "sat":
        maps = tuple(arrays.get(k) for k in ("query", "key", "value"))
        return arrays["f_cwt"], maps
    return tuple(arrays.values())


def _outputs(case: Case, result: Any) -> dict:
    if case.kind == "daasr":
        aux = {k: v for k, v in result.aux.items() if k != "index"}
        return {"sr": result.sr, **aux}
    if case.kind == "sat":
        f_sat = result[0]
        if case.fields.get("grid", "hr") == "hr":
            f_sat = depth_to_space(f_sat, case.scale)
        return {"f_sat": f_sat, "confidence": result[2]}
    return {"out": result}
