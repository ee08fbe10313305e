"""Whole runs of `train.py` and `eval.py`: killed, stopped, resumed, evaluated."""

from __future__ import annotations

import json
import os
import shutil
import signal

import numpy as np
import pytest

from tests.data_fixtures import fastmri_root
from tests.e2e.commands import (
    SMALL,
    check_refusals,
    last_state,
    rows,
    run_all,
    start,
    until_saved,
)

pytestmark = pytest.mark.timeout(600)
STEPS = 60
LENGTH = (
    f"--config.train.steps={STEPS}",
    "--config.train.checkpoint_every=5",
    "--config.train.validate_every_epochs=10",
    "--config.train.ema_decay=0.9",
    # The discriminator, its optimiser and its random key are part of what resumes.
    "--config.adversarial.objective=wgan-gp",
    "--config.adversarial.start_step=7",
    "--config.adversarial.features=4",
    "--config.adversarial.stages=1",
)


def learned(folder):
    """The log without what the clock decides."""
    clock = {"images_per_second", "eta_seconds", "seconds_to_first_step"}
    return [{k: v for k, v in r.items() if k not in clock} for r in rows(folder)]


@pytest.mark.full
def test_killed_stopped_and_resumed_is_bit_exact(tmp_path):
    cache = tmp_path / "cache"
    latin = os.fsdecode(b"\xe9")  # a name that is not UTF-8
    root = fastmri_root(tmp_path / f"my data é{latin}", train=4, val=2)
    whole, parts = tmp_path / "whole", tmp_path / "run of päts"
    common = [*SMALL, *LENGTH, f"--config.data.root={root}"]

    def train(folder):
        return ["train.py", *common, f"--workdir={folder}"]

    uninterrupted = start(train(whole), cache)

    # The interrupted run keeps its own compiled programs.
    kept = {"JAX_COMPILATION_CACHE_DIR": str(tmp_path / "compiled")}
    killed = start(train(parts), cache, **kept)
    until_saved(killed, parts, 10)
    killed.kill()
    killed.communicate()
    assert killed.returncode == -signal.SIGKILL
    assert max(r["step"] for r in rows(parts)) < STEPS

    stopped = start(train(parts), cache, **kept)
    until_saved(stopped, parts, 30)
    stopped.send_signal(signal.SIGTERM)
    _, said = stopped.communicate(timeout=200)
    assert stopped.returncode == 75, said
    assert "resuming at step" in said
    last = said.strip().splitlines()[-1]
    assert last.startswith("error E701: stopped by SIGTERM at step ")
    step = int(last.split("at step ")[1].split(",")[0])
    assert 30 <= step < STEPS
    assert max(r["step"] for r in rows(parts)) == step
    assert (parts / f"manifests/{step}.json").is_file()

    resumed = start(train(parts), cache, **kept)
    _, said = resumed.communicate(timeout=200)
    assert resumed.returncode == 0, said
    assert f"resuming at step {step}" in said
    _, said = uninterrupted.communicate(timeout=200)
    assert uninterrupted.returncode == 0, said

    a, b = last_state(whole, STEPS), last_state(parts, STEPS)
    assert set(a) == set(b)
    parts_of_state = ("step", "gen", "batch_stats", "gen_opt", "ema", "key")
    for part in (*parts_of_state, "disc", "disc_opt"):
        assert any(f"'{part}'" in name for name in a), part
    for name, x in a.items():
        np.testing.assert_array_equal(x, b[name], err_msg=name)
        assert x.dtype == b[name].dtype

    for folder in (whole, parts):
        for kind in ("g/total", "val/psnr"):
            steps = [r["step"] for r in rows(folder) if kind in r]
            assert (
                steps
                == {"g/total": list(range(1, STEPS + 1)), "val/psnr": [40, 60]}[kind]
            )
    assert learned(whole) == learned(parts)
    played = [r["step"] for r in rows(whole) if r.get("d/penalty")]
    assert played == list(range(8, STEPS + 1))

    after_the_end(tmp_path, cache, train, common, parts)


