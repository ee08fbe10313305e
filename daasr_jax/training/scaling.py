"""The linear rule: learning rates that follow the batch.

P. Goyal et al., "Accurate, large minibatch SGD: training ImageNet in 1 hour",
arXiv:1706.02677, sections 2.1 and 2.2.
"""

from __future__ import annotations

import dataclasses

WARMUP_EPOCHS = 5  # section 2.2


@dataclasses.dataclass(frozen=True)
class LinearRule:
    """How the learning rates of one batch become those of another.

    Every rate is taken times k = `batch / of_rates`. Where k is above 1, the rate first
    rises linearly from the one that was given, over `WARMUP_EPOCHS` epochs.

    Attributes:
        batch: Images of a step, of all devices together.
        of_rates: Images of a step that the learning rates are given for.

    Example:
        >>> rule = LinearRule(batch=36, of_rates=9)
        >>> rule.factor, rule.warmup(0, steps_per_epoch=100)
        (4.0, (500, 0.25))
    """

    batch: int
    of_rates: int

    @property
    def factor(self) -> float:
        """k, which every learning rate is taken times."""
        return self.batch / self.of_rates

    @property
    def warmup_epochs(self) -> int:
        """Epochs of the warm-up where no other is given; 0 where no rate rises."""
        return WARMUP_EPOCHS if self.batch > self.of_rates else 0

    def warmup(self, given: int, *, steps_per_epoch: int) -> tuple[int, float]:
        """The warm-up of a scaled rate.

        Args:
            given: Updates of a warm-up from 0 that the configuration asks for, which
                stays as it is; 0 for none.
            steps_per_epoch: Updates of an epoch of this batch.

        Returns:
            Updates of the warm-up, and the part of the scaled rate that it begins at.
        """
        if given or not self.warmup_epochs:
            return given, 0.0
        return self.warmup_epochs * steps_per_epoch, 1 / self.factor
