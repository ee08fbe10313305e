"""From a run to a scan: its weights are exported, and both enhance alike; DICOM too."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time

import nibabel as nib
import numpy as np
import pytest

from tests.data_fixtures import fastmri_root
from tests.e2e.commands import ROOT, SMALL, complaint, environment, run_all
from tests.weights import write_weights

pytestmark = pytest.mark.timeout(600)


def scan(path, side: int, slices: int = 2, seed: int = 0):
    voxels = np.random.default_rng(seed).random((side, side, slices)) * 900
    affine = np.diag([48 / side, 48 / side, 3, 1])
    nib.save(nib.Nifti1Image(voxels.astype(np.int16), affine), path)
    return path


@pytest.mark.full
def test_a_run_and_its_weights_enhance_alike(tmp_path):
    root = fastmri_root(tmp_path / "data", train=6, val=2)
    run, file = tmp_path / "run", tmp_path / "mine.safetensors"
    about = tmp_path / "about.json"
    about.write_text(json.dumps({"spacing_mm": [0.4, 0.9], "training": {"hours": 1}}))
    t2, t1 = scan(tmp_path / "T2.nii", 24), scan(tmp_path / "T1.nii", 96, seed=1)
    given = ["enhance.py", "--input", str(t2), "--ref", str(t1), "--no-view"]
    cases = {
        "train": ["train.py", *SMALL, f"--config.data.root={root}", "--workdir",
                  str(run), "--config.train.steps=2"],
        "export": ["daasr_jax/export.py", "--checkpoint", str(run), "--out", str(file),
                   "--about", str(about)],
        "by run": [*given, "--checkpoint", str(run), "--out", f"{tmp_path}/a.nii"],
        "by file": [*given, "--checkpoint", str(file), "--out", f"{tmp_path}/b.nii"],
        "other scale": [*given, "--checkpoint", str(run), "--scale", "2", "--out",
                        f"{tmp_path}/c.nii"],
        "no run": [*given, "--checkpoint", str(root), "--out", f"{tmp_path}/c.nii"],
    }  # fmt: skip
    found = dict(
        zip(cases, run_all([*cases.values()], tmp_path / "cache"), strict=True)
    )
    for name in ("train", "export", "by run", "by file"):
        assert found[name]["code"] == 0, found[name]["err"]
    assert not complaint(found["other scale"], "E258", 2, "x4", "--scale=2")
    assert not complaint(found["no run"], "E420", 4)
    a, b = (np.asarray(nib.load(tmp_path / f"{x}.nii").dataobj) for x in "ab")
    assert a.shape == (96, 96, 2)
    assert np.abs(a - b).max() < 1e-3 * a.max()  # float16
    reports = [json.loads((tmp_path / f"{x}.json").read_text()) for x in "ab"]
    assert reports[0]["weights"]["source"]["checkpoint_step"] == 2
    assert reports[0]["weights"]["source"]["weights"] == "a run"
    assert all(str(run) not in path.read_text() for path in tmp_path.glob("?.json"))
    weights = reports[1]["weights"]
    assert weights["spacing_mm"] == [0.4, 0.9]
    assert weights["training"]["hours"] == 1
    assert weights["training"]["checkpoint_step"] == 2
    index = json.loads((tmp_path / "index.json").read_text())
    assert weights["source"]["sha256"] == index["mine"]["sha256"]


@pytest.mark.full
def test_dicom_in_and_out(tmp_path):
    pytest.importorskip("pydicom", reason="pydicom, the extra dicom, is absent")
    from daasr_jax.scans import read_scan
    from tests.unit import test_scans_dicom as dicom

    weights = write_weights(tmp_path / "x2.safetensors")
    voxels = dicom.pixels(shape=(3, 24, 22))
    series = dicom.write(tmp_path / "series", dicom.series_of(voxels))
    out = tmp_path / "out"
    given = ["enhance.py", "--input", str(series), "--checkpoint", str(weights)]
    cases = [
        [*given, "--format", "dicom", "--out", str(out)],
        [*given, "--out", f"{tmp_path}/o.nii.gz"],
        [*given, "--format", "dicom", "--out", str(out)],
        [*given, "--format", "dicom", "--out", str(series / "inside")],
    ]
    done = run_all(cases, tmp_path / "cache")
    for result in done[:2]:
        assert result["code"] == 0, result["err"]
    assert not complaint(done[2], "E350", 3)
    assert not complaint(done[3], "E351", 3)
    a, b = read_scan(out), read_scan(tmp_path / "o.nii.gz")
    assert a.voxels.shape == (44, 48, 3)
    step = np.ptp(b.voxels) / 60_000
    back = np.linalg.inv(b.affine) @ a.affine  # the axes may run another way
    turn = np.round(back[:3, :3]).astype(int)
    np.testing.assert_allclose(back[:3, :3], turn, atol=1e-4)
    order = np.abs(turn).argmax(axis=1)
    moved = np.transpose(a.voxels, order)
    flips = tuple(slice(None, None, int(turn[i, k])) for i, k in enumerate(order))
    np.testing.assert_allclose(moved[flips], b.voxels, atol=step)
    report = json.loads((tmp_path / "out.json").read_text())
    assert report["files"]["output"] == out.name


@pytest.mark.full
def test_ctrl_c_leaves_no_file(tmp_path):
    """A real signal, in the middle of many slices."""
    weights = write_weights(tmp_path / "x2.safetensors")
    t2 = scan(tmp_path / "T2.nii", 60, slices=400)
    t1 = scan(tmp_path / "T1.nii", 120, slices=400, seed=1)
    out = tmp_path / "out"
    out.mkdir()
    argv = ["enhance.py", "--input", str(t2), "--ref", str(t1), "--axis", "2"]
    argv += ["--checkpoint", str(weights), "--out", str(out / "o.nii.gz")]
    process = subprocess.Popen(
        [sys.executable, *argv], cwd=ROOT, env=environment(tmp_path / "cache"),
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stderr is not None
    while "enhancing slices" not in process.stderr.readline():
        assert process.poll() is None
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=200)
    assert process.returncode == 130, err
    assert "Traceback" not in err
    assert list(out.iterdir()) == []