def after_the_end(tmp_path, cache, train, common, done):
    """What the two commands do with a finished run."""
    ruined = tmp_path / "ruined"
    shutil.copytree(done, ruined)
    for path in ruined.glob("checkpoints/*/_CHECKPOINT_METADATA"):
        path.write_bytes(b"x")
    before = {p: p.stat().st_mtime_ns for p in done.rglob("*") if p.is_file()}
    tuned = tmp_path / "tuned"
    evaluate = ["eval.py", *common, f"--workdir={done}"]
    out = f"--out={tmp_path / 'results é/again.json'}"
    cases = {
        "again": train(done),
        "other rate": [*train(done), "--config.optimiser.learning_rate=1e-3"],
        "other seed": [*train(done), "--config.seed=5", "--config.train.augment=False"],
        "all damaged": train(ruined),
        "still": train(ruined),
        "damaged, evaluated": ["eval.py", *common, f"--workdir={ruined}"],
        "split": [*evaluate, "--split=tset"],
        "out": [*evaluate, "--out=x.txt"],
        "other network": [*evaluate, "--config.model.kwargs.features=4"],
        "evaluated": evaluate,
        "evaluated again": [*evaluate, out, "--split=test"],
        "lpips": [*evaluate, "--lpips", f"--out={tmp_path / 'lpips.json'}"],
        "tuned": [
            *("train.py", *common, f"--workdir={tuned}", "--config.train.steps=1"),
            *(f"--config.train.start_from={done}", "--config.perceptual.network=vgg16"),
            "--config.perceptual.picture=rec",
        ],
        "debug": [*evaluate, "--split=tset", "--debug"],
    }
    results = dict(zip(cases, run_all(list(cases.values()), cache), strict=True))

    again = results["again"]
    assert again["code"] == 0, again["err"]
    assert f"all {STEPS} steps are done" in again["err"]
    after = {p: p.stat().st_mtime_ns for p in done.rglob("*") if p.is_file()}
    changed = {p.name for p in before if after.get(p) != before[p]}
    assert changed <= {"config.json", "local.json"}

    expected = {
        "other rate": ("E207", 2, "optimiser.learning_rate was 0.002, is 0.001"),
        "other seed": (
            "E207",
            2,
            "seed was 0, is 5",
            "train.augment was True, is False",
        ),
        "all damaged": ("E401", 4, "no usable checkpoint", "SHA-256"),
        "still": ("E401", 4, "no usable checkpoint", "SHA-256"),
        "damaged, evaluated": ("E401", 4, "no usable checkpoint"),
        "split": ("E228", 2, "'tset'"),
        "out": ("E229", 2, "x.txt"),
        "other network": ("E251", 2, "features is 8 there and 4 in --config"),
    }
    check_refusals(results, expected)
    assert "Traceback" in results["debug"]["err"]
    assert results["debug"]["code"] == 2

    for name in ("evaluated", "evaluated again", "lpips", "tuned"):
        assert results[name]["code"] == 0, results[name]["err"]
    assert "perceptual term" in results["tuned"]["err"]
    begun = json.loads((tuned / "config.json").read_text())
    assert begun["start"]["checkpoint_step"] == STEPS
    assert begun["perceptual"]["network"] == "vgg16"
    assert 0 < rows(tuned)[0]["g/perceptual"] < 10
    assert begun["start"]["config_sha256"] != begun["config_sha256"]
    assert "LPIPS" in results["lpips"]["out"]
    judged = json.loads((tmp_path / "lpips.json").read_text())
    for method in ("bicubic", "daasr"):
        for net in ("alex", "vgg"):
            assert 0 < judged["methods"][method][f"lpips_{net}"]["mean"] < 1
    assert "bicubic" in results["evaluated"]["out"]
    first, second = done / "eval_test_random.json", tmp_path / "results é/again.json"
    assert json.loads(first.read_text()) == json.loads(second.read_text())
    for path in (first, second):
        assert path.with_suffix(".png").read_bytes()[:4] == b"\x89PNG"
        assert path.with_suffix(".pairing.json").is_file()
    check_report(json.loads(first.read_text()), done)


def check_report(report, run):
    for key in ("dataset", "split", "scale", "protocol", "commit"):
        assert report[key], key
    config = json.loads((run / "config.json").read_text())
    assert report["config_sha256"] == config["config_sha256"]
    assert report["training"]["perceptual"] == {"network": "none"}
    assert report["training"]["adversarial"]["objective"] == "wgan-gp"
    assert len(report["pairing_sha256"]) == 64
    assert (report["split"], report["scale"]) == ("test", 4)
    assert (report["n_slices"], report["n_subjects"]) == (8, 2)
    names = [r["slice"] for r in report["per_slice"]]
    assert len(names) == len(set(names)) == 8
    assert len(report["per_subject"]) == 2
    for method in ("bicubic", "daasr"):
        for metric in ("psnr", "ssim"):
            got = report["methods"][method][metric]
            values = [r[method][metric] for r in report["per_slice"]]
            assert got["mean"] == pytest.approx(np.mean(values))
            assert got["std"] >= 0
            assert got["ci95"] is None  # of two subjects
