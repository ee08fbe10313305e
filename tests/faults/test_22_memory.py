"""Fault 22: a network, a batch or a scan that does not fit into the memory.

Expected: a run that cannot fit ends before anything large is made, in seconds, with
what it needs and what lowers that; exit code 6. An enhancement takes fewer slices at
once, then bands of a slice, which are the whole within 1e-5.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from daasr_jax import released
from daasr_jax.enhancement import Engine, bands
from daasr_jax.errors import ResourceError
from daasr_jax.runtime import failures
from tests.weights import write_weights

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("limit", "features", "said"),
    [
        ("ulimit -v 2097152", 64, "the limit of address space leaves 0."),
        ("true", 65536, "the run needs at least"),
    ],
)
def test_22_a_network_that_cannot_fit(tmp_path, limit, features, said):
    """2 GiB, as `ulimit -v` sets them; and 10^12 parameters on any machine."""
    done = subprocess.run(
        [
            *("bash", "-c", f'{limit}; exec "$@"', "-", sys.executable),
            *("train.py", "--config=configs/quickstart_x4.py"),
            *(f"--workdir={tmp_path / 'run'}", f"--config.data.cache_dir={tmp_path}"),
            f"--config.model.kwargs.features={features}",
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 6, done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("error E612: the run needs at least")
    assert said in last
    assert "--config.train.accumulate" in last
    assert "Traceback" not in done.stderr


def test_22_a_slice_that_does_not_fit_goes_in_bands(tmp_path, monkeypatch):
    weights = released.load(write_weights(tmp_path / "x2.safetensors"))
    rng = np.random.default_rng(0)
    lr = rng.random((2, 60, 20), np.float32)
    ref = rng.random((2, 1, 120, 40), np.float32)
    whole = Engine(weights)(lr, ref)
    made = []
    real = bands.Bands.__call__

    def seen(self, *given):
        made.append(self.rows)
        if self.rows > 16:
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory")
        return real(self, *given)

    monkeypatch.setattr(bands.Bands, "__call__", seen)
    banded = Engine(weights, memory=100_000)(lr, ref)
    assert made == [16, 16]
    size = np.abs(whole.sr).max()
    np.testing.assert_allclose(banded.sr, whole.sr, atol=1e-5 * max(1, size))
    np.testing.assert_array_equal(banded.index, whole.index)

    made.clear()
    monkeypatch.setattr(bands, "rows_within", lambda *_: 40)
    again = Engine(weights, memory=100_000)(lr, ref)
    assert made == [40, 20, 16, 16]  # halved, and kept so
    np.testing.assert_array_equal(again.sr, banded.sr)

    monkeypatch.setattr(bands, "LEAST", 40)
    with pytest.raises(ResourceError, match="does not fit"):
        Engine(weights, memory=100_000)(lr, ref)


def test_22_a_device_without_room_is_one_line():
    oom = "RESOURCE_EXHAUSTED: Out of memory while trying to allocate 9663676416 bytes."
    with (
        pytest.raises(ResourceError, match=r"E605.*9663676416.*accumulate") as error,
        failures.explained(),
    ):
        raise jax.errors.JaxRuntimeError(f"{oom}\nmore lines\n")
    assert error.value.exit_code == 6
    assert "\n" not in str(error.value)
