"""Fault 15: a bit of a checkpoint is flipped.

Expected: its SHA-256 differs from the manifest, so it is never used. The log says which
file has changed, the checkpoint is moved aside, and the one before it is used. Where
none is left, the run stops with exit code 4.
"""

from __future__ import annotations

import numpy as np
import pytest

from daasr_jax.errors import CheckpointError
from daasr_jax.training.checkpoints import Checkpoints
from tests.unit.test_checkpoints import opened, state, write
from tests.unit.test_training import rows, run_loop


def files(folder):
    return sorted(p for p in folder.rglob("*") if p.is_file() and p.stat().st_size)


def flip(path, bit: int) -> None:
    content = bytearray(path.read_bytes())
    content[bit // 8 % len(content)] ^= 1 << bit % 8
    path.write_bytes(content)


@pytest.mark.parametrize("seed", range(5))
def test_15_any_bit_of_any_file_is_found(tmp_path, caplog, seed):
    write(tmp_path, [20.0, 22.0, 21.0])
    rng = np.random.default_rng(seed)
    path = rng.choice(np.array(files(tmp_path / "checkpoints/3"), dtype=object))
    flip(path, int(rng.integers(8 * path.stat().st_size)))
    assert opened(tmp_path, read_only=True) == ([2], 2, 2)
    assert "checkpoints/3 is damaged" in caplog.text.replace("\n", "")
    assert str(path) in caplog.text
    assert opened(tmp_path) == ([2], 2, 2)
    assert (tmp_path / "checkpoints_set_aside/3_damaged_0").is_dir()
    store = Checkpoints(tmp_path, read_only=True)
    found = store.restore(2, state(0))
    store.close()
    np.testing.assert_array_equal(found.gen["conv"]["kernel"], np.full((2, 3), 2.0))


def test_15_the_run_repeats_what_was_lost(tmp_path):
    run_loop(tmp_path, range(6), steps=6)
    flip(max(files(tmp_path / "checkpoints/6"), key=lambda p: p.stat().st_size), 99)
    again = run_loop(tmp_path, range(10))
    assert float(again.gen["w"][0]) == sum(range(10))
    steps = [row["step"] for row in rows(tmp_path) if "g/total" in row]
    assert steps == list(range(1, 11))


def test_15_none_is_left(tmp_path):
    write(tmp_path, [20.0, 22.0])
    for step in (1, 2):
        flip(files(tmp_path / f"checkpoints/{step}/state")[0], 3)
    for _ in range(2):
        with pytest.raises(CheckpointError, match=r"E401.*step 2.*SHA-256") as error:
            opened(tmp_path)
        assert error.value.exit_code == 4
    assert (tmp_path / "checkpoints/1").is_dir()
