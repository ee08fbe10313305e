"""The data of a run, every file of them read: `daasr_jax.train --check_data`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from daasr_jax import data
from daasr_jax.errors import DataError
from daasr_jax.experiment import checks, parts

Config = Any  # an ml_collections.ConfigDict, whose attributes no checker knows


def check_data(config: Config) -> None:
    """Prints every file that cannot be used, one a line with its reason.

    The others are split and prepared as for a run, which finds them prepared.

    Args:
        config: The configuration.

    Raises:
        DataError: If there are such files (E303), or the others make no data set.
        UserError: For anything else a user can mend, see `daasr_jax.errors`.
    """
    settings = parts.data_settings(checks.place_of_data(config))
    bad = 0

    def say(path: Path, reason: str) -> None:
        nonlocal bad
        bad += 1
        print(f"{path}: {reason}", flush=True)

    prepared = data.prepare(settings, on_bad=say)
    if bad:
        raise DataError(
            "E303",
            f"{bad} files under {settings.root} cannot be used, each is named above: "
            "fetch them again, or give --config.data.skip_bad=true to leave them out",
        )
    slices = sum(len(table) for table in prepared.splits.values())
    print(f"{prepared.dataset}: every file can be used, {slices} slices are prepared")
