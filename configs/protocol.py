"""What the configurations of all compared systems share.

`compared` turns `fastmri_x4` into the configuration of another system. Its presets:

* `"common"`: the paper's protocol (section 4.2), the same for every system: batch 9, LR
  crop 40, 200 epochs, Adam 2e-4 halved every 20 epochs, L1 of the output (and of
  the second picture of MINet and MCSR its own term). Numbers of Table 1 compare by it.
* `"published"`: the loss, optimiser, schedule and crop that the system was published
  with.
* `"small"`: few features, batch 8, crop 16, on 2 CPU cores in minutes: the protocol of
  `brain_x4_small` with half its learning rate, for systems that the rate was not
  chosen on, and a short warm-up, for those that make few steps in a minute.
"""

from __future__ import annotations

from typing import Any

from ml_collections import ConfigDict

from configs import brain_x4_small, fastmri_x4
from daasr_jax.experiment.keywords import blank

COMPARED = ("common", "published", "small")


def compared(
    system: str,
    preset: str,
    *,
    small: dict[str, Any],
    losses: dict[str, tuple[str, float]] | None = None,
) -> ConfigDict:
    """The configuration of a compared system at x4, not yet locked.

    Every field of the model is in `config.model.kwargs`, empty: the model that
    `config.model.name` registers then decides, so another variant of the system is
    `--config.model.name=VARIANT` alone.

    Args:
        system: Name of the file and of the model, such as `"hat"`.
        preset: `"common"`, `"published"` (as `"common"`; the caller edits it) or
            `"small"`.
        small: Fields of the model at `"small"`.
        losses: Name -> (registered loss, weight); by default the L1 of the output.

    Raises:
        ValueError: If `preset` is unknown.
    """
    if preset not in COMPARED:
        raise ValueError(f"preset must be one of {sorted(COMPARED)}, got {preset!r}")
    base = brain_x4_small if preset == "small" else fastmri_x4
    config: Any = base.get_config().unlock()
    config.name = f"{system}_x4"
    config.preset = preset
    config.model.name = system
    config.model.kwargs = blank(system)
    config.losses = ConfigDict(
        {
            name: {"name": loss, "weight": weight}
            for name, (loss, weight) in (losses or {"rec": ("pixel.rec", 1.0)}).items()
        }
    )
    config.perceptual.network = "none"
    config.perceptual.picture = "rec"  # the only picture that every system has
    if preset == "small":
        config.model.kwargs.update(small)
        config.optimiser.learning_rate = 1e-3
        config.optimiser.warmup_steps = 50
    return config
