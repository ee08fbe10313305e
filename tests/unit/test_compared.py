"""The compared systems as a whole: configurations, parameter counts, conversion."""

from __future__ import annotations

import importlib
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from daasr_jax.errors import ConfigError
from daasr_jax.experiment import checks, import_weights, parts, saved_run
from daasr_jax.models.__main__ import parameters
from daasr_jax.registry import MODELS
from daasr_jax.weights.vgg import lpips_vgg16
from tests.data_fixtures import fastmri_root
from tests.parity import public

ROOT = Path(__file__).parents[2]
SYSTEMS = ("srcnn", "edsr", "swinir", "hat", "mcsr", "minet", "mcmrsr", "ttsr")
PRESETS = ("common", "published", "small")


def load(system, preset="common"):
    return importlib.import_module(f"configs.{system}_x4").get_config(preset)


def flatten(config):
    """Nested keys joined by dots, tuples as lists: what `config.json` holds."""
    return traverse_util.flatten_dict(json.loads(config.to_json_best_effort()), sep=".")


def settings(config):
    """All keys but those of the model and the losses, which differ by system."""
    flat = flatten(config)
    return {k for k in flat if not k.startswith(("model.kwargs.", "losses."))}


# From the publications and their public code; single-channel in and out.
COUNTS = {
    "srcnn": (57_281, 57_281, 57_281),
    "srcnn_915": (8_129, 8_129, 8_129),
    "edsr": (1_367_553, 1_552_193, 1_515_265),
    "edsr_l": (40_720_385, 43_670_785, 43_080_705),
    "swinir": (11_748_093, 11_932_733, 11_895_805),
    "swinir_light": (904_744, 907_449, 911_236),
    "hat": (20_620_401, 20_805_041, 20_768_113),
    "hat_s": (9_469_725, 9_654_365, 9_617_437),
    "hat_l": (40_694_469, 40_879_109, 40_842_181),
    # Published at x2 and x4; the public x2 holds 292,140 more that it never uses.
    "mcmrsr": (3_175_741 - 292_140, None, 3_175_741),
    "minet": (6_748_189, None, None),  # published at x2
    # Its main network with single-channel ends, and the texture extractor.
    "ttsr": (None, None, 6_174_275 - 2 * 64 * 9 - 2 * 32 - 2 + 555_328),
}


# They take long to trace.
LARGE = ("hat", "hat_s", "hat_l", "swinir", "swinir_light", "mcmrsr")


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[pytest.mark.full] * (name in LARGE)) for name in COUNTS],
)
def test_parameter_counts(name):
    for scale, count in zip((2, 3, 4), COUNTS[name], strict=True):
        assert count is None or parameters(name, scale) == count


def test_the_table_of_parameters_as_json(capsys, monkeypatch):
    from daasr_jax.models import __main__ as command

    monkeypatch.setattr(sys, "argv", ["models", "--json"])
    monkeypatch.setattr(command, "parameters", lambda name, scale: 7)
    command.main()
    rows = json.loads(capsys.readouterr().out)
    assert len(rows) == 3 * len(MODELS.names())
    row = {"system": "hat", "variant": "hat_s", "scale": 2, "parameters": 7}
    assert row in rows
    monkeypatch.setattr(sys, "argv", ["models"])
    command.main()
    assert "swinir_light" in capsys.readouterr().out


@pytest.mark.parametrize(
    "scales", [(4,), pytest.param((2, 3), marks=pytest.mark.full)], ids=str
)
@pytest.mark.parametrize(
    "preset",
    [pytest.param(p, marks=[pytest.mark.full] * (p == "common")) for p in PRESETS],
)
@pytest.mark.parametrize("system", SYSTEMS)
def test_configuration_builds(system, preset, scales):
    config = load(system, preset)
    assert config.is_locked
    assert config.model.kwargs.is_locked
    assert (config.name, config.preset) == (f"{system}_x4", preset)
    assert (config.model.name, config.scale) == (system, 4)
    assert settings(config) == settings(load("srcnn"))
    checks.check_ranges(config)
    parts.data_settings(config)
    assert parts.make_losses(config)
    for scale in scales:
        config.scale = scale
        crop = config.train.crop or config.data.size // scale
        lr = jax.ShapeDtypeStruct((1, crop, crop, 1), jnp.float32)
        hr = jax.ShapeDtypeStruct((1, crop * scale, crop * scale, 1), jnp.float32)
        model = parts.make_model(config)
        out, _ = jax.eval_shape(
            lambda k, x, r, m=model: m.init_with_output(k, x, r, train=False),
            jax.random.key(0),
            lr,
            hr,
        )
        assert out.sr.shape == hr.shape
    parts.make_training(config, steps=9, steps_per_epoch=3)


