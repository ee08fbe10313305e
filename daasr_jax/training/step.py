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
from daasr_jax.training.adversarial import Adversarial, play
from daasr_jax.training.state import TrainState

Batch = Mapping[str, Array]
Step = Callable[[TrainState, Batch], tuple[TrainState, dict[str, Array]]]


def make_train_step(
    model: SuperResolutionModel,
    optimiser: optax.GradientTransformation,
    losses: Mapping[str, tuple[float, Callable[..., Array]]],
    *,
    scale: int,
    ema_decay: float = 0.0,
    axis: str | None = None,
    adversarial: Adversarial | None = None,
) -> Step:
    """Builds the step.

    Args:
        model: The generator.
        optimiser: Its optimiser, which owns the schedule.
        losses: Name -> (weight, loss); the objective is the weighted sum, Eq. 14.
        scale: s; the LR image is made here, from `hr`, on the device.
        ema_decay: Decay of the smoothed parameters per step, 0 for none.
        axis: Named device axis to average over, or None on a single device.
        adversarial: Adds the term lambda_adv L_G and a discriminator, which is updated
            first, on the same output of the generator.

    Returns:
        `step(state, batch) -> (state, metrics)` with `batch` of `hr` and `ref`
        `(B, H, W, 1)` float32 and metrics of scalar float32, losses under `g/` and
        `d/`. Where a loss or gradient is not finite only the counters move on.
    """

    def average(tree: Any) -> Any:
        return tree if axis is None else jax.lax.pmean(tree, axis)

    def objective(gen: Any, state: TrainState, lr: Array, hr: Array, ref: Array):
        variables = {"params": gen, "batch_stats": state.batch_stats}
        key = jax.random.fold_in(jax.random.wrap_key_data(state.key), state.step)
        outputs, updated = model.apply(
            variables,
            lr,
            ref,
            train=True,
            mutable=["batch_stats"],
            rngs={"dropout": _of_device(key, axis)},
        )
        terms = {name: loss(outputs, hr, ref=ref) for name, (_, loss) in losses.items()}
        total = sum(weight * terms[name] for name, (weight, _) in losses.items())
        disc, disc_opt, judged = state.disc, state.disc_opt, {}
        if adversarial is not None:
            terms["adv"], disc, disc_opt, judged = play(
                adversarial,
                disc,
                disc_opt,
                outputs.sr,
                hr,
                step=state.step,
                key=key,
                axis=axis,
            )
            total = total + adversarial.weight * terms["adv"]
        metrics = {f"g/{name}": value for name, value in terms.items()} | judged
        metrics |= confidence_statistics(outputs.aux, axis=axis)
        rest = {
            "batch_stats": updated.get("batch_stats", {}),
            "disc": disc,
            "disc_opt": disc_opt,
        }
        return total, (rest, metrics)

    def step(state: TrainState, batch: Batch):
        hr, ref = batch["hr"], batch["ref"]
        lr = downsample(hr, scale)
        (total, (updated, metrics)), gradient = jax.value_and_grad(
            objective, has_aux=True
        )(state.gen, state, lr, hr, ref)
        gradient, metrics = average((gradient, metrics | {"g/total": total}))
        updates, gen_opt = optimiser.update(gradient, state.gen_opt, state.gen)
        gen = optax.apply_updates(state.gen, updates)
        ema = state.ema
        if ema_decay:
            ema = optax.incremental_update(gen, ema, 1.0 - ema_decay)
        metrics["g/gradient_norm"] = optax.global_norm(gradient)
        updated |= {"gen": gen, "gen_opt": gen_opt, "ema": ema}
        updated["batch_stats"] = average(updated["batch_stats"])
        for side, opt in (("g", gen_opt), ("d", updated["disc_opt"])):
            used = getattr(opt, "hyperparams", {})  # of `make_optimiser`
            if used:
                metrics[f"{side}/learning_rate"] = used["learning_rate"]
        decisive = ("g/total", "g/gradient_norm", "d/total", "d/gradient_norm")
        finite = jnp.all(
            jnp.isfinite(jnp.stack([metrics[k] for k in decisive if k in metrics]))
        )
        kept = {name: getattr(state, name) for name in updated}
        chosen = jax.tree.map(lambda a, b: jnp.where(finite, a, b), updated, kept)
        bad = 1 - finite.astype(jnp.int32)
        counters = {
            "skipped": state.skipped + bad,
            "skipped_in_a_row": (state.skipped_in_a_row + bad) * bad,
        }
        metrics |= {k: v.astype(jnp.float32) for k, v in counters.items()}
        new = state.replace(  # pyright: ignore[reportAttributeAccessIssue]
            step=state.step + 1, **chosen, **counters
        )
        return new, metrics

    return step


def _of_device(key: Array, axis: str | None) -> Array:
    """The key of stochastic depth: devices hold other images, so they draw anew."""
    key = jax.random.fold_in(key, 1)  # not that of the adversarial term
    return key if axis is None else jax.random.fold_in(key, jax.lax.axis_index(axis))


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
