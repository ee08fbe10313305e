"""The discriminator and the adversarial objectives in PyTorch, NCHW.

Modules carry the names of the Flax ones: `torch_daasr.copy_variables` copies weights.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class TorchPatchDiscriminator(nn.Module):
    def __init__(self, features: int = 64, stages: int = 3) -> None:
        super().__init__()
        self.stages = stages
        channels = 1
        for i in range(stages):
            width = features * 2**i
            first = nn.Conv2d(channels, width, 3, padding=1)
            second = nn.Conv2d(width, width, 3, stride=2, padding=1)
            setattr(self, f"stage{i}_conv1", first)
            setattr(self, f"stage{i}_conv2", second)
            channels = width
        self.out = nn.Conv2d(channels, 1, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        for i in range(self.stages):
            for j in (1, 2):
                x = F.leaky_relu(getattr(self, f"stage{i}_conv{j}")(x), 0.2)
        return self.out(x)


def discriminator_loss(
    objective: str,
    discriminate: Callable[[Tensor], Tensor],
    real: Tensor,
    fake: Tensor,
    *,
    mix: Tensor,
    penalty_weight: float,
) -> tuple[Tensor, dict[str, Tensor]]:
    on_real, on_fake = discriminate(real), discriminate(fake)
    if objective == "bce":
        ones, zeros = torch.ones_like(on_real), torch.zeros_like(on_fake)
        terms = {
            "real": F.binary_cross_entropy_with_logits(on_real, ones),
            "fake": F.binary_cross_entropy_with_logits(on_fake, zeros),
        }
        return terms["real"] + terms["fake"], terms
    between = mix * real + (1 - mix) * fake
    if not between.requires_grad:
        between.requires_grad_()
    score = discriminate(between).mean(dim=(1, 2, 3)).sum()
    (slope,) = torch.autograd.grad(score, between, create_graph=True)
    penalty = ((slope.flatten(1).norm(2, dim=1) - 1) ** 2).mean()
    terms = {"real": -on_real.mean(), "fake": on_fake.mean(), "penalty": penalty}
    return terms["real"] + terms["fake"] + penalty_weight * penalty, terms


def generator_loss(objective: str, logits: Tensor) -> Tensor:
    if objective == "bce":
        return F.binary_cross_entropy_with_logits(logits, torch.ones_like(logits))
    return -logits.mean()
