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
from daasr_jax.training.adversarial import Adversarial, judge, play
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
    accumulate: int = 1,
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
        accumulate: Equal parts into which the batch of the device is cut and computed
            one after another, to hold the activations of one part only. Gradients,
            losses and running statistics are the means over the parts; batch
            normalisation normalises a part by itself. With an adversarial part the
            generator runs once more, because its term needs the discriminator that
            has seen the whole batch.

    Returns:
        `step(state, batch) -> (state, metrics)` with `batch` of `hr` and `ref`
        `(B, H, W, 1)` float32 and metrics of scalar float32, losses under `g/` and
        `d/`. Where a loss or gradient is not finite only the counters move on.
    """

    def average(tree: Any) -> Any:
        return tree if axis is None else jax.lax.pmean(tree, axis)

    def generate(gen: Any, state: TrainState, part: Batch, key: Array):
        return model.apply(
            {"params": gen, "batch_stats": state.batch_stats},
            downsample(part["hr"], scale),
            part["ref"],
            train=True,
            mutable=["batch_stats"],
            rngs={"dropout": key},
        )

    def compete(state: TrainState, sr: Array, hr: Array, key: Array):
        """`(disc, disc_opt, metrics)` after the discriminator's turn."""
        assert adversarial is not None
        return play(
            adversarial,
            state.disc,
            state.disc_opt,
            sr,
            hr,
            step=state.step,
            key=key,
            axis=axis,
            parts=accumulate,
        )

    def objective(gen: Any, state: TrainState, part: Batch, key: Array, disc: Any):
        """Of one part; `disc` is None where the discriminator has yet to move."""
        hr, ref = part["hr"], part["ref"]
        outputs, updated = generate(gen, state, part, _of_device(key, axis))
        terms = {name: loss(outputs, hr, ref=ref) for name, (_, loss) in losses.items()}
        total = sum(weight * terms[name] for name, (weight, _) in losses.items())
        judged = {}
        if adversarial is not None:
            if disc is None:
                *disc, judged = compete(state, outputs.sr, hr, key)
            terms["adv"] = judge(adversarial, disc[0], outputs.sr, step=state.step)
            total = total + adversarial.weight * terms["adv"]
        metrics = {f"g/{name}": value for name, value in terms.items()}
        rest = {
            "batch_stats": updated.get("batch_stats", {}),
            "metrics": metrics | judged | {"g/total": total},
            "confidence": outputs.aux.get("confidence"),
        }
        return total, (rest, disc)

    def whole(state: TrainState, batch: Batch, key: Array):
        """Gradient and what else an update needs, of this device's batch."""
        compute = jax.grad(objective, has_aux=True)
        if accumulate == 1:
            gradient, (rest, disc) = compute(state.gen, state, batch, key, None)
            return gradient, rest, disc
        parts = jax.tree.map(lambda x: x.reshape(accumulate, -1, *x.shape[1:]), batch)
        keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(accumulate))
        disc, judged = None, {}
        if adversarial is not None:

            def render(_: None, given: tuple[Batch, Array]):
                part, key = given
                outputs, _ = generate(state.gen, state, part, _of_device(key, axis))
                return None, outputs.sr

            _, sr = jax.lax.scan(render, None, (parts, keys))
            sr = sr.reshape(-1, *sr.shape[2:])
            *disc, judged = compete(state, sr, batch["hr"], key)

        def add(gradient: Any, given: tuple[Batch, Array]):
            change, (rest, _) = compute(state.gen, state, *given, disc)
            return jax.tree.map(jnp.add, gradient, change), rest

        zero = jax.tree.map(jnp.zeros_like, state.gen)
        gradient, rest = jax.lax.scan(add, zero, (parts, keys))
        confidence = rest.pop("confidence")
        if confidence is not None:  # (parts, groups, images, ...)
            confidence = jnp.concatenate(list(confidence), axis=1)
        gradient = jax.tree.map(lambda x: x / accumulate, gradient)
        rest = jax.tree.map(lambda x: jnp.mean(x, axis=0), rest)
        rest["metrics"] |= judged
        return gradient, rest | {"confidence": confidence}, disc

    def step(state: TrainState, batch: Batch):
        key = jax.random.fold_in(jax.random.wrap_key_data(state.key), state.step)
        gradient, rest, disc = whole(state, batch, key)
        gradient, metrics = average((gradient, rest["metrics"]))
        metrics |= confidence_statistics(rest["confidence"], axis=axis)
        updates, gen_opt = optimiser.update(gradient, state.gen_opt, state.gen)
        gen = optax.apply_updates(state.gen, updates)
        ema = state.ema
        if ema_decay:
            ema = optax.incremental_update(gen, ema, 1.0 - ema_decay)
        metrics["g/gradient_norm"] = optax.global_norm(gradient)
        updated = {"gen": gen, "gen_opt": gen_opt, "ema": ema}
        updated["batch_stats"] = average(rest["batch_stats"])
        updated["disc"], updated["disc_opt"] = disc or (state.disc, state.disc_opt)
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
    confidence: Array | None, *, axis: str | None = None
) -> dict[str, Array]:
    """Mean, deviation and minimum of the confidence map C, and the mean per group.

    Args:
        confidence: C of every group `(G, B, ...)`; None without a search.
        axis: Named device axis over which the batch is spread.
    """
    if confidence is None:
        return {}
    c = jax.lax.stop_gradient(confidence)
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
