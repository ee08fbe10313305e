"""Lengths and intervals of a training run."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class LoopSettings:
    """Lengths and intervals of a run, in steps.

    Attributes:
        steps: Updates of the whole run.
        steps_per_epoch: Updates of an epoch, for the reports.
        batch_size: Global batch, for the reports.
        log_every: Interval of reports.
        validate_every: Interval of validation and checkpoint.
        checkpoint_every: Interval of further checkpoints, 0 for none.
        watchdog: Seconds without progress that end the run, 0 for never.
    """

    steps: int
    steps_per_epoch: int
    batch_size: int
    log_every: int
    validate_every: int
    checkpoint_every: int = 0
    watchdog: float = 0
