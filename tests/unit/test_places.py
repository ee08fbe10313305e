"""Places in the words of a shell, and a user without a home."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import jax
import pytest

from configs import fastmri_x4
from daasr_jax.errors import CheckpointError, ConfigError
from daasr_jax.experiment import (
    checks,
    evaluate,
    import_weights,
    opening,
    parts,
    plan,
)
from daasr_jax.experiment.configuration import load
from daasr_jax.experiment.places import place
from daasr_jax.runtime import compiled


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path / "home"


def test_a_tilde_in_every_place(home, capsys):
    assert place("~/run") == home / "run"
    assert place("a/~b") == Path("a/~b")
    config = fastmri_x4.get_config()
    config.perceptual.weights = "~/vgg.h5"
    with pytest.raises(ConfigError, match=f"E232.*{home}/vgg.h5"):
        parts.read_vgg(config)
    config.perceptual.weights, config.train.start_from = "", "~/before"
    with pytest.raises(CheckpointError, match=f"E404.*{home}/before"):
        plan.make_plan(config)
    with pytest.raises(CheckpointError, match=f"E404.*{home}/run is no run"):
        evaluate.evaluate_run("~/run", opening.EvaluationRequest())
    (home / "mine.py").write_text("def get_config():\n    return 1\n")
    with pytest.raises(ConfigError, match=f"{home}/mine.py returns int"):
        load("~/mine.py")
    options = ["--vgg19", "--torch=~/x.pth", "--out=~/x.npz"]
    assert import_weights.main(options) == 2
    assert f"--torch={home}/x.pth" in capsys.readouterr().err
    assert not Path("~").exists()


@pytest.mark.parametrize("raised", [RuntimeError, ConfigError])
def test_without_a_home(monkeypatch, caplog, raised):
    """No programs are kept; the data then say what they need."""

    def none(self):
        raise raised("E602", "Could not determine home directory.")

    kept = []
    monkeypatch.setattr("daasr_jax.data.DataSettings.cache_path", property(none))
    monkeypatch.setattr(checks, "keep_compiled", kept.append)
    before = jax.config.jax_default_matmul_precision
    checks.setup(load("quickstart_x4"))
    jax.config.update("jax_default_matmul_precision", before)
    assert kept == [None]
    alone = SimpleNamespace(values={"jax_compilation_cache_dir": None})
    fresh = SimpleNamespace(config=alone, process_count=lambda: 1)
    monkeypatch.setattr(compiled, "jax", fresh)
    compiled.keep_compiled(None)
    assert "compiled programs are not kept" in caplog.text
