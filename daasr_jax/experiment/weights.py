"""The weights that a command line names: released, a file, or a run of one's own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from daasr_jax import released
from daasr_jax.experiment import parts
from daasr_jax.experiment.places import place
from daasr_jax.experiment.record import RECORD
from daasr_jax.experiment.saved_run import TrainedRun, load_run


def open_weights(text: str | Path, *, names: bool = False) -> released.Weights:
    """A released name (`x4`), a `.safetensors` file, or the folder of a run.

    A folder of that name that holds a run comes first.

    Args:
        text: Which.
        names: What they are called in results is the place of the run, or the name of
            the file; else that it is a run or a file. Hashes tell which one.

    Raises:
        CheckpointError: If there are no such weights, or they cannot be used.
    """
    folder = place(text)
    if not (folder / RECORD).is_file():
        if folder.suffix != ".safetensors":
            return released.load(str(text))
        weights = released.load(folder)
        if names or folder.parent.resolve() == released.FOLDER.resolve():
            return weights
        source = weights.about["source"] | {"weights": "a file"}
        return weights._replace(about=weights.about | {"source": source})
    run = load_run(folder)
    about = released.USUAL | about_run(run)
    source = {"weights": str(folder) if names else "a run", **run.source}
    return released.Weights(
        parts.make_model(run.config), run.variables, about | {"source": source}
    )


def about_run(run: TrainedRun) -> dict[str, Any]:
    """What `released.save` needs to know of a run."""
    config: Any = run.config
    return {
        "scale": config.scale,
        "model": config.model.name,
        "kwargs": plain(config.model.kwargs.to_dict()),
        "degradation": config.degradation,
        "data_consistency": config.model.data_consistency,
    }


def plain(given: dict[str, Any]) -> dict[str, Any]:
    """Keywords without what is left to the default."""
    return {
        key: plain(value) if isinstance(value, dict) else value
        for key, value in given.items()
        if value is not None
    }