@pytest.mark.parametrize("system", SYSTEMS)
def test_common_is_the_papers_protocol(system):
    config, paper = load(system), importlib.import_module("configs.fastmri_x4")
    paper = paper.get_config()
    assert config == load(system, "")
    assert config.data == paper.data
    assert config.train == paper.train
    assert config.reference == paper.reference
    with config.unlocked():  # of one system a part learns more slowly
        config.optimiser.slow, config.optimiser.slow_factor = "", 1.0
    assert config.optimiser == paper.optimiser
    assert all(v is None for v in config.model.kwargs.values())


# What a publication, or its public code, differs in from the common protocol.
_SWIN = {
    "train.batch_size": 32,
    "train.steps": 500_000,
    "train.ema_decay": 0.999,
    "optimiser.b2": 0.99,
    "optimiser.schedule": "milestones",
    "optimiser.milestones": [250_000, 400_000, 450_000, 475_000],
}
RECIPES = {
    "srcnn": {
        "losses.rec.name": "pixel.mse",
        "model.kwargs.start": "published",
        "optimiser.name": "sgd",
        "optimiser.learning_rate": 1e-4,
        "optimiser.schedule": "constant",
        "optimiser.slow": "^reconstruct/",
        "optimiser.slow_factor": 0.1,
    },
    "edsr": {
        "train.batch_size": 16,
        "train.crop": 48,
        "train.steps": 300_000,
        "train.ema_decay": 0.999,
        "optimiser.learning_rate": 1e-4,
        "optimiser.b2": 0.99,
        "optimiser.schedule": "milestones",
        "optimiser.milestones": [200_000],
    },
    "swinir": _SWIN | {"train.crop": 48},
    "hat": _SWIN | {"train.crop": 64},
    "mcsr": {
        "losses.rec.name": "pixel.mse",
        "perceptual.network": "vgg19",
        "perceptual.texture": 0.1,
        "adversarial.objective": "wgan-gp",
    },
    "minet": {
        "train.batch_size": 4,
        "train.crop": 0,
        "train.epochs": 35,
        "optimiser.name": "rmsprop",
        "optimiser.b2": 0.99,
        "optimiser.learning_rate": 1e-5,
        "optimiser.schedule": "constant",
    },
    "mcmrsr": {
        "train.batch_size": 2,
        "train.crop": 0,
        "optimiser.learning_rate": 1e-4,
        "optimiser.b1": 0.5,
        "optimiser.schedule": "constant",
    },
    "ttsr": {"optimiser.learning_rate": 1e-4, "optimiser.schedule": "constant"},
}


@pytest.mark.parametrize("system", SYSTEMS)
def test_published_is_the_recipe_of_the_publication(system):
    common, published = (
        flatten(load(system, preset)) for preset in ("common", "published")
    )
    changed = {k: v for k, v in published.items() if v != common[k]}
    assert changed == RECIPES[system] | {"preset": "published"}


def test_a_variant_by_its_name_alone():
    config = load("hat")
    config.model.name = "hat_s"
    assert parts.make_model(config).features == 144
    config.model.kwargs.features = 60
    assert parts.make_model(config).features == 60
    config.model.name = "hat_m"
    with pytest.raises(ConfigError, match="nearest: hat"):
        parts.make_model(config)


def test_unknown_preset():
    with pytest.raises(ValueError, match=r"'common', 'published', 'small'"):
        load("edsr", "own")


