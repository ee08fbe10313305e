"""Evaluation opens the run: what it may be given, and who is never evaluated."""

from __future__ import annotations

import json
import shutil

import pytest

from daasr_jax.data import Names
from daasr_jax.data.pseudonyms import salted
from tests.data_fixtures import fastmri_root, nifti_root
from tests.e2e.commands import SMALL, check_refusals, rows, run_all

pytestmark = pytest.mark.timeout(600)
QUIET = "--config.evaluate.show_progress=False"


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("evaluate é")


@pytest.fixture(scope="module")
def trained(place):
    """A run of another seed, with EMA and a discriminator, and its data."""
    root = fastmri_root(place / "data", train=6, val=2)
    run = place / "run"
    command = [
        "train.py", *SMALL, f"--config.data.root={root}", f"--workdir={run}",
        "--config.train.steps=2", "--config.seed=5", "--config.train.ema_decay=0.9",
        "--config.adversarial.objective=bce", "--config.adversarial.features=4",
        "--config.adversarial.stages=1",
    ]  # fmt: skip
    result = run_all([command], place / "cache")[0]
    assert result["code"] == 0, result["err"]
    return root, run


def test_a_run_is_evaluated_by_its_own_record(place, trained):
    root, run = trained
    split = json.loads((run / "split.json").read_text())
    every = [f"train{i:02d}" for i in range(6)] + [f"val{i:02d}" for i in range(2)]
    split = {s: [n for n in every if salted(n, split["salt"]) in split[s]]
             for s in ("train", "val", "test")}  # fmt: skip
    learned = split["train"][0]
    moved = place / "elsewhere"
    shutil.copytree(root, moved)
    other = nifti_root(place / "other", subjects=3, contrasts="T2W")
    config = "--config=configs/brain_x4_small.py"
    evaluate = ["eval.py", f"--workdir={run}", QUIET]
    cases = {
        "evaluated": evaluate,
        "again": evaluate,
        "forced": [*evaluate, "--force"],
        "controls": [*evaluate, "--controls"],
        "controls again": [*evaluate, "--controls"],
        "controls of one subject": [*evaluate, "--controls", f"--out={place}/one.json",
                                    f"--subjects={split['test'][0]}",
                                    "--config.reference.exclude=slice"],
        "controls onto the record": [*evaluate, "--controls", "--force",
                                     f"--out={run}/config.json"],
        "moved": [*evaluate, f"--config.data.root={moved}", "--force"],
        "aligned": [*evaluate, "--config.reference.track=aligned"],
        "other data": [*evaluate, f"--config.data.root={other}"],
        "allowed": [*evaluate, f"--subjects={learned}", "--allow_overlap",
                    "--config.reference.exclude=slice"],
        "same configuration": ["eval.py", *SMALL, f"--workdir={run}", QUIET,
                               "--config.seed=5", "--config.train.ema_decay=0.9",
                               "--config.adversarial.objective=bce",
                               "--config.adversarial.features=4",
                               "--config.adversarial.stages=1",
                               "--config.train.steps=2", "--split=val"],
        "another seed": ["eval.py", config, f"--workdir={run}"],
        "another scale": ["eval.py", *SMALL, "--config.scale=2", f"--workdir={run}"],
        "a key of training": [*evaluate, "--config.seed=4"],
        "learned from": [*evaluate, f"--subjects={learned}",
                         "--config.reference.exclude=slice"],
        "onto the record": [*evaluate, f"--out={run}/config.json"],
        "onto the split": [*evaluate, f"--out={run}/subjects.json", "--force"],
        "onto a manifest": [*evaluate, f"--out={run}/manifests/2.json", "--force"],
        "no run": ["eval.py", f"--workdir={place}/none", "--config.data.root=x"],
    }  # fmt: skip
    before = {f: f.read_bytes() for f in run.rglob("*") if f.is_file()}
    results = dict(
        zip(cases, run_all(list(cases.values()), place / "cache"), strict=True)
    )

    expected = {
        "again": ("E253", 2, "eval_test_random.json", "--force"),
        "controls again": ("E253", 2, "eval_test_controls.json", "--force"),
        "controls onto the record": ("E254", 2, "config.json"),
        "another seed": ("E251", 2, "seed is 5 there and 0 in --config"),
        "another scale": ("E251", 2, "scale is 4 there and 2 in --config"),
        "a key of training": ("E250", 2, "--config.seed=4", "--config.evaluate.seed"),
        "learned from": ("E341", 3, "train split 1 by name and 1 volumes by voxels"),
        "onto the record": ("E254", 2, "config.json"),
        "onto the split": ("E254", 2, "subjects.json"),
        "onto a manifest": ("E254", 2, "2.json"),
        "no run": ("E404", 4, "none is no run"),
    }
    check_refusals(results, expected)
    for name in cases.keys() - expected.keys():
        assert results[name]["code"] == 0, (name, results[name]["err"])
    for file, content in before.items():
        assert file.read_bytes() == content, f"{file} was replaced"

    def report(name):
        return json.loads((run / f"eval_{name}.json").read_text())

    salt = json.loads((run / "subjects.json").read_text())["salt"]

    def called(names):
        return {Names(salt).subject(name) for name in names}

    own = report("test_random")
    assert {r["subject"] for r in own["per_slice"]} == called(split["test"])
    assert own["overlap"] == {"known": True}
    record = json.loads((run / "config.json").read_text())
    assert own["config_sha256"] == record["config_sha256"]
    assert own["trained_by"] == record["commits"] == [record["commit"]]
    assert len(own["manifest_sha256"]) == 64
    assert (own["checkpoint_step"], own["checkpoint_rule"]) == (2, "last")
    assert "step 2 of 2, the last one" in results["evaluated"]["out"]
    assert report("test_aligned")["protocol"]["track"] == "aligned"
    rows = report("val_random")["per_slice"]
    assert {r["subject"] for r in rows} == called(split["val"])
    other_data = report(f"data-{salted('other', salt)[:8]}_random")
    assert (other_data["n_subjects"], other_data["overlap"]) == (3, {"known": True})
    assert report("subjects_random")["overlap"]["train"] == {
        "subjects": 1,
        "volumes": 1,
    }
    assert "LEARNED FROM 1 subjects of train" in results["allowed"]["out"]

    controls = report("test_controls")
    assert (run / "eval_test_controls.png").read_bytes()[:4] == b"\x89PNG"
    for method, name in (("bicubic", "bicubic"), ("daasr", "pair")):
        assert controls["methods"][name] == own["methods"][method]
    assert controls["config_sha256"] == record["config_sha256"]
    assert controls["references"]["stranger"]["same_as"] == "pair"
    assert "NO RESULT" in results["controls"]["out"]
    one = json.loads((place / "one.json").read_text())
    assert one["left_out"]["stranger"] == "there is one subject"
    assert "no stranger:" in results["controls of one subject"]["out"]


