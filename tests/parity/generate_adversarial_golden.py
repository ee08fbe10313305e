"""Writes `tests/unit/golden/adversarial.npz`: PyTorch's losses and gradients.

    python -m tests.parity.generate_adversarial_golden

Made with PyTorch 2.13.0 (CPU), NumPy 2.4, the twin `torch_discriminator` computing in
float64 and rounding to float32, for the case `golden` of `adversarial_cases.CASES`.
Weights and images are rebuilt from the seed (11) by `weights.uniform` and are not
stored; `fingerprint` holds sums that tell whether they were rebuilt as they were.
"""

from __future__ import annotations

import numpy as np

from tests.parity.adversarial_cases import CASES, GOLDEN, PENALTY_WEIGHT, inputs_of
from tests.parity.weights import fingerprint, flatten


def torch_results(name: str) -> dict[str, np.ndarray]:
    """Computed in float64, given in float32, in the layout of `jax_results`."""
    import torch

    from tests.parity import torch_daasr
    from tests.parity import torch_discriminator as twin

    case = CASES[name]
    variables, arrays = inputs_of(name)
    module = twin.TorchPatchDiscriminator(case.features, case.stages).double()
    torch_daasr.copy_variables(module, variables)
    real, fake, mix = (
        torch.tensor(x, dtype=torch.float64).movedim(-1, 1) for x in arrays.values()
    )
    real.requires_grad_()
    fake.requires_grad_()
    flat = {"logits": module(real).detach().movedim(1, -1).numpy()}

    def gradients(prefix: str, loss: torch.Tensor, images: dict) -> None:
        module.zero_grad()
        for image in images.values():
            image.grad = None
        loss.backward()
        for path in flatten(variables["params"]):
            parts = ("params", *path.split("/"))
            flat[f"{prefix}/grad/{path}"] = torch_daasr.flax_array(
                module, parts, grad=True
            )
        for key, image in images.items():
            assert image.grad is not None
            flat[f"{prefix}/grad/{key}"] = image.grad.movedim(1, -1).numpy()

    for objective in ("bce", "wgan-gp"):
        total, terms = twin.discriminator_loss(
            objective, module, real, fake, mix=mix, penalty_weight=PENALTY_WEIGHT
        )
        for key, value in {**terms, "total": total}.items():
            flat[f"{objective}/d/{key}"] = value.detach().numpy()
        gradients(f"{objective}/d", total, {"real": real, "fake": fake})
        loss = twin.generator_loss(objective, module(fake))
        flat[f"{objective}/g"] = loss.detach().numpy()
        gradients(f"{objective}/g", loss, {"fake": fake})
    return {key: np.array(value, np.float32) for key, value in flat.items()}


def main() -> None:
    results = torch_results("golden")
    results["fingerprint"] = fingerprint(*inputs_of("golden"))
    GOLDEN.parent.mkdir(exist_ok=True)
    np.savez_compressed(GOLDEN, allow_pickle=False, **results)
    print(f"{GOLDEN.name}: {len(results)} arrays, {GOLDEN.stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    main()
