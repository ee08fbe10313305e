"""Fault 12: the process is killed (SIGKILL) at random moments of a training run.

Expected: the same command goes on. In the end parameters, optimisers, moving averages,
discriminator, random key and place in the data are those of a run that was never
killed, bit for bit on a CPU. The log has no step twice and none missing.
"""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from tests.e2e.commands import ROOT, environment, last_state, rows

CLOCK = {"images_per_second", "eta_seconds", "seconds_to_first_step"}


@pytest.mark.timeout(1200)
@pytest.mark.parametrize(
    ("kind", "steps", "times"),
    [("counting", 60, 5), pytest.param("network", 72, 20, marks=pytest.mark.full)],
)
def test_12_killed_and_resumed_is_bit_exact(tmp_path, kind, steps, times):
    # The killed processes keep their own compiled programs.
    kept = {"JAX_COMPILATION_CACHE_DIR": str(tmp_path / "compiled")}
    done = subprocess.run(
        [
            *(sys.executable, "-m", "tests.faults.killed"),
            *(str(tmp_path), str(steps), str(times), kind),
        ],
        cwd=ROOT,
        env=environment(tmp_path / "cache") | kept,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    print(done.stdout)
    assert done.stdout.count(": 9\n") == times  # the status of a killed child
    a, b = (last_state(tmp_path / name, steps) for name in ("whole", "parts"))
    assert set(a) == set(b)
    parts = ("step", "gen", "key")
    if kind == "network":
        parts += ("batch_stats", "gen_opt", "ema", "disc", "disc_opt")
    for part in parts:
        assert any(f"'{part}'" in name for name in a), part
    for name, x in a.items():
        np.testing.assert_array_equal(x, b[name], err_msg=name)
        assert x.dtype == b[name].dtype
    logs = [
        [{k: v for k, v in row.items() if k not in CLOCK} for row in rows(tmp_path / x)]
        for x in ("whole", "parts")
    ]
    assert [row["step"] for row in logs[0]] == list(range(1, steps + 1))
    assert logs[0] == logs[1]
