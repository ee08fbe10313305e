"""The paper's tables by one command: killed, shared, and equal to what was not."""

from __future__ import annotations

import json

import numpy as np
import pytest

from daasr_jax.evaluation.tables import budgets, cells, text
from daasr_jax.experiment import cell, cell_setting
from daasr_jax.experiment.configuration import load
from tests.data_fixtures import LPS_AFFINE, nifti_root, scan_voxels, write_nifti
from tests.e2e.commands import complaint, run_all, start, until_saved

pytestmark = pytest.mark.timeout(900)


def masks_of(root, folder):
    """Of each volume 0 and 1, in uint8, stored from right to left; slice 1 is blank."""
    for path in root.rglob("*.nii.gz"):
        inside = (scan_voxels(0) > 0).astype(np.uint8)
        inside[1] = inside[:, :12] = inside[:, :, :6] = 0
        turned = LPS_AFFINE.copy()
        turned[0, 0] *= -1
        turned[0, 3] = LPS_AFFINE[0, 0] * (inside.shape[2] - 1)
        name = path.relative_to(root).as_posix().replace(".nii", "_mask.nii")
        write_nifti(folder / name, inside[:, :, ::-1], turned)


def command(root, workdir, *more):
    return ["reproduce.py", "--table", "1", "--figure", "4",
            "--data", "configs/brain_x4_small.py", "--data_root", str(root),
            "--workdir", str(workdir), "--only", "srcnn,edsr", "--scales", "4",
            "--tracks", "random", "--steps", "10",
            "--masks", str(root.parent / "masks"),
            "--set", "model.kwargs.features=8", "--set", "model.kwargs.blocks=1",
            "--set", "data.slice_step=1",
            *more]  # fmt: skip


def rows(workdir):
    made = json.loads((workdir / "table_1.json").read_text())
    return text.as_csv(made | {"command": ""}, once=False)


@pytest.mark.full
def test_killed_and_shared_is_as_in_one_go(tmp_path):
    root = nifti_root(tmp_path / "data", subjects=8, contrasts="T1W")
    masks_of(root, tmp_path / "masks")
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    own = {"JAX_COMPILATION_CACHE_DIR": str(tmp_path / "compiled")}
    begun = parts / "cells/srcnn-x4-any-seed0-equal_steps"
    first = start(command(root, parts), tmp_path / "cache", **own)
    until_saved(first, begun, 2)
    first.kill()
    first.communicate()
    assert not (begun / "done.json").exists()
    # Two go on at once, and share what is left.
    both = [start(command(root, parts), tmp_path / "cache", **own) for _ in range(2)]
    said = [process.communicate(timeout=600) for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    done = [line for out, _ in said for line in out.splitlines() if " left, " in line]
    assert len({line.split()[1] for line in done}) == len(done)
    assert "resuming at step" in "".join(err for _, err in said)
    single = start(command(root, whole), tmp_path / "cache", **own)
    out, err = single.communicate(timeout=600)
    assert single.returncode == 0, err
    assert rows(parts) == rows(whole)
    assert "not finite" not in rows(whole)
    with np.load(begun / "pictures.npz") as kept:
        assert kept["sr"].shape == kept["hr"].shape
        stripped, hr = kept["stripped_hr"], kept["hr"][:-2]
        blank = np.char.endswith(kept["keys"][:-2], "#001")
        assert blank.tolist() == [True, False] * 2  # the middle halves of two volumes
        assert not stripped[blank].any()
        assert not stripped[:, :30].any()
        assert not stripped[:, :, :17].any()
        np.testing.assert_array_equal(
            stripped[~blank, 34:50, 22:40], hr[~blank, 34:50, 22:40]
        )
        named = [*kept["keys"], *kept["references"]]
    assert not [
        name for name in named if "patient" in name
    ]  # hashes, as in all results
    page = (whole / "report.html").read_text(encoding="utf-8")
    assert "without skull" in page
    assert "patient0" not in page
    assert "not run" in page
    again = start(command(root, whole, "--dry_run"), tmp_path / "cache")
    out, err = again.communicate(timeout=200)
    assert again.returncode == 0, err
    assert "0 left: about 0:00" in out


@pytest.mark.full
@pytest.mark.parametrize(("track", "number"), [("neighbour", 3), ("contrast", 1)])
def test_no_two_pairings_are_alike(tmp_path, monkeypatch, track, number):
    """A neighbour lies on either side; one other contrast can be paired in one way."""
    monkeypatch.chdir(tmp_path)
    root = nifti_root(tmp_path / "data")
    changes = {
        "data.root": str(root), "data.cache_dir": str(tmp_path / "cache"),
        "data.slice_step": "1", "model.kwargs.features": "8",
        "model.kwargs.groups": "1",
    }  # fmt: skip
    budget = budgets.budget("smoke", steps=2, gpu=False)
    setting = cell_setting.Setting(load("brain_x4_small"), budget, changes, track=track)
    job = cells.Cell("daasr_fast", 4, track, 0)
    folder = tmp_path / "run"
    found = cell.run_cell(setting, job, folder, steps=2, rate=1e-3, lpips=False)
    paths = sorted(folder.glob("eval_pairing_*.json"))
    hashes = {json.loads(path.read_text())["pairing_sha256"] for path in paths}
    assert found["pairings_used"] == len(paths) == len(hashes) == number


def test_wrong_input_is_one_line(tmp_path):
    root, work = nifti_root(tmp_path / "data"), tmp_path / "w"
    usual = command(root, work, "--dry_run")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "reproduce.json").write_text('{"data": {}, "budget": {}}')
    cases = {
        "no table": (usual[:1] + usual[5:], "E284", 2, "--table"),
        "row": ([*usual, "--only", "hut"], "E280", 2, "hut"),
        "set": ([*usual, "--set", "train.crop"], "E285", 2, "KEY=VALUE"),
        "seeds": ([*usual, "--seeds", "0"], "E285", 2, "--seeds"),
        "scale": ([*usual, "--scales", "x4"], "E285", 2, "x4"),
        "table": ([*usual, "--table", "9"], "E225", 2, "9"),
        "other": (command(root, tmp_path / "other", "--dry_run"), "E281", 2, "data"),
    }
    early = {  # before anything is trained
        "masks": ([], "E364", 3, "study1_T1W_mask.nii.gz"),
        "val": (["data.val_fraction=0"], "E283", 2, "data.subjects.val"),
        "one": (["data.subjects.train=0,1,2", "data.subjects.val=3",
                 "data.subjects.test=4,5"], "E307", 3, "--tracks random"),
    }  # fmt: skip
    for name, (changes, *expected) in early.items():
        more = [word for change in changes for word in ("--set", change)]
        argv = [*command(root, tmp_path / name, *more), "--only", "daasr,edsr"]
        argv += ["--masks", ""] if name == "one" else []
        cases[name] = argv, *expected
    done = run_all([argv for argv, *_ in cases.values()], tmp_path / "cache")
    for (name, (_, *expected)), result in zip(cases.items(), done, strict=True):
        assert not (wrong := complaint(result, *expected)), (name, wrong)
    assert not work.exists()
    for name in early:
        assert not (tmp_path / name).exists()  # the mended command begins anew
