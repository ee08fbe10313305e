"""A network as one file: its weights, or a program that runs with JAX alone."""

from __future__ import annotations

import json
from pathlib import Path

from daasr_jax import released
from daasr_jax.errors import ConfigError
from daasr_jax.experiment.installation import commit_id
from daasr_jax.experiment.places import place
from daasr_jax.experiment.saved_run import load_run
from daasr_jax.experiment.weights import about_run


def write_weights(folder: str, out: Path, more: Path | None = None) -> str:
    """Writes the best checkpoint of a run in the form of the released weights.

    Args:
        folder: Of the run.
        out: `NAME.safetensors`; `index.json` beside it gets its hash.
        more: JSON with what the run does not tell: `spacing_mm`, `low_confidence`,
            `training`.

    Returns:
        SHA-256 of the file.

    Raises:
        CheckpointError: If the run cannot be opened.
        ConfigError: If `more` or `out` cannot be used (E255).
    """
    given = {}
    if more is not None:
        try:
            given = json.loads(more.read_text(encoding="utf-8"))
            unknown = sorted(set(given) - set(released.USUAL))
            if unknown:
                raise ValueError(f"{unknown[0]!r} is none of {[*released.USUAL]}")
        except (OSError, ValueError, TypeError) as error:
            raise ConfigError(
                "E255", f"--about={more} cannot be read: {error}"
            ) from None
    run = load_run(place(folder))
    about = about_run(run) | given
    made_by = {**run.source, "exported_by": commit_id()}
    about["training"] = {**made_by, **about.get("training", {})}
    try:
        return released.save(out, run.variables, about)
    except (OSError, ValueError) as error:
        raise ConfigError("E255", f"--out={out} cannot be written: {error}") from None
