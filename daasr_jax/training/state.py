"""The state of a training run: arrays only, donated, sharded and saved as one tree."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct

from daasr_jax.models.outputs import SuperResolutionModel


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
        key: Data of the run's random key (uint32), constant; a step folds `step` in.
    """

    step: Any
    gen: Any
    batch_stats: Any
    gen_opt: Any
    ema: Any
    disc: Any
    disc_opt: Any
    key: Any


def create_state(
    model: SuperResolutionModel,
    optimiser: optax.GradientTransformation,
    *,
    scale: int,
    crop: int,
    seed: int,
    ema: bool,
) -> TrainState:
    """Initial state: parameters drawn from `seed`, EMA equal to them when asked for."""
    init_key, run_key = jax.random.split(jax.random.key(seed))
    lr = jnp.zeros((1, crop, crop, 1))
    ref = jnp.zeros((1, crop * scale, crop * scale, 1))

    @jax.jit
    def create() -> TrainState:
        variables = model.init(init_key, lr, ref, train=False)
        gen = variables["params"]
        return TrainState(
            step=jnp.zeros((), jnp.int32),
            gen=gen,
            batch_stats=variables.get("batch_stats", {}),
            gen_opt=optimiser.init(gen),
            ema=gen if ema else {},
            disc={},
            disc_opt={},
            key=jax.random.key_data(run_key),
        )

    return create()


def generator_variables(state: TrainState) -> dict[str, Any]:
    """Variables to evaluate: the EMA where there is one, else the parameters."""
    return {
        "params": state.ema if state.ema else state.gen,
        "batch_stats": state.batch_stats,
    }