def test_validation_tells_whether_the_reference_is_used(trained):
    scores = [row for row in rows(trained[1]) if "val/psnr" in row]
    assert len(scores) == 1
    assert 0 <= scores[0]["val/identity"] <= 1
    assert abs(scores[0]["val/gain_over_black"]) < 1


@pytest.mark.full
def test_a_run_on_mixed_references_is_evaluated_on_each_track(place):
    root = nifti_root(place / "two contrasts", subjects=6)
    run = place / "mixed"
    train = [
        "train.py", *SMALL, f"--config.data.root={root}", f"--workdir={run}",
        "--config.train.steps=2", "--config.reference.track=mixed",
        "--config.reference.shares.contrast=0.3",
    ]  # fmt: skip
    evaluate = ["eval.py", f"--workdir={run}", QUIET]
    for command in (train, evaluate, [*evaluate, f"--out={place}/x.json"]):
        result = run_all([command], place / "cache")[0]
        assert result["code"] == 0, result["err"]
    for folder, name in ((run, "eval_test"), (place, "x")):
        for track in ("random", "aligned", "aligned_contrast"):
            report = json.loads((folder / f"{name}_{track}.json").read_text())
            assert report["protocol"]["track"] == track.partition("_")[0]


@pytest.mark.full
def test_nothing_begins_again_in_silence(place, trained):
    root, run = trained
    changes = {
        "no checkpoints": ("checkpoints",),
        "no manifest": ("manifests", "eval_*"),
        "no record": ("config.json",),
    }
    cases = {}
    for name, lost in changes.items():
        folder = place / name
        shutil.copytree(run, folder)
        for pattern in lost:
            for path in folder.glob(pattern):
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        seed = 6 if name == "no record" else 5
        cases[name] = [
            "train.py", *SMALL, f"--config.data.root={root}", f"--workdir={folder}",
            "--config.train.steps=4", f"--config.seed={seed}",
            "--config.train.ema_decay=0.9",
            "--config.adversarial.objective=bce", "--config.adversarial.features=4",
            "--config.adversarial.stages=1",
        ]  # fmt: skip
    logs = {name: (place / name / "metrics.jsonl").read_text() for name in cases}
    results = dict(
        zip(cases, run_all(list(cases.values()), place / "cache"), strict=True)
    )
    expected = {
        "no checkpoints": ("E415", 4, "manifests/2.json"),
        "no manifest": ("E401", 4, "manifest"),
        "no record": ("E208", 2, "config.json is missing"),
    }
    check_refusals(results, expected)
    for name, text in logs.items():
        assert (place / name / "metrics.jsonl").read_text() == text
