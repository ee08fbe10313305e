"""Writes `golden/*.npz`: what PyTorch says of the golden cases of `cases.py`.

    python -m tests.parity.generate_golden

Made with PyTorch 2.13.0 (CPU), NumPy 2.4, the twin `torch_daasr` computing in float64
and rounding to float32. Cases, fields, sizes and the seed (7) stand in `cases.CASES`
where `golden=True`; weights, images, P and the loss weights are rebuilt from the seed
by `weights.uniform` and are not stored. A file holds the outputs, the gradients of the
scalar loss by every parameter and input, the running statistics after a training step,
and `fingerprint`, sums that tell whether the weights were rebuilt as they were.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tests.parity.cases import CASES, inputs_of
from tests.parity.weights import fingerprint

GOLDEN = Path(__file__).parent / "golden"


def main() -> None:
    from tests.parity.torch_cases import torch_results

    GOLDEN.mkdir(exist_ok=True)
    for name, case in CASES.items():
        if not case.golden:
            continue
        inputs = inputs_of(name)
        results = torch_results(name)
        results["fingerprint"] = fingerprint(inputs.variables, inputs.arrays)
        path = GOLDEN / f"{name}.npz"
        np.savez_compressed(path, allow_pickle=False, **results)
        print(f"{path.name}: {len(results)} arrays, {path.stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    main()
