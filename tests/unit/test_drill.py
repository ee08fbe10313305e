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


def test_other_arrays_or_steps_fail(drill, tmp_path, monkeypatch):
    logs = {"a": (1, 2), "b": (1, 2), "gap": (2,), "twice": (1, 2, 2), "other": (1, 2)}
    for name, steps in logs.items():
        (tmp_path / name).mkdir()
        lines = [f'{{"step": {step}, "g/total": 0.5}}\n' for step in steps]
        (tmp_path / name / "metrics.jsonl").write_text("".join(lines))

    def arrays(folder):
        value = np.float32(1) + np.finfo(np.float32).eps * (folder.name == "other")
        last = {"number of the checkpoint": np.array(2)}
        return last | {"gen": np.array([value], np.float32)}

    monkeypatch.setattr(drill, "arrays", arrays)
    assert drill.compare(tmp_path / "a", tmp_path / "b", 2) == 2
    with pytest.raises(drill.DrillError, match="gen differs"):
        drill.compare(tmp_path / "a", tmp_path / "other", 2)
    for name in ("gap", "twice"):
        with pytest.raises(drill.DrillError, match="not the steps 1 to 2"):
            drill.compare(tmp_path / "a", tmp_path / name, 2)
    (tmp_path / "a/metrics.jsonl").write_text('{"step": 1, "g/total": 0.5}\n')
    with pytest.raises(drill.DrillError, match="last checkpoint is 2, not 1"):
        drill.compare(tmp_path / "a", tmp_path / "a", 1)


def test_a_flipped_checkpoint_is_told_and_set_aside(drill, tmp_path):
    told = f"error\ncheckpoint {tmp_path}/check\npoints/10 is damaged: x; not used."
    events = [
        drill.Event(drill.FLIP, 12, 0.0, flipped=10),
        drill.Event(signal.SIGKILL, 13, 0.0, said=told),
    ]
    with pytest.raises(drill.DrillError, match="10 was told and not set aside"):
        drill.check_flips(events, "", tmp_path)
    (tmp_path / "checkpoints_set_aside/10_damaged_0").mkdir(parents=True)
    drill.check_flips(events, "", tmp_path)
    drill.check_flips(events[:1], told, tmp_path)
    with pytest.raises(drill.DrillError, match="10 was not told"):
        drill.check_flips(events[:1], "checkpoints/1 is damaged", tmp_path)


def test_one_bit_is_flipped(drill, tmp_path):
    run = drill.Run(tmp_path, tmp_path, 1)
    path = tmp_path / "checkpoints/10/state/d/x"
    path.parent.mkdir(parents=True)
    path.write_bytes(bytes(99))
    (tmp_path / "manifests").mkdir()
    for step in (5, 10):
        (tmp_path / f"manifests/{step}.json").write_text("{}")
    step, words = drill.flip(run, random.Random(0))
    assert step == 10
    assert "of checkpoint 10" in words
    assert sum(byte.bit_count() for byte in path.read_bytes()) == 1
