"""Eq. 12-14 by hand."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from daasr_jax.errors import ConfigError
from daasr_jax.models.outputs import Outputs
from daasr_jax.registry import LOSSES
from daasr_jax.training.step import make_train_step

HR = jnp.array([[[1.0], [2.0]], [[3.0], [4.0]]])[None]  # (1, 2, 2, 1)


def outputs(**aux):
    return Outputs(sr=HR + 0.5, aux=aux)


def test_reconstruction():
    # differences 1, 0, 0, 2 over four pixels
    sr = HR + jnp.array([[[1.0], [0.0]], [[0.0], [-2.0]]])[None]
    assert float(LOSSES.get("pixel.rec")(Outputs(sr=sr, aux={}), HR)) == 0.75


@pytest.mark.parametrize("name", ["cwt", "sat"])
def test_auxiliary_is_averaged_over_its_pictures(name):
    pictures = jnp.stack([HR + 1.0, HR - 3.0])
    loss = LOSSES.get(f"pixel.{name}")(outputs(**{name: pictures}), HR)
    assert loss.dtype == jnp.float32
    assert float(loss) == 2.0


@pytest.mark.parametrize("name", ["cwt", "sat"])
def test_missing_picture_is_zero_and_has_no_gradient(name):
    loss = LOSSES.get(f"pixel.{name}")
    assert float(loss(outputs(), HR)) == 0.0
    slope = jax.grad(lambda sr: loss(Outputs(sr=sr, aux={}), HR))(HR)
    np.testing.assert_array_equal(slope, 0)


def test_half_precision_is_summed_in_float32():
    sr = jnp.full((1, 64, 64, 1), 0.1, jnp.bfloat16)
    loss = LOSSES.get("pixel.rec")(Outputs(sr=sr, aux={}), jnp.zeros(sr.shape))
    assert loss.dtype == jnp.float32
    assert float(loss) == pytest.approx(float(sr[0, 0, 0, 0]), rel=1e-6)


def test_total_is_the_weighted_sum():
    """Eq. 14 through the step: 1 x 0.5 + 0.1 x 1 + 0.01 x 3 = 0.63."""
    import optax

    from daasr_jax.training.state import TrainState

    class Fixed:
        def init(self, rngs, *args, **kwargs):
            return {"params": {"w": jnp.zeros(())}}

        def apply(self, variables, lr, ref, *, train, mutable=(), rngs=None):
            hr = ref  # the reference stands in for the target here
            w = variables["params"]["w"]
            one = jnp.ones((1, *hr.shape))
            out = Outputs(
                hr + 0.5 + w, {"cwt": hr[None] + one, "sat": hr[None] - 3.0 * one}
            )
            return out, {}

    terms = {
        n: (w, LOSSES.get(f"pixel.{n}"))
        for n, w in (("rec", 1.0), ("cwt", 0.1), ("sat", 0.01))
    }
    step = make_train_step(Fixed(), optax.sgd(1.0), terms, scale=2)
    w, zero = {"w": jnp.zeros(())}, jnp.zeros((), jnp.int32)
    opt = optax.sgd(1.0).init(w)
    key = jax.random.key_data(jax.random.key(0))
    state = TrainState(zero, w, {}, opt, {}, {}, {}, zero, zero, zero, key)
    image = jnp.full((2, 8, 8, 1), 0.25)
    new, metrics = step(state, {"hr": image, "ref": image})
    assert float(metrics["g/total"]) == pytest.approx(0.63, abs=1e-6)
    assert float(metrics["g/rec"]) == pytest.approx(0.5, abs=1e-6)
    assert float(metrics["g/cwt"]) == pytest.approx(1.0, abs=1e-6)
    assert float(metrics["g/sat"]) == pytest.approx(3.0, abs=1e-6)
    assert float(new.gen["w"]) == pytest.approx(-1.0)  # the slope of |w + 0.5| is 1


def test_unknown_name_lists_the_nearest():
    with pytest.raises(ConfigError, match=r"E227.*pixel\.rec"):
        LOSSES.get("pixel.recc")
