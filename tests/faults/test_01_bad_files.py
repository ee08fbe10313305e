"""Fault 01: files that are cut short, empty, web pages or no images lie in the data.

Expected: `train.py --check_data` lists every one of them. Training stops with exit code
3. With `data.skip_bad` it leaves them out, and run and report tell how many. Hidden
files such as `.DS_Store` are no data and are skipped in silence, by decision.
"""

from __future__ import annotations

import json
import logging

import h5py
import numpy as np
import pytest

from daasr_jax.data import prepare
from daasr_jax.errors import DataError
from tests.data_fixtures import fastmri_root, nifti_root, one_line, settings
from tests.e2e.commands import SMALL, complaint, run_all

BAD = {
    "a_cut.h5": "damaged HDF5 file",
    "b_empty.h5": "is empty (0 bytes)",
    "c_page.h5": "is a web page",
    "d_noise.h5": "is not an HDF5 file",
    "e_key.h5": "has no image",
    "f_nan.h5": "1 voxels are NaN or infinite",
    "g_lfs.h5": "pointer of Git LFS",
}


def spoilt(root):
    """A data set with seven bad files in its folder of training, and others beside."""
    folder = fastmri_root(root) / "multicoil_train"
    good = (folder / "file_000.h5").read_bytes()
    for name, content in {
        "a_cut.h5": good[: len(good) // 2],
        "b_empty.h5": b"",
        "c_page.h5": b"<!DOCTYPE html><html>404</html>",
        "d_noise.h5": b"\x00\x01noise" * 100,
        "g_lfs.h5": b"version https://git-lfs.github.com/spec/v1\n",
        ".DS_Store": b"x",
        "._file_000.h5": b"x",
        "notes.txt": b"x",
    }.items():
        (folder / name).write_bytes(content)
    with h5py.File(folder / "e_key.h5", "w") as file:
        file["image"] = np.ones((2, 16, 16), np.float32)
    (folder / "f_nan.h5").write_bytes(good)
    with h5py.File(folder / "f_nan.h5", "a") as file:
        file.attrs["patient_id"] = "another"
        file["reconstruction_rss"][2, 3, 4] = np.nan
    return root


@pytest.mark.full
@pytest.mark.timeout(400)
def test_01_check_data_lists_all_and_skip_bad_counts_them(tmp_path):
    root, run = spoilt(tmp_path / "data"), tmp_path / "run"
    train = ["train.py", *SMALL, f"--config.data.root={root}", f"--workdir={run}"]
    skip = [*train, "--config.data.skip_bad=true", "--config.train.steps=1"]
    evaluate = ["eval.py", f"--workdir={run}"]
    checked, trained, evaluated = run_all(
        [[*train, "--check_data"], skip, evaluate], tmp_path / "cache"
    )
    assert not complaint(checked, "E303", 3, "7 files", str(root), "skip_bad")
    lines = checked["out"].splitlines()
    assert len(lines) == len(BAD)
    for name, reason in BAD.items():
        (line,) = [x for x in lines if f"multicoil_train/{name}: " in x]
        assert reason in line
    assert trained["code"] == 0, trained["err"]
    assert json.loads((run / "config.json").read_text())["files_left_out"] == 7
    assert evaluated["code"] == 0, evaluated["err"]
    # The subject with the NaN is in no list of the run's split, so nobody opens it.
    assert "6 files that cannot be used" in evaluated["out"]
    report = json.loads((run / "eval_test_random.json").read_text())
    assert report["files_left_out"] == 6


def test_01_training_stops(tmp_path):
    with pytest.raises(DataError) as error:
        prepare(settings(spoilt(tmp_path / "data"), tmp_path / "cache"))
    assert error.value.exit_code == 3
    one_line(error.value, "E302", "6 of 15 files", "a_cut.h5", "data.skip_bad=true")


def test_01_what_is_left_out_is_said_and_is_no_part_of_the_data(tmp_path, caplog):
    root = spoilt(tmp_path / "data")
    with caplog.at_level(logging.WARNING, "daasr_jax"):
        found = prepare(settings(root, tmp_path / "cache", skip_bad=True))
    assert found.left_out == len(BAD)
    assert "7 files that cannot be used are left out" in caplog.text
    for name, reason in BAD.items():
        assert f"{name}: " in caplog.text
        assert reason in caplog.text
    for name in BAD:
        (root / "multicoil_train" / name).unlink()
    without = prepare(settings(root, tmp_path / "cache"))
    assert {s: len(t) for s, t in without.splits.items()} == {
        s: len(t) for s, t in found.splits.items()
    }


def test_01_nifti_files_likewise(tmp_path):
    root = nifti_root(tmp_path / "n", 8, "T1W")
    for i, content in enumerate((b"", b"<html>", (0x1F8B).to_bytes(2) + b"x")):
        (root / f"patient{i:02d}/study1_T1W.nii.gz").write_bytes(content)
    with pytest.raises(DataError) as error:
        prepare(settings(root, tmp_path / "cache"))
    one_line(error.value, "E302", "3 of 8", "patient00", "patient01", "patient02")
    bad = []
    found = prepare(
        settings(root, tmp_path / "cache"), on_bad=lambda path, _: bad.append(path)
    )
    assert [path.parent.name[-2:] for path in bad] == ["00", "01", "02"]
    assert found.left_out == 3