def test_perceptual_term_needs_a_term_to_weigh_it_by():
    config = load("edsr")
    config.perceptual.picture = "sat"
    with pytest.raises(ConfigError, match=r"E210.*picture is 'sat'.*\(rec\)"):
        parts.make_losses(config, lpips_vgg16())


def test_mcsr_has_the_textural_term():
    config = load("mcsr", "published")
    losses = parts.make_losses(config, lpips_vgg16())
    assert set(losses) == {"rec", "level1", "perceptual", "texture"}
    assert losses["texture"][0] == 0.1


class TestPretrained:
    @pytest.mark.full
    def test_put_in(self):
        config = load("ttsr", "small")
        assert config.model.pretrained
        state = parts.make_state(
            config, *parts.make_training(config, steps=1, steps_per_epoch=1)
        )
        params, source = parts.pretrained_params(config, state.gen)
        assert source["source"].startswith("vgg16")
        want = lpips_vgg16().params
        for name, layer in params["texture"].items():
            np.testing.assert_array_equal(layer["kernel"], want[name]["kernel"])
        assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, state.gen)

    def test_another_preprocessing(self):
        config = load("ttsr", "small")
        config.model.kwargs.preprocessing = "caffe"
        with pytest.raises(ConfigError, match=r"E210.*preprocessing is 'caffe'"):
            parts.pretrained_params(config, {})

    def test_a_model_without_such_a_part(self):
        with pytest.raises(ConfigError, match=r"E210.*edsr has no part"):
            parts.pretrained_params(load("edsr"), {})


def file_of(torch, state, path, wrap=None):
    tensors = {name: torch.from_numpy(value) for name, value in state.items()}
    torch.save({wrap: tensors} if wrap else tensors, path)
    return path


