"""Fault 18: a checkpoint whose arrays have other types, shapes or names.

Expected: each is refused with the name of the array, what it is there and what is
wanted; exit code 4.
"""

from __future__ import annotations

import jax.numpy as jnp
import pytest

from daasr_jax.errors import CheckpointError
from daasr_jax.training.checkpoints import Checkpoints
from tests.unit.test_checkpoints import state, write


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    write(folder, [20.0, 30.0, 25.0, 22.0])
    return folder


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (
            {"gen": {"conv": {"kernel": jnp.zeros((2, 4))}}},
            "gen/conv/kernel is float32(2, 3) there and float32(2, 4) here",
        ),
        (
            {"gen": {"conv": {"kernel": jnp.zeros((2, 3), jnp.bfloat16)}}},
            "gen/conv/kernel is float32(2, 3) there and bfloat16(2, 3) here",
        ),
        (
            {"gen": {"conv2": {"kernel": jnp.zeros((2, 3))}}},
            "gen/conv/kernel is float32(2, 3) there and absent here",
        ),
        (
            {"ema": {"conv": {"kernel": jnp.zeros((2, 3))}}},
            "ema/conv/kernel is absent there and float32(2, 3) here",
        ),
    ],
)
@pytest.mark.parametrize("alone", [True, False])
def test_18_the_array_is_named(kept, changes, says, alone):
    store = Checkpoints(kept, read_only=alone)
    with pytest.raises(CheckpointError) as caught:
        store.restore(4, state(0, **changes))
    store.close()
    text = str(caught.value)
    assert caught.value.exit_code == 4
    assert text.startswith("error E402: ")
    assert "\n" not in text
    assert says in text
