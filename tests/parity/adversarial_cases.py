"""Discriminators both sides compute, and the JAX side of them; imports no PyTorch.

Results are a flat dictionary, arrays NHWC: `logits` of the real images; of each
objective `d/<total or term>`, `d/grad/<parameter or image>` of the total, `g` and
`g/grad/<parameter or image>`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from daasr_jax.losses.adversarial import OBJECTIVES, discriminator_loss, generator_loss
from daasr_jax.models.discriminator import PatchDiscriminator
from tests.parity.weights import flatten, random_variables, uniform

GOLDEN = Path(__file__).parents[1] / "unit" / "golden" / "adversarial.npz"
PENALTY_WEIGHT = 10.0
SEED = 11
BATCH = 3
QUICK = {"xla_backend_optimization_level": 0}  # quicker to compile


@dataclass(frozen=True)
class Case:
    features: int
    stages: int
    size: tuple[int, int]


CASES = {
    "golden": Case(4, 2, (11, 14)),
    "odd": Case(8, 3, (27, 21)),
    "one_stage": Case(16, 1, (9, 12)),
}


def inputs_of(name: str) -> tuple[dict, dict[str, np.ndarray]]:
    """Variables, and the arrays `real`, `fake` and `mix`."""
    case = CASES[name]
    image = (BATCH, *case.size, 1)
    shapes = {"real": image, "fake": image, "mix": (BATCH, 1, 1, 1)}
    arrays = {
        key: uniform(shape, seed=SEED, name=f"{name}/{key}")
        for key, shape in shapes.items()
    }
    module = PatchDiscriminator(case.features, case.stages)
    tree = jax.eval_shape(module.init, jax.random.key(0), arrays["real"])
    return random_variables(tree, seed=SEED), arrays


def jax_results(name: str) -> dict[str, np.ndarray]:
    case = CASES[name]
    variables, arrays = inputs_of(name)
    module = PatchDiscriminator(case.features, case.stages)

    def discriminate(params, x):
        return module.apply({"params": params}, x)

    def judge(params, images, objective):
        total, terms = discriminator_loss(
            objective,
            lambda x: discriminate(params, x),
            images["real"],
            images["fake"],
            mix=jnp.asarray(arrays["mix"]),
            penalty_weight=PENALTY_WEIGHT,
        )
        return total, terms | {"total": total}

    def fool(params, images, objective):
        loss = generator_loss(objective, discriminate(params, images["fake"]))
        return loss, loss

    images = {key: arrays[key] for key in ("real", "fake")}
    params = variables["params"]
    logits = jax.jit(discriminate, compiler_options=QUICK)(params, images["real"])
    flat = {"logits": logits}
    for objective in OBJECTIVES:
        gradients = {}
        for side, loss in (("d", judge), ("g", fool)):
            run = jax.jit(
                jax.grad(loss, argnums=(0, 1), has_aux=True),
                static_argnums=2,
                compiler_options=QUICK,
            )
            gradients[side], terms = run(params, images, objective)
            flat |= flatten({objective: {side: terms}})
        for side, (by_params, by_images) in gradients.items():
            if side == "g":
                by_images = {"fake": by_images["fake"]}
            tree = {objective: {side: {"grad": {**by_params, **by_images}}}}
            flat |= flatten(tree)
    return {key: np.asarray(value) for key, value in flat.items()}


def assert_close(actual: dict, expected: dict) -> None:
    """Everything within 1e-5 of its array's largest entry.

    WGAN-GP leaves the last bias free: it shifts all logits alike, which neither the
    difference of means nor a slope can see. Its gradient is zero, here and there.
    """
    assert set(actual) == set(expected)
    for key, wanted in expected.items():
        got = actual[key]
        assert got.shape == wanted.shape, key
        assert got.dtype == wanted.dtype == np.float32, key
        if key == "wgan-gp/d/grad/out/bias":
            assert max(abs(got), abs(wanted)) <= 1e-6
            continue
        largest = np.abs(wanted).max()
        assert largest > 0, f"{key} is all zero, so it tests nothing"
        gap = np.abs(got - wanted).max()
        assert gap <= 1e-5 * largest, f"{key} off by {gap / largest:.2e}"
