"""Terms of the multi-contrast systems, by hand."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from daasr_jax.models.outputs import Outputs
from daasr_jax.registry import LOSSES
from daasr_jax.resampling import downsample

HR = jnp.asarray(np.random.default_rng(0).random((2, 8, 12, 1)), jnp.float32)
REFERENCE = LOSSES.get("multi_contrast.reference")
LEVEL1 = LOSSES.get("multi_contrast.level1")


def outputs(**aux):
    return Outputs(sr=HR + 0.5, aux=aux)


def test_mse():
    loss = LOSSES.get("pixel.mse")(outputs(), HR)
    assert loss.dtype == jnp.float32
    assert float(loss) == pytest.approx(0.25)


def test_mse_is_summed_in_float32():
    sr = jnp.full((1, 64, 64, 1), 0.1, jnp.bfloat16)
    loss = LOSSES.get("pixel.mse")(Outputs(sr=sr, aux={}), jnp.zeros(sr.shape))
    assert float(loss) == pytest.approx(float(sr[0, 0, 0, 0]) ** 2, rel=1e-6)


def test_reference_is_compared_with_the_reference():
    ref = 1.0 - HR
    loss = REFERENCE(outputs(ref_rec=ref - 0.75), HR, ref=ref, anything=None)
    assert loss.dtype == jnp.float32
    assert float(loss) == pytest.approx(0.75)


def test_level1_is_compared_on_its_own_grid():
    picture = downsample(HR, 2) + 0.5
    loss = LEVEL1(outputs(level1=picture), HR, ref=HR)
    assert loss.dtype == jnp.float32
    assert float(loss) == pytest.approx(0.25, abs=1e-6)
    same = LEVEL1(outputs(level1=HR + 0.5), HR)
    assert float(same) == pytest.approx(0.25, abs=1e-6)


@pytest.mark.parametrize("loss", [REFERENCE, LEVEL1])
def test_missing_picture_is_zero(loss):
    value = loss(outputs(), HR, ref=None)
    assert value.dtype == jnp.float32
    assert float(value) == 0.0


def test_errors():
    with pytest.raises(ValueError, match="ref must be the reference"):
        REFERENCE(outputs(ref_rec=HR), HR)
    for shape in ((2, 3, 6, 1), (2, 4, 4, 1), (2, 16, 24, 1)):
        with pytest.raises(ValueError, match="hr must be a multiple"):
            LEVEL1(outputs(level1=jnp.zeros(shape)), HR)
