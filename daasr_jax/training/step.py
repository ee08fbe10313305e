"""One training step, a pure function of `(state, batch)`, written for one device.

Gradients, batch statistics and metrics are averaged over the named device axis, so the
same body runs under `jax.shard_map` on any mesh and under `jax.pmap`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array

from daasr_jax.models.outputs import SuperResolutionModel
from daasr_jax.resampling import downsample
from daasr_jax.training.state import TrainState

Batch = Mapping[str, Array]
Step = Callable[[TrainState, Batch], tuple[TrainState, dict[str, Array]]]


def make_train_step(
    model: SuperResolutionModel,
    optimiser: optax.GradientTransformation,
    losses: Mapping[str, tuple[float, Callable[..., Array]]],
    *,
    scale: int,
    learning_rate: Callable[[Array], Any],
    ema_decay: float = 0.0,
    axis: str | None = None,
) -> Step:
    """Builds the step.

    Args:
        model: The generator.
        optimiser: Its optimiser, which owns the schedule.
        losses: Name -> (weight, loss); the objective is the weighted sum, Eq. 14.
        scale: s; the LR image is made here, from `hr`, on the device.
        learning_rate: The schedule, to be logged.
        ema_decay: Decay of the smoothed parameters per step, 0 for none.
        axis: Named device axis to average over, or None on a single device.

    Returns:
        `step(state, batch) -> (state, metrics)` with `batch` of `hr` and `ref`
        `(B, H, W, 1)` float32 and metrics of scalar float32, losses under `g/`. Where
        loss or gradient is not finite, `skipped` is 1 and only `step` moves on.
    """

    def average(tree: Any) -> Any:
        return tree if axis is None else jax.lax.pmean(tree, axis)

    def objective(gen, batch_stats, lr, hr, ref):
        variables = {"params": gen, "batch_stats": batch_stats}
        outputs, updated = model.apply(
            variables, lr, ref, train=True, mutable=["batch_stats"]
        )
        terms = {name: loss(outputs, hr) for name, (_, loss) in losses.items()}
        total = sum(weight * terms[name] for name, (weight, _) in losses.items())
        metrics = {f"g/{name}": value for name, value in terms.items()}
        metrics |= confidence_statistics(outputs.aux, axis=axis)
        return total, (updated.get("batch_stats", {}), metrics)

    def step(state: TrainState, batch: Batch):
        hr, ref = batch["hr"], batch["ref"]
        lr = downsample(hr, scale)
        (total, (batch_stats, metrics)), gradient = jax.value_and_grad(
            objective, has_aux=True
        )(state.gen, state.batch_stats, lr, hr, ref)
        gradient, metrics = average((gradient, metrics | {"g/total": total}))
        updates, gen_opt = optimiser.update(gradient, state.gen_opt, state.gen)
        gen = optax.apply_updates(state.gen, updates)
        ema = state.ema
        if ema_decay:
            ema = optax.incremental_update(gen, ema, 1.0 - ema_decay)
        metrics["g/gradient_norm"] = norm = optax.global_norm(gradient)
        metrics["learning_rate"] = jnp.asarray(learning_rate(state.step), jnp.float32)
        finite = jnp.isfinite(metrics["g/total"]) & jnp.isfinite(norm)
        metrics["skipped"] = 1.0 - finite
        updated = {
            "gen": gen,
            "batch_stats": average(batch_stats),
            "gen_opt": gen_opt,
            "ema": ema,
        }
        kept = {name: getattr(state, name) for name in updated}
        chosen = jax.tree.map(lambda a, b: jnp.where(finite, a, b), updated, kept)
        new = state.replace(  # pyright: ignore[reportAttributeAccessIssue]
            step=state.step + 1, **chosen
        )
        return new, metrics

    return step


def confidence_statistics(
    aux: Mapping[str, Array], *, axis: str | None = None
) -> dict[str, Array]:
    """Mean, deviation and minimum of the confidence map C, and the mean per group.

    Args:
        aux: Of the model's outputs; without a SAT there is nothing to tell.
        axis: Named device axis over which the batch is spread.
    """
    if "confidence" not in aux:
        return {}
    c = jax.lax.stop_gradient(aux["confidence"])
    means = jnp.mean(c, axis=tuple(range(1, c.ndim)))
    least = jnp.min(c)
    if axis is not None:
        means, least = jax.lax.pmean(means, axis), jax.lax.pmin(least, axis)
    mean = jnp.mean(means)
    variance = jnp.mean((c - mean) ** 2)
    if axis is not None:
        variance = jax.lax.pmean(variance, axis)
    statistics = {"mean": mean, "std": jnp.sqrt(variance), "min": least}
    statistics |= {f"group{i}": means[i] for i in range(c.shape[0])}
    return {f"confidence/{name}": value for name, value in statistics.items()}
