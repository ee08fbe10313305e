"""One training step, a pure function of `(state, batch)`, written for one device.

Gradients, batch statistics and metrics are averaged over the named device axis, so the
same body runs under `jax.shard_map` on any mesh and under `jax.pmap`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.tree_util import Partial
from jaxtyping import Array

from daasr_jax.models.outputs import Outputs, SuperResolutionModel
from daasr_jax.resampling import degrade
from daasr_jax.runtime.devices import held
from daasr_jax.training.adversarial import Adversarial, judge, play
from daasr_jax.training.state import TrainState

Batch = Mapping[str, Array]
Step = Callable[[TrainState, Batch], tuple[TrainState, dict[str, Array]]]

LOWERED = 0.5  # factor of the learning rates once a run has gone back
# Whatever of these is not finite leaves an update out.
_DECISIVE = ("g/total", "g/gradient_norm", "d/total", "d/gradient_norm")


def make_train_step(
    model: SuperResolutionModel,
    optimiser: optax.GradientTransformation,
    losses: Mapping[str, tuple[float, Callable[..., Array]]],
    *,
    scale: int,
    degradation: str = "bicubic",
    ema_decay: float = 0.0,
    axis: str | None = None,
    adversarial: Adversarial | None = None,
    accumulate: int = 1,
) -> Partial:
    """Builds the step.

    Args:
        model: The generator.
        optimiser: Its optimiser, which owns the schedule.
        losses: Name -> (weight, loss); the objective is the weighted sum, Eq. 14. A
            loss with frozen weights is a `Partial`, see `losses.perceptual`.
        scale: s; the LR image is made here, from `hr`, on the device.
        degradation: How, see `resampling.degrade`.
        ema_decay: Decay of the smoothed parameters and running statistics per step, 0
            for none.
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
        `d/`. Where a loss or gradient is not finite only the counters move on. The
        learning rates are halved once the run has gone back because of such. It is a
        `Partial` too, whose leaves are the frozen weights of all losses and the arrays
        of the generator's schedule: as an argument of a compiled program it puts no
        constant into it, see `devices.compile_step`.
    """
    weights = {name: float(weight) for name, (weight, _) in losses.items()}
    terms = {name: held(loss) for name, (_, loss) in losses.items()}

    def step(
        terms: dict[str, Partial], update: Partial, state: TrainState, batch: Batch
    ):
        objective = _Objective(
            model, weights, terms, scale, degradation, axis, adversarial
        )
        key = jax.random.fold_in(jax.random.wrap_key_data(state.key), state.step)
        if accumulate == 1:
            found = _whole(objective, state, batch, key)
        else:
            found = _in_parts(objective, state, batch, key, accumulate)
        gradient, metrics, batch_stats = _average(
            (found.gradient, found.metrics, found.batch_stats), axis
        )
        metrics |= confidence_statistics(found.confidence, axis=axis)
        updates, gen_opt = update(gradient, state.gen_opt, state.gen)
        rate = _rate(state)
        gen = optax.apply_updates(state.gen, optax.tree.scale(rate, updates))
        ema: Any = state.ema, state.ema_batch_stats
        if ema_decay:
            ema = optax.incremental_update((gen, batch_stats), ema, 1.0 - ema_decay)
        disc, disc_opt = found.disc or (state.disc, state.disc_opt)
        metrics["g/gradient_norm"] = optax.global_norm(gradient)
        for side, opt in (("g", gen_opt), ("d", disc_opt)):
            used = getattr(opt, "hyperparams", {})  # of `make_optimiser`
            if used:
                metrics[f"{side}/learning_rate"] = rate * used["learning_rate"]
        updated = {
            "gen": gen,
            "batch_stats": batch_stats,
            "gen_opt": gen_opt,
            "ema": ema[0],
            "ema_batch_stats": ema[1],
            "disc": disc,
            "disc_opt": disc_opt,
        }
        return _unless_bad(state, updated, metrics)

    return Partial(step, terms, held(optimiser.update))


@dataclasses.dataclass(frozen=True)
class _Objective:
    """Eq. 14 of a device's batch or a part of it; fields as in `make_train_step`."""

    model: SuperResolutionModel
    weights: Mapping[str, float]
    losses: Mapping[str, Callable[..., Array]]
    scale: int
    degradation: str
    axis: str | None
    adversarial: Adversarial | None

    def generate(
        self, gen: Any, state: TrainState, batch: Batch, key: Array
    ) -> tuple[Outputs, Any]:
        """The generator's outputs and its new running statistics."""
        outputs, updated = self.model.apply(
            {"params": gen, "batch_stats": state.batch_stats},
            degrade(batch["hr"], self.scale, degradation=self.degradation),
            batch["ref"],
            train=True,
            mutable=["batch_stats"],
            rngs={"dropout": _of_device(key, self.axis)},
        )
        return outputs, updated.get("batch_stats", {})

    def compete(
        self, state: TrainState, sr: Array, hr: Array, key: Array, *, parts: int = 1
    ) -> tuple[tuple[Any, Any], dict[str, Array]]:
        """`((disc, disc_opt), metrics)` after the discriminator's turn."""
        assert self.adversarial is not None
        disc, disc_opt, metrics = play(
            self.adversarial,
            state.disc,
            state.disc_opt,
            sr,
            hr,
            step=state.step,
            key=key,
            axis=self.axis,
            parts=parts,
            rate=_rate(state),
        )
        return (disc, disc_opt), metrics

    def __call__(
        self,
        gen: Any,
        state: TrainState,
        batch: Batch,
        key: Array,
        disc: tuple[Any, Any] | None,
    ) -> tuple[Array, dict[str, Any]]:
        """The objective, and what else an update needs, by the fields of `_Found`.

        `disc` is None where the discriminator has yet to move.
        """
        hr, ref = batch["hr"], batch["ref"]
        outputs, batch_stats = self.generate(gen, state, batch, key)
        terms = {name: loss(outputs, hr, ref=ref) for name, loss in self.losses.items()}
        total: Any = sum(weight * terms[name] for name, weight in self.weights.items())
        judged = {}
        if self.adversarial is not None:
            if disc is None:
                disc, judged = self.compete(state, outputs.sr, hr, key)
            terms["adv"] = judge(self.adversarial, disc[0], outputs.sr, step=state.step)
            total = total + self.adversarial.weight * terms["adv"]
        metrics = {f"g/{name}": value for name, value in terms.items()}
        return total, {
            "metrics": metrics | judged | {"g/total": total},
            "batch_stats": batch_stats,
            "confidence": outputs.aux.get("confidence"),
            "disc": disc,
        }