class TestConverter:
    """A file of `torch.save` to a run that evaluates; needs PyTorch."""

    @pytest.fixture(autouse=True)
    def _torch(self):
        self.torch = pytest.importorskip("torch", reason="PyTorch is not installed")

    @pytest.mark.parametrize(
        ("system", "golden", "wrap"),
        [
            ("edsr", "edsr_x2", "params"),
            ("swinir", "swinir_rgb_x4", "params_ema"),
            ("hat", "hat_x3", "params_ema"),
            ("ttsr", "ttsr_x4", None),
        ],
    )
    def test_run(self, system, golden, wrap, tmp_path, capsys):
        state, arrays, about = public.load(golden)
        file = file_of(self.torch, state, tmp_path / "net.pth", wrap)
        arguments = ["--config", f"configs/{system}_x4.py", "--torch", str(file)]
        assert import_weights.main([*arguments, "--out", str(tmp_path / "run")]) == 0
        said = capsys.readouterr().out
        assert "eval.py --workdir" in said
        assert ("assumed" in said) == (system == "edsr")
        run = saved_run.load_run(tmp_path / "run")
        assert run.step == 0
        assert run.config.model.name.startswith(system)
        lr, ref = (
            jnp.asarray(public.image((2, *size, 1), name))
            for size, name in (
                (about["size"], golden if system != "ttsr" else f"{golden}_lr"),
                (about.get("reference", (8, 8)), f"{golden}_ref"),
            )
        )
        index = {"indices": jnp.asarray(arrays["index"])} if system == "ttsr" else {}
        model = parts.make_model(run.config)
        sr = jax.jit(lambda v: model.apply(v, lr, ref, train=False, **index).sr)(
            run.variables
        )
        expected = arrays["sr"]
        assert np.abs(sr - expected).max() <= 1e-5 * np.abs(expected).max()
        assert import_weights.main([*arguments, "--out", str(tmp_path / "run")]) == 2
        assert "E235" in capsys.readouterr().err

    def test_another_network(self, tmp_path, capsys):
        state, _, _ = public.load("edsr_x2")
        file = file_of(self.torch, state, tmp_path / "net.pth")
        arguments = ["--config", "configs/hat_x4.py", "--torch", str(file)]
        assert import_weights.main([*arguments, "--out", str(tmp_path / "run")]) == 2
        error = capsys.readouterr().err
        assert "is not a supported hat" in error
        assert error.count("\n") == 1
        assert not (tmp_path / "run").exists()

    def test_the_printed_command_evaluates(self, tmp_path, capsys):
        """Names of `DataParallel` too; fields that are tuples and fractions."""
        state, _, _ = public.load("edsr_x2")
        state = {f"module.{name}": value for name, value in state.items()}
        file = file_of(self.torch, state, tmp_path / "net.pth", "state_dict")
        out = tmp_path / "a run"
        arguments = [
            "--config",
            "configs/edsr_x4.py",
            "--torch",
            str(file),
            "--out",
            str(out),
        ]
        assert import_weights.main(arguments) == 0
        line = capsys.readouterr().out.strip().splitlines()[-1]
        root = fastmri_root(tmp_path / "data", train=2, val=2)
        command = line.removeprefix("evaluate by: ").replace("=DIR", f"={root}")
        command = [sys.executable, *shlex.split(command)[1:], "--config.data.size=64"]
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            cwd=ROOT,
            env=os.environ | {"XDG_CACHE_HOME": str(tmp_path / "cache")},
            timeout=200,
        )
        assert done.returncode == 0, done.stderr
        (result,) = out.glob("eval_data-*_random.json")
        report = json.loads(result.read_text())
        assert np.isfinite(report["methods"]["edsr"]["psnr"]["mean"])

    @pytest.mark.parametrize(
        ("change", "says"),
        [
            (
                {"conv_first.weight": np.float32(1)},
                "conv_first.weight has the shape ()",
            ),
            (
                {"conv_first.weight": np.ones((0, 1, 3, 3))},
                "has the shape (0, 1, 3, 3)",
            ),
            ({"conv_last.weight": np.ones((1, 16, 3))}, "wanted 4 axes"),
            (
                {"conv_last.weight": np.ones((1, 16, 5, 5))},
                "last/kernel is (5, 5, 16, 1)",
            ),
            ({"conv_last.weight": "sparse"}, "conv_last.weight is no dense tensor"),
            ({"conv_last.weight": "meta"}, "conv_last.weight is no dense tensor"),
        ],
    )
    def test_tensors_that_do_not_fit(self, change, says, tmp_path, capsys):
        torch = self.torch
        odd = {
            "sparse": torch.ones(1, 16, 3, 3).to_sparse(),
            "meta": torch.ones(1, 16, 3, 3, device="meta"),
        }
        tensors = {
            name: odd[value] if isinstance(value, str) else torch.as_tensor(value)
            for name, value in (public.load("edsr_x2")[0] | change).items()
        }
        torch.save(tensors, tmp_path / "net.pth")
        arguments = [
            "--config",
            "configs/edsr_x4.py",
            "--torch",
            str(tmp_path / "net.pth"),
        ]
        assert import_weights.main([*arguments, "--out", str(tmp_path / "run")]) == 2
        error = capsys.readouterr().err
        assert says in error
        assert "E235" in error
        assert error.count("\n") == 1

    def test_a_system_whose_weights_are_not_imported(self, tmp_path, capsys):
        arguments = ["--config", "configs/srcnn_x4.py", "--torch", "net.pth"]
        assert import_weights.main([*arguments, "--out", str(tmp_path / "run")]) == 2
        assert "E235" in (error := capsys.readouterr().err)
        assert "edsr, hat, swinir, ttsr" in error

    def test_no_state_dict(self, tmp_path, capsys):
        self.torch.save([1, 2], tmp_path / "net.pth")
        arguments = [
            "--config",
            "configs/edsr_x4.py",
            "--torch",
            str(tmp_path / "net.pth"),
        ]
        assert import_weights.main([*arguments, "--out", str(tmp_path / "run")]) == 2
        assert "holds no state dict" in capsys.readouterr().err


def test_models_command_runs():
    done = subprocess.run(
        [sys.executable, "-m", "daasr_jax.models", "--help"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=120,
    )
    assert done.returncode == 0
    assert "--json" in done.stdout


@pytest.mark.parametrize("name", ["hat_s", "swinir_light", "edsr_l"])
def test_a_variant_is_found_in_a_fresh_process(name):
    code = (
        f"from daasr_jax.registry import MODELS; print(MODELS.get({name!r}).__name__)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
