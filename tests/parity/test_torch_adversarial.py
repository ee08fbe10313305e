"""Discriminator and adversarial objectives against PyTorch (written for 2.13.0).

Ours in float32, PyTorch's in float64; tolerances are those of
`adversarial_cases.assert_close`.
"""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed (extra: parity)")

from tests.parity.adversarial_cases import (  # noqa: E402
    CASES,
    assert_close,
    jax_results,
)
from tests.parity.generate_adversarial_golden import torch_results  # noqa: E402


@pytest.mark.parametrize("name", CASES)
def test_logits_losses_and_gradients(name):
    assert_close(jax_results(name), torch_results(name))
