"""The crash drill plans what it says, and notices what it should."""

from __future__ import annotations

import importlib.util
import random
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def drill():
    spec = importlib.util.spec_from_file_location("drill", ROOT / "scripts/drill.py")
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules["drill"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    del sys.modules["drill"]


def test_twenty_signals_a_full_disk_and_a_flipped_bit(drill):
    for seed in range(20):
        events = drill.planned(random.Random(seed), 200)
        assert events == drill.planned(random.Random(seed), 200)
        counts = Counter(event.kind for event in events)
        assert counts.pop(drill.FULL) == counts.pop(drill.FLIP) == 1
        assert sum(counts.values()) == 20
        assert min(counts.values()) >= 6
        assert set(counts) == {signal.SIGKILL, signal.SIGTERM, signal.SIGINT}
        steps = [event.at for event in events if event.at]
        assert steps == sorted(steps)
        assert max(steps) < 200
        assert len(set(steps)) > 5


def ran(code):
    return subprocess.Popen(
        [sys.executable, "-c", code], stderr=subprocess.PIPE, text=True
    )


def test_a_traceback_or_no_end_fails(drill, monkeypatch):
    code, said = drill.ended(ran("import sys; print('error E701: x', file=sys.stderr)"))
    assert (code, drill.error_line(said)) == (0, "error E701: x")
    with pytest.raises(drill.DrillError, match="traceback"):
        drill.ended(ran("1 / 0"))
    monkeypatch.setattr(drill, "_PATIENCE_SECONDS", 0.1)
    with pytest.raises(drill.DrillError, match="no end"):
        drill.ended(ran("import time; time.sleep(60)"))


def test_other_arrays_or_a_gap_in_the_log_fail(drill, tmp_path, monkeypatch):
    logs = {"a": (1, 2), "b": (1, 2), "gap": (1, 3), "other": (1, 2)}
    for name, steps in logs.items():
        (tmp_path / name).mkdir()
        lines = [f'{{"step": {step}, "g/total": 0.5}}\n' for step in steps]
        (tmp_path / name / "metrics.jsonl").write_text("".join(lines))

    def arrays(folder):
        value = np.float32(1) + np.finfo(np.float32).eps * (folder.name == "other")
        return {"gen": np.array([value], np.float32)}

    monkeypatch.setattr(drill, "arrays", arrays)
    assert drill.compare(tmp_path / "a", tmp_path / "b") == 1
    with pytest.raises(drill.DrillError, match="gen differs"):
        drill.compare(tmp_path / "a", tmp_path / "other")
    with pytest.raises(drill.DrillError, match="steps of the two logs"):
        drill.compare(tmp_path / "a", tmp_path / "gap")


def test_one_bit_is_flipped(drill, tmp_path):
    run = drill.Run(tmp_path, tmp_path, 1)
    path = tmp_path / "checkpoints/10/state/d/x"
    path.parent.mkdir(parents=True)
    path.write_bytes(bytes(99))
    (tmp_path / "manifests").mkdir()
    for step in (5, 10):
        (tmp_path / f"manifests/{step}.json").write_text("{}")
    assert "of checkpoint 10" in drill.flip(run, random.Random(0))
    assert sum(byte.bit_count() for byte in path.read_bytes()) == 1
