"""How long the networks of the paper's tables are trained, and how large they are."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Budget:
    """How long the networks of a plan are trained, and how large they are.

    Attributes:
        name: `smoke`, `short` or `paper`.
        size: `small` or `published`.
        rates: Learning rates, among which each network's is chosen.
        steps: Of a cell; 0 for `epochs`, or for `minutes`.
        trial_steps: Of a trial of one rate, and with `minutes` of the run that
            measures the speed, the least of a trial; 0 for a tenth of the epochs.
        epochs: Of the paper's recipe.
        minutes: Wall time of a cell, from the speed that was measured before; 0 for a
            number of steps. A trial takes a tenth of it.
        side: Of the slices in pixels; 0 for that of the data's configuration.
        batch: Images of a step; 0 for that of the row's configuration.
        sparser: Of so many slices of the data one is kept.
        resamples: Of the bootstrap.
        validations: Of a cell whose length is in steps, evenly spaced, the last at its
            end. A trial has the one at its end.
    """

    name: str
    size: str
    rates: tuple[float, ...]
    steps: int = 0
    trial_steps: int = 0
    epochs: int = 0
    minutes: float = 0.0
    side: int = 0
    batch: int = 0
    sparser: int = 1
    resamples: int = 10_000
    validations: int = 5

    def matches(self) -> tuple[str, ...]:
        """What the cells of a row may have equal to those of other rows."""
        return ("time", "steps") if self.minutes else ("steps",)

    def trial_epochs(self) -> int:
        """Of a trial that has no number of steps: a tenth."""
        return max(1, self.epochs // 10)


_SMALL, _PUBLISHED = (5e-4, 1e-3, 2e-3), (1e-4, 2e-4, 4e-4)


def budget(
    name: str, *, size: str = "", steps: int = 0, minutes: float = 0.0, gpu: bool
) -> Budget:
    """A budget by its name.

    Args:
        name: `smoke`, `short` or `paper`.
        size: `small` or `published`; empty for the usual one.
        steps: Of a cell instead; with `short` they replace the minutes.
        minutes: Of a cell with `short`; 0 for ten.
        gpu: Whether there is one: `short` has published sizes there, small ones else.
    """
    usual = {"smoke": "small", "paper": "published"}
    size = size or usual.get(name, "published" if gpu else "small")
    rates = _SMALL if size == "small" else _PUBLISHED
    if name == "smoke":
        steps = steps or 60
        return Budget(name, size, rates, steps, max(1, steps // 3), side=64, batch=2,
                      sparser=4, resamples=1000, validations=1)  # fmt: skip
    if name == "short":
        minutes = 0.0 if steps else minutes or 10.0
        trial = max(1, steps // 10) if steps else 200
        return Budget(name, size, rates, steps, trial, minutes=minutes)
    return Budget(name, size, rates, steps, steps // 10, epochs=0 if steps else 200)
