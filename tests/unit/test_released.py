"""Weights as files of the package: written, read, refused."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.gpu import confidence, release
from daasr_jax import released
from daasr_jax.errors import CheckpointError
from daasr_jax.models.daasr import PRESETS
from tests.weights import ABOUT, random_variables


@pytest.fixture
def folder(tmp_path):
    released.save(tmp_path / "x2.safetensors", random_variables(), ABOUT)
    return tmp_path


def test_what_is_saved_is_loaded(folder):
    variables = random_variables()
    found = released.load(folder / "x2.safetensors").variables
    assert jax.tree.structure(found) == jax.tree.structure(variables)
    heads = [name for name in variables["params"] if name.startswith("head_")]
    assert heads  # which serve training alone
    for name in heads:
        assert not any(x.any() for x in jax.tree.leaves(found["params"].pop(name)))
        variables["params"].pop(name)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(variables), strict=True):
        assert a.dtype == jnp.float32
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-7)


def test_the_loaded_network_does_what_the_saved_one_did(folder):
    model, found, _ = released.load(folder / "x2.safetensors")
    rng = np.random.default_rng(0)
    lr, ref = (jnp.asarray(rng.random((1, n, n, 1)), jnp.float32) for n in (12, 24))
    a, b = (
        model.apply(v, lr, ref, train=False).sr for v in (found, random_variables())
    )
    assert np.abs(a - b).max() < 1e-2 * np.abs(b).max()


def test_what_is_said_of_weights(folder):
    model, _, about = released.load(folder / "x2.safetensors")
    assert (model.scale, model.features, model.groups) == (2, 8, 1)
    assert model.query == PRESETS["fast"]["query"]
    assert model.fuse.func is PRESETS["fast"]["fuse"]
    assert about["degradation"] == "bicubic"
    index = json.loads((folder / "index.json").read_text())
    wanted = {"weights": "x2", "sha256": index["x2"]["sha256"]}
    assert about["source"] == wanted | {"hash_was_checked": True}
    assert index["x2"]["bytes"] == (folder / "x2.safetensors").stat().st_size


def test_statistics_keep_their_digits_and_large_values_their_size(tmp_path):
    variables = random_variables()
    stats = variables["batch_stats"]["sfe"]["block0_norm1"]
    stats["var"] = jnp.full_like(stats["var"], 1.23456789e-6)
    variables["params"]["shallow"]["bias"] = jnp.full(8, 1e5)
    released.save(tmp_path / "x2.safetensors", variables, ABOUT)
    _, found, _ = released.load(tmp_path / "x2.safetensors")
    kept = found["batch_stats"]["sfe"]["block0_norm1"]["var"]
    np.testing.assert_array_equal(kept, stats["var"])
    np.testing.assert_array_equal(found["params"]["shallow"]["bias"], 1e5)


def test_a_second_file_keeps_the_first_in_the_index(folder):
    released.save(folder / "other.safetensors", random_variables(1), ABOUT)
    assert set(json.loads((folder / "index.json").read_text())) == {"x2", "other"}


def refusal(path) -> str:
    with pytest.raises(CheckpointError) as caught:
        released.load(path)
    text = str(caught.value)
    assert "\n" not in text
    return text


def test_damaged_weights_are_one_line(folder):
    path = folder / "x2.safetensors"
    data = path.read_bytes()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    assert "error E421" in refusal(path)
    assert "SHA-256" in refusal(path)
    (folder / "index.json").unlink()  # a file of its own has no hash to be held to
    for damaged, reason in (
        (data[:100], "header"),
        (data[:-40], "incomplete"),
        (b"", "header"),
        (b"not weights at all", "header"),
    ):
        path.write_bytes(damaged)
        assert reason in refusal(path).lower()
    path.unlink()
    assert "cannot be read" in refusal(path)


@pytest.mark.parametrize(
    "index",
    [[], "x2", None, {"x2": 1}, {"x2": {"file": "x2.safetensors"}},
     {"x2": {"file": 2, "sha256": "ab"}}, {"y": ["file", "sha256"]}],
)  # fmt: skip
def test_an_index_that_is_none_is_one_line(folder, index):
    (folder / "index.json").write_text(json.dumps(index))
    text = refusal(folder / "x2.safetensors")
    assert text.startswith("error E421: ")
    assert "index.json" in text


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"model": "dasr"}, "nearest"),
        ({"kwargs": {**ABOUT["kwargs"], "features": 16}}, "not those of the network"),
        ({"form": 2}, "form"),
        ({"kwargs": {"colour": 3}}, "colour"),
    ],
)
def test_another_network_is_one_line(tmp_path, change, reason):
    path = tmp_path / "x2.safetensors"
    released.save(path, random_variables(), ABOUT | change)
    assert reason in refusal(path)


def test_unknown_names_are_told_what_there_is():
    assert "error E420" in refusal("x7")
    assert "'x7'" in refusal("x7")


def test_what_cannot_be_saved(tmp_path):
    with pytest.raises(ValueError, match="degradation"):
        released.save(tmp_path / "a.safetensors", {}, {"scale": 2, "model": "daasr"})
    bad = {"params": {"a": np.array([np.nan], np.float32)}}
    with pytest.raises(ValueError, match="params/a is not finite"):
        released.save(tmp_path / "a.safetensors", bad, ABOUT | {"kwargs": {}})


def test_released_weights_are_whole():
    """Every file of the package is what its index says, with a card, small enough."""
    total = 0
    for name, entry in released.names().items():
        weights = released.load(name)
        assert weights.about["scale"] == entry["scale"]
        card = (released.FOLDER / f"{name}.md").read_text(encoding="utf-8")
        assert len(card) > 500
        total += entry["bytes"]
    assert total < 8e6
    files = {path.stem for path in released.FOLDER.glob("*.safetensors")}
    assert files == set(released.names())


def test_a_card_names_people_and_commands():
    """Of every split, and with the places of the others left out."""
    subjects = {"train": ["a", "b"], "val": ["c"], "test": ["d"]}
    said = release._people({"subjects": subjects})
    assert said == "trained on a, b; not used: c (validation); tested on d"
    assert "not used" not in release._people({"subjects": subjects | {"val": []}})
    given = {"run": Path("/home/jane/out/train_fast_x4"), "prepared": Path("/data/s")}
    given |= {"name": "x4", "sets": "A B,C", "slices": 60, "device": "CPU core"}
    args = argparse.Namespace(**given, commit="0123456789abcdef")
    assert release.command_of(args) == (
        "python -m benchmarks.gpu.release --run OUT/train_fast_x4 --prepared set.npz "
        "--name x4 --sets 'A B,C' --slices 60 --commit 0123456789ab --device 'CPU core'"
    )
    assert confidence.command_of(args) == (
        "python -m benchmarks.gpu.confidence --name x4 --prepared set.npz --sets "
        "'A B,C' --slices 60"
    )
    for name in ("x2", "x4"):
        card = (released.FOLDER / f"{name}.md").read_text(encoding="utf-8")
        for words in (f"--name {name} --prepared set.npz", "root=DIR1", "root=DIR2"):
            assert words in card
