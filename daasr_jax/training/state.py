"""The state of a training run: arrays only, donated, sharded and saved as one tree."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct

from daasr_jax.models.outputs import SuperResolutionModel
from daasr_jax.training.adversarial import Adversarial


@struct.dataclass
class TrainState:
    """Everything a step reads and writes.

    Attributes:
        step: Updates done, int32 scalar.
        gen: Generator parameters, float32.
        batch_stats: Running statistics of the generator's batch normalisation.
        gen_opt: Generator optimiser state.
        ema: Smoothed generator parameters; empty when off.
        disc: Discriminator parameters; empty without adversarial training.
        disc_opt: Discriminator optimiser state; empty likewise.
        skipped: Updates left out because they were not finite, int32.
        skipped_in_a_row: Those among them since the last one that was made, int32.
        restores: Times the run went back to a checkpoint because of them, int32.
        key: Data of the run's random key (uint32), constant; a step folds `step` in.
        ema_batch_stats: Smoothed `batch_stats`, which belong to the parameters of
            `ema`; empty when off.
    """

    step: Any
    gen: Any
    batch_stats: Any
    gen_opt: Any
    ema: Any
    disc: Any
    disc_opt: Any
    skipped: Any
    skipped_in_a_row: Any
    restores: Any
    key: Any
    ema_batch_stats: Any = struct.field(default_factory=dict)


def create_state(
    model: SuperResolutionModel,
    optimiser: optax.GradientTransformation,
    *,
    scale: int,
    crop: int,
    seed: int,
    ema: bool,
    adversarial: Adversarial | None = None,
) -> TrainState:
    """Initial state: parameters drawn from `seed`, EMA equal to them when asked for.

    The generator starts the same with and without a discriminator.
    """
    init_key, run_key = jax.random.split(jax.random.key(seed))
    lr = jnp.zeros((1, crop, crop, 1))
    ref = jnp.zeros((1, crop * scale, crop * scale, 1))

    @jax.jit
    def create() -> TrainState:
        variables = model.init(init_key, lr, ref, train=False)
        gen, disc, disc_opt = variables["params"], {}, {}
        if adversarial is not None:
            disc_key = jax.random.fold_in(init_key, 1)
            disc = adversarial.discriminator.init(disc_key, ref)["params"]
            disc_opt = adversarial.optimiser.init(disc)
        zero = jnp.zeros((), jnp.int32)
        stats = variables.get("batch_stats", {})
        return TrainState(
            step=zero,
            gen=gen,
            batch_stats=stats,
            gen_opt=optimiser.init(gen),
            ema=gen if ema else {},
            disc=disc,
            disc_opt=disc_opt,
            skipped=zero,
            skipped_in_a_row=zero,
            restores=zero,
            key=jax.random.key_data(run_key),
            ema_batch_stats=stats if ema else {},
        )

    return create()


def generator_variables(state: TrainState) -> dict[str, Any]:
    """Variables to evaluate: the EMA where there is one, else those of the step."""
    smoothed = bool(state.ema)
    return {
        "params": state.ema if smoothed else state.gen,
        "batch_stats": state.ema_batch_stats if smoothed else state.batch_stats,
    }


def _shapes(variables: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    leaves = jax.tree.leaves_with_path(variables)
    return {
        jax.tree_util.keystr(p, simple=True, separator="/"): jnp.shape(x)
        for p, x in leaves
    }


def start_from(state: TrainState, variables: dict[str, Any]) -> TrainState:
    """The state with another generator's parameters and batch statistics.

    Raises:
        ValueError: If the two generators differ in a name or shape.
    """
    own = {"params": state.gen, "batch_stats": state.batch_stats}
    given = {name: variables[name] for name in own}
    wanted, found = _shapes(own), _shapes(given)
    if wanted != found:
        path = next(p for p in sorted(wanted | found) if wanted.get(p) != found.get(p))
        raise ValueError(
            "the generator to start from has other parameters: "
            f"{path} is {found.get(path, 'absent')}, wanted "
            f"{wanted.get(path, 'none of that name')}."
        )
    # Copies, since the step donates its state and no array may be donated twice; on the
    # host, since the devices of the state may be those of other processes too.
    gen, stats, *smoothed = jax.tree.map(
        np.array, (*given.values(), *(given.values() if state.ema else ({}, {})))
    )
    return state.replace(  # pyright: ignore[reportAttributeAccessIssue]
        gen=gen, batch_stats=stats, ema=smoothed[0], ema_batch_stats=smoothed[1]
    )