@dataclasses.dataclass(frozen=True)
class _Found:
    """What an update needs: gradient, metrics, running statistics, C, discriminator."""

    gradient: Any
    metrics: dict[str, Array]
    batch_stats: Any
    confidence: Array | None
    disc: tuple[Any, Any] | None


def _whole(
    objective: _Objective, state: TrainState, batch: Batch, key: Array
) -> _Found:
    """Of this device's batch at once."""
    compute = jax.grad(objective, has_aux=True)
    gradient, rest = compute(state.gen, state, batch, key, None)
    return _Found(gradient, **rest)


def _in_parts(
    objective: _Objective, state: TrainState, batch: Batch, key: Array, parts: int
) -> _Found:
    """Of this device's batch, one part after another."""
    mean, concat = (
        optax.microbatching.AccumulationType.MEAN,
        optax.microbatching.AccumulationType.CONCAT,
    )
    # `microbatch` deals rows out in turn. Here a part of neighbours is one row.
    cut = jax.tree.map(lambda x: x.reshape(parts, -1, *x.shape[1:]), batch)
    given = cut, jnp.arange(parts)

    def part(cut: Batch, number: Array) -> tuple[Batch, Array]:
        rows = jax.tree.map(lambda x: x[0], cut)
        return rows, jax.random.fold_in(key, number[0])

    disc, judged = None, {}
    if objective.adversarial is not None:

        def render(*given: Any) -> Array:
            return objective.generate(state.gen, state, *part(*given))[0].sr[None]

        sr = optax.microbatch(render, (0, 1), 1, concat)(*given)
        sr = sr.reshape(batch["hr"].shape)
        disc, judged = objective.compete(state, sr, batch["hr"], key, parts=parts)

    def of_part(*given: Any) -> tuple[Any, Any]:
        compute = jax.grad(objective, has_aux=True)
        gradient, rest = compute(state.gen, state, *part(*given), disc)
        return (gradient, rest["metrics"], rest["batch_stats"]), jax.tree.map(
            lambda c: c[None], rest["confidence"]
        )

    run = optax.microbatch(of_part, (0, 1), 1, (mean, concat))
    (gradient, metrics, batch_stats), confidence = run(*given)
    if confidence is not None:  # (parts, groups, images, ...)
        confidence = jnp.concatenate(list(confidence), axis=1)
    return _Found(gradient, metrics | judged, batch_stats, confidence, disc)


def _rate(state: TrainState) -> Array:
    """Factor of the learning rates: `LOWERED` once a run has gone back."""
    return jnp.where(state.restores > 0, jnp.float32(LOWERED), jnp.float32(1))


def _unless_bad(
    state: TrainState, updated: dict[str, Any], metrics: dict[str, Array]
) -> tuple[TrainState, dict[str, Array]]:
    """The state after an update, or before it where something was not finite."""
    decisive = jnp.stack([metrics[k] for k in _DECISIVE if k in metrics])
    finite = jnp.all(jnp.isfinite(decisive))
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


def _average(tree: Any, axis: str | None) -> Any:
    return tree if axis is None else jax.lax.pmean(tree, axis)


def _of_device(key: Array, axis: str | None) -> Array:
    """The key of stochastic depth: devices hold other images, so they draw anew."""
    key = jax.random.fold_in(key, 1)  # not that of the adversarial term
    return key if axis is None else jax.random.fold_in(key, jax.lax.axis_index(axis))


def confidence_statistics(
    confidence: Array | None, *, axis: str | None = None
) -> dict[str, Array]:
    """Mean, deviation and minimum of the confidence map C, and the mean per group.

    Args:
        confidence: C of every group `(G, B, ...)`; None where there is none.
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
