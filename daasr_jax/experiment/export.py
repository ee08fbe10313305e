"""A network as one file: its weights, or a program that runs with JAX alone."""

from __future__ import annotations

from pathlib import Path

import jax

from daasr_jax import released
from daasr_jax.enhancement.artefact import PLATFORMS, make_artefact
from daasr_jax.errors import ConfigError, first_line
from daasr_jax.experiment.installation import commit_id
from daasr_jax.experiment.places import place
from daasr_jax.experiment.saved_run import load_run
from daasr_jax.experiment.weights import about_run, open_weights
from daasr_jax.files import read_json, write_atomically


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
            given = read_json(more)
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


def write_artefact(
    checkpoint: str, out: Path, size: tuple[int, int] | None = None
) -> str:
    """Writes a `jax.export` artefact: a network with its weights as one program.

    Args:
        checkpoint: A released name, a file or a run.
        out: The file.
        size: Height and width of the LR slices that it takes; None for any.

    Returns:
        What it takes and gives.

    Raises:
        CheckpointError: If there are no such weights.
        ConfigError: If flatbuffers is not installed (E259), `out` cannot be written
            (E255), or the network needs a size (E261).
    """
    weights = open_weights(checkpoint)
    scale = weights.about["scale"]
    try:
        data = make_artefact(weights, size)
    except jax.errors.InconclusiveDimensionOperation as error:
        raise ConfigError(
            "E261",
            f"--checkpoint={checkpoint} has a part that needs the height and width of "
            f"slices as numbers: give --size ({first_line(error)}).",
        ) from None
    except ImportError:
        raise ConfigError(
            "E259",
            "jax.export needs flatbuffers, which is not installed: "
            "pip install 'flatbuffers>=24.3'",
        ) from None
    try:
        write_atomically(out, data)
    except OSError as error:
        raise ConfigError("E255", f"--out={out} cannot be written: {error}") from None
    low, high = ("h, w", "H, W")
    if size is not None:
        low, high = (f"{n * size[0]}, {n * size[1]}" for n in (1, scale))
    return (
        f"lr (B, {low}, 1) and ref (B, {high}, 1), float32 in [0, 1], on "
        f"{' and '.join(PLATFORMS)}"
    )
