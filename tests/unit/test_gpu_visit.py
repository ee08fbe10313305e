"""A visit to a GPU, on the CPU and in miniature."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from benchmarks.gpu import __main__ as plan
from benchmarks.gpu import confidence, loader, pack, report, training
from benchmarks.gpu import jobs as turns
from daasr_jax import data, released
from daasr_jax.experiment import configuration, installation, parts
from tests import bare
from tests.data_fixtures import scan_voxels, write_nifti


def flags_of(folder: Path, contrasts: tuple[str, ...], seed: int) -> list[str]:
    """Six people, some contrasts each."""
    for person in range(1, 7):
        for k, contrast in enumerate(contrasts):
            path = folder / f"patient{person:02d}" / f"study1_{contrast}.nii.gz"
            voxels = scan_voxels(seed + 10 * person + k, (4, 24, 24))
            write_nifti(path, voxels)
    return [
        "configs/brain_x4_small.py",
        f"--config.data.root={folder}",
        f"--config.data.cache_dir={folder.parent / 'cache'}",
        "--config.data.size=32",
        "--config.data.subjects.train=patient01,patient02",
        "--config.data.subjects.val=patient03,patient06",
        "--config.data.subjects.test=patient04,patient05",
        "--config.reference.track=mixed",
        "--config.reference.shares.contrast=0.3",
    ]


@pytest.fixture(scope="module")
def flags(tmp_path_factory) -> list[str]:
    return flags_of(tmp_path_factory.mktemp("a") / "scans", ("FLAIR", "T1W"), 0)


@pytest.fixture(scope="module")
def packed(flags, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("b")
    other = flags_of(folder / "other", ("T1W",), 1000)
    path = folder / "set.npz"
    pack.pack([flags, other], path)
    return path


def test_a_packed_set_is_the_prepared_one_but_for_rounding(flags, packed):
    config = pack._configured(flags)
    prepared = data.prepare(parts.data_settings(config))
    tables, about = pack.load(packed)
    assert about["sets"][0]["dataset"] == prepared.dataset
    assert about["sets"][0]["flags"] == [flags[0], *flags[3:]]
    for split, table in prepared.splits.items():
        own = tables[split]
        assert own.keys[: len(table)] == table.keys
        assert [k[:2] for k in own.keys[len(table) :]] == ["1:"] * (
            len(own) - len(table)
        )
        for name in ("subjects", "contrasts", "studies", "hashes", "n_slices"):
            found = getattr(own, name)[: len(table)]
            np.testing.assert_array_equal(found, getattr(table, name))
        for i in range(len(table)):
            apart = np.abs(own.image(i) - table.image(i)).max()
            assert apart <= 0.5 / pack.LEVELS + 1e-6
            others = [
                k
                for k in range(len(table))
                if table.subjects[k] == table.subjects[i]
                and table.contrasts[k] != table.contrasts[i]
            ]
            wanted = table.other_contrast(i, others[0])
            found = own.other_contrast(i, others[0])
            assert np.abs(found - wanted).max() <= 0.5 / pack.LEVELS + 1e-6


def test_references_are_drawn_as_from_the_prepared_set(flags, packed):
    config = pack._configured(flags)
    table = data.prepare(parts.data_settings(config)).splits["test"]
    own = next(iter(pack.sets_of(*_test(packed)).values()))
    for how in ({}, {"track": "aligned"}, {"track": "aligned", "aligned": "contrast"}):
        wanted, found = (data.draw_pairing(t, **how) for t in (table, own))
        np.testing.assert_array_equal(found.references, wanted.references)


def _test(packed):
    tables, about = pack.load(packed)
    return tables["test"], about


def test_sets_stay_apart(packed):
    found = pack.sets_of(*_test(packed))
    assert [len(set(t.contrasts)) for t in found.values()] == [2, 1]


def test_processes_make_the_batches_that_one_makes(packed):
    how = {"batch_size": 2, "crop": 4, "scale": 4, "seed": 3}
    made = []
    for workers in (0, 2):
        batches = loader.batches(packed, workers=workers, **how)
        made.append([next(batches) for _ in range(3)])
        batches.close()
    for a, b in zip(*made, strict=True):
        assert a["hr"].shape == (2, 16, 16, 1)
        for name in ("hr", "ref"):
            np.testing.assert_array_equal(a[name], b[name])
    assert loader.rate(packed, 0.05, **how) > 0


def test_flags_keep_their_types(flags):
    config = pack._configured([*flags, "--config.train.steps=7"])
    assert config.train.steps == 7
    assert config.reference.shares.contrast == 0.3
    assert configuration.load(flags[0]).train.steps != 7
    for text, value in (("false", False), ("True", True)):
        config = pack._configured([*flags, f"--config.data.skip_bad={text}"])
        assert config.data.skip_bad is value


def test_rate_rises_and_ends_at_zero():
    along = [training.learning_rate(x, 2.0) for x in np.linspace(0, 1, 101)]
    assert along[0] == 0
    assert max(along) == pytest.approx(2.0)
    assert along.index(max(along)) == 5
    assert along[-1] == pytest.approx(0, abs=1e-12)
    assert (np.diff(along[5:]) < 0).all()


def test_a_pack_that_is_too_large_is_told(flags, tmp_path, monkeypatch, capsys):
    said, out = [], ""
    for most in (pack.MOST, 1000):
        monkeypatch.setattr(pack, "MOST", most)
        given = ["--pack", str(tmp_path), "--set", shlex.join(flags)]
        monkeypatch.setattr(sys, "argv", ["gpu", *given])
        plan.main()
        out, err = capsys.readouterr()
        said.append(err)
    assert "larger than" not in said[0]
    assert "prepared.npz is larger than 0.001 MB" in said[1]
    assert "holds the slices themselves and the names of their subjects' folders" in out


@pytest.mark.full
def test_a_training_that_is_killed_leaves_curve_and_weights(packed, tmp_path):
    code = "from benchmarks.gpu import train, training; training.KEEP = 0.0; "
    code += "training.SYNC = 2; train.main()"
    given = ["--row", "edsr", "--prepared", str(packed), "--out", str(tmp_path)]
    given += ["--scale", "2", "--seconds", "600", *turns.TINY_TRAIN[:-2]]
    process = subprocess.Popen(
        [sys.executable, "-c", code, *given], stdout=subprocess.PIPE,
        env=os.environ | {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1"},
    )  # fmt: skip
    try:
        end = time.monotonic() + 200
        while not (tmp_path / "train_edsr_x2_8x2.npz").exists():
            assert time.monotonic() < end
            time.sleep(0.05)
    finally:
        process.kill()
        process.communicate()
    found = json.loads((tmp_path / "train_edsr_x2_8x2.json").read_text())
    assert found["steps"] >= 2
    assert len(found["curve"]) == found["steps"] // 2
    with np.load(tmp_path / "train_edsr_x2_8x2.npz") as weights:
        sizes = [weights[k].size for k in weights if k.startswith("params/")]
    assert sum(sizes) == found["parameters"]
    text, _ = report.make(tmp_path)
    assert f"was stopped after step {found['steps']:,}, before it was evaluated" in text


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["--train", "fats:4"], "--train=fats:4 is no ROW:SCALE"),
        (["--train", "fast:5"], "scales 2, 3 and 4"),
        (["--train", "fast"], "rows are fast, paper"),
        (["--train", "fast:4:0:-1"], "is no ROW:SCALE"),
        (["--train", "fast:4:0:0s"], "--train=fast:4:0:0s has no time"),
        (["--parts", "stop"], "no part is called stop"),
        (["--prepared", "nowhere.npz"], "--prepared=nowhere.npz is not there"),
        (["--report", "--out", "nowhere"], "--out=nowhere holds no results"),
        (["--report", "--out", "docs/results"], "holds results of another version"),
        (["--out", "docs/results"], "holds results of another visit, such as gpu.json"),
        (["--pack", "p.npz", "--set", "configs/brain_x4_small.py --config.rooot=/x"],
         "--config.rooot=/x is no setting of configs/brain_x4_small.py"),
        (["--pack", "p.npz", "--set", "nowhere.py"], "E225"),
        (["--pack", "p.npz", "--set", ""], "--set is empty: it wants CONFIG"),
        *((["--pack", "p.npz", "--set", f"configs/brain_x4_small.py {flag}"],
           f"{flag} is no setting of configs/brain_x4_small.py")
          for flag in ("--config.data=5", "--config.data.root.x=5",
                       "--config.data.skip_bad=perhaps")),
    ],
)  # fmt: skip
def test_wrong_options_are_a_line(given, words, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["gpu", *given])
    with pytest.raises(SystemExit) as caught:
        plan.main()
    assert caught.value.code == 2
    assert words in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["fast:4, edsr:4"], "unrecognized arguments: edsr:4"),
        (["fast:4 --feature_s 8"], "unrecognized arguments: --feature_s"),
        (["fast:4", "fast:4 --learning_rate 1e-4"], "both write train_fast_x4.json"),
        (["edsr:4,fast:4", "edsr:4 --groups 2"], "both write train_edsr_x4.json"),
    ],
)
def test_trainings_are_read_before_the_visit(
    given, words, packed, tmp_path, monkeypatch, capsys
):
    flags = [word for text in given for word in ("--train", text)]
    flags += ["--prepared", str(packed), "--out", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["gpu", *flags])
    with pytest.raises(SystemExit) as caught:
        plan.main()
    assert caught.value.code == 2
    assert words in capsys.readouterr().err.splitlines()[-1]
    assert not list(tmp_path.iterdir())


def test_a_command_is_told_without_its_places():
    given = ["--out", "here/a", "--cache=here", "--minutes", "9", "--prepared", "x.npz"]
    assert installation.without_places(given, plan.PLACES) == [
        "--out", "DIR", "--cache=CACHE", "--minutes", "9", "--prepared", "FILE",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("low", "high", "between"),
    [
        ([0.1, 0.3], [0.7, 0.9], (0.3, 0.7)),
        ([0.1, 0.3, 0.8], [0.7, 0.9, 0.95, 1.0], (0.8, 0.9)),  # one on the wrong side
        ([0.5], [0.6, 0.4, 0.7, 0.8], (0.5, 0.6)),  # one of four weighs less than one
    ],
)
def test_the_bound_tells_strangers_from_the_others(low, high, between):
    found = confidence.bound(np.array(low), np.array(high))
    assert between[0] < found <= between[1]


def test_the_bound_is_of_the_kind_that_is_hardest_to_tell():
    low, neighbour = np.array([0.1, 0.3]), np.array([0.7, 0.9])
    assert 0.3 < confidence.bound(low, neighbour, np.array([0.4, 0.5])) <= 0.4
    assert confidence.bound(low, neighbour, np.array([0.1, 0.3])) == 0.0


def test_there_is_no_bound_where_the_confidence_tells_nothing():
    same = np.array([0.9, 0.95, 1.0])
    assert confidence.bound(same, same) == 0.0
    text = confidence.section({}, 0.0, 2)
    assert "is 0.00: on 2 test slices of each set no median confidence" in text


def test_a_card_has_one_section_of_the_confidence():
    seen = confidence.Seen(np.array([0.2, 0.6]), np.array([0.0, 0.5]))
    text = confidence.section({"a set": {"stranger": seen}}, 0.5, 2)
    assert "| a set | stranger | 0.20, 0.40, 0.60 | 1 of 2 | +0.25 |" in text
    card = confidence.with_section("# x4\n\nWords.\n", text)
    assert card == f"# x4\n\nWords.\n\n{text}"
    assert confidence.with_section(card, text) == card


@pytest.mark.full
@pytest.mark.timeout(1500)  # more than the limits of its processes together
def test_a_whole_visit_in_miniature(tmp_path, packed):
    """On a bare machine; what it trained is then released on a whole one."""
    out = tmp_path / "out"
    command = [sys.executable, "-m", "benchmarks.gpu", "--tiny", "--minutes", "9"]
    command += ["--compile", "400", "--prepared", str(packed), "--out", str(out)]
    command += ["--train", "fast:4,edsr:2"]
    begin = time.monotonic()
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=560,
        env=bare.environment(tmp_path),
    )  # fmt: skip
    print(f"MEASURED a visit in miniature: {time.monotonic() - begin:.0f} s")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().splitlines()[-1].startswith("left out or not done: ")
    found = json.loads((out / "gpu.json").read_text())
    for name in ("match jax", "step jax", "train fast:4:0", "train edsr:2:0"):
        assert found["became"][name] == "done", (name, done.stdout)
    assert found["check"]["exit"] == 0
    assert found["step_jax"]["rows"][0]["ms"] > 0
    assert found["step_jax"]["trace"]["busy_ms"] > 0
    trained = found["train_fast_x4_8x1"]
    assert trained["steps"] == 60
    assert trained["skipped"] == 0
    for one in trained["controls"].values():
        assert {"black", "stranger", "self"} <= one["methods"].keys()
    weights = np.load(out / "train_fast_x4_8x1.npz")
    assert (
        sum(weights[k].size for k in weights if k.startswith("params/"))
        == (trained["parameters"])
    )
    for path in out.iterdir():  # no result names a subject
        assert path.suffix in (".npz", "") or "patient" not in path.read_text(), path
    page = (out / "gpu.md").read_text()
    assert "| x4 | DAASR `fast` | 8 x 1 | 2 | 8 | 0.0003 | 0 |" in page
    assert "| x2 | EDSR: no reference | 8 x 2 | 2 | 8 | 0.0003 | 0 |" in page

    made = tmp_path / "released"
    command = [sys.executable, "-m", "benchmarks.gpu.release", "--name", "x4"]
    command += ["--run", str(out / "train_fast_x4_8x1"), "--prepared", str(packed)]
    command += ["--out", str(made), "--commit", "abc", "--slices", "2"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr
    weights = released.load(made / "x4.safetensors")
    assert weights.about["scale"] == 4
    kernel = weights.variables["params"]["shallow"]["kernel"]
    stored = np.load(out / "train_fast_x4_8x1.npz")["params/shallow/kernel"]
    np.testing.assert_allclose(kernel, stored, rtol=1e-3, atol=1e-6)
    text = (made / "x4.md").read_text()
    assert "## What it must not be used for" in text
    assert "patient04" in text.split("## Figures")[1]
    assert "--config.data.root=DIR" in text

    command = [sys.executable, "-m", "benchmarks.gpu.confidence", "--name", "x4"]
    command += ["--prepared", str(packed), "--folder", str(made), "--slices", "2"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr
    again = released.load(made / "x4.safetensors")
    jax.tree.map(np.testing.assert_array_equal, again.variables, weights.variables)
    assert (made / "x4.md").read_text().startswith(text.rstrip())
    assert f"is {again.about['low_confidence']:.2f}:" in (made / "x4.md").read_text()
