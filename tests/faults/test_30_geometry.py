"""Fault 30: a header that places a scan wrongly, in two ways, or not at all.

Expected: no orientation, sform and qform that disagree, sheared axes and a scan far off
the body's axes are said with the file, in training and by `enhance.py`; an affine that
is none is refused, and so are several volumes in one file. The corners of a result lie
where those of the scan lie, within 1e-4 mm by the sform. A qform, which may hold them
less well, is then a warning with the number.
"""

from __future__ import annotations

import itertools
import json

import nibabel as nib
import numpy as np
import pytest
from nibabel.affines import apply_affine

from daasr_jax.data import DataSettings
from daasr_jax.data.sources import choose_source
from daasr_jax.enhance import main
from daasr_jax.errors import DataError
from daasr_jax.scans import enlarged, read_scan, write_nifti
from tests.data_fixtures import LPS_AFFINE, one_line, scan_voxels
from tests.unit.test_data_sources import sheared, shifted, turned
from tests.weights import write_weights


def scan(root):
    wanted = DataSettings(root=str(root))
    return choose_source(wanted).scan(wanted)


@pytest.mark.parametrize(
    ("sform", "qform", "words"),
    [
        (LPS_AFFINE, LPS_AFFINE @ np.diag([-1, -1, 1, 1]), "sform and a qform"),
        (LPS_AFFINE, np.diag([-0.7, -0.7, 3.2, 1]), "sform and a qform"),
        (LPS_AFFINE, shifted(LPS_AFFINE, 2.0), "sform and a qform"),
        (LPS_AFFINE, shifted(LPS_AFFINE, 1e-3), ""),
        (LPS_AFFINE, None, ""),
        (turned(LPS_AFFINE, 45), None, "more than 35 degrees"),
        (turned(LPS_AFFINE, 40), turned(LPS_AFFINE, 40), "more than 35 degrees"),
        (turned(LPS_AFFINE, 20), turned(LPS_AFFINE, 20), ""),
        (sheared(LPS_AFFINE, 0.3), None, "sheared"),
        (sheared(LPS_AFFINE, -0.2), None, "sheared"),
        (sheared(LPS_AFFINE, 0.01), None, ""),
    ],
)
def test_30_odd_orientations_are_said_once(tmp_path, caplog, sform, qform, words):
    for name in ("p1", "p2"):
        path = tmp_path / f"{name}/T1.nii"
        path.parent.mkdir()
        voxels = np.transpose(scan_voxels(1), (2, 1, 0))
        image = nib.Nifti1Image(voxels, sform)
        image.set_sform(sform, 1)
        image.set_qform(qform, 0 if qform is None else 1)
        nib.save(image, path)
    assert len(scan(tmp_path)) == 2
    trained = [r.getMessage() for r in caplog.records]
    caplog.clear()
    remarks = read_scan(tmp_path / "p1/T1.nii").remarks
    enhanced = [r.getMessage() for r in caplog.records]
    if not words:
        assert not trained + enhanced
        assert not remarks
        return
    (line,), (own,) = trained, enhanced
    for part in ("2 of 2 NIfTI headers", words, tmp_path / "p1/T1.nii"):
        assert str(part) in line
    assert [words in remark for remark in remarks] == [True]
    assert own == f"{tmp_path / 'p1/T1.nii'} {remarks[0]}"


@pytest.mark.full
def test_30_a_report_of_an_enhancement_has_what_is_odd(tmp_path, capsys):
    weights = write_weights(tmp_path / "x2.safetensors")
    odd = turned(sheared(LPS_AFFINE, 0.3), 45)
    path = written(tmp_path / "T2.nii", odd, shifted(odd, 2.0), codes=(1, 1))
    given = ["--input", str(path), "--checkpoint", str(weights), "--no-view"]
    assert main([*given, "--out", str(tmp_path / "o.nii")]) == 0
    report = json.loads((tmp_path / "o.json").read_text())
    said = " ".join(capsys.readouterr().err.split())
    for words in ("sform and a qform", "sheared", "more than 35 degrees"):
        assert [words in text for text in report["warnings"]].count(True) == 1
        assert words in said


@pytest.mark.parametrize(
    ("affine", "codes", "words"),
    [
        (sheared(LPS_AFFINE, 1e-3), (1, 1), "its sform is right"),
        (sheared(LPS_AFFINE, 1e-3), (1, 0), ""),
        (turned(LPS_AFFINE, 20), (1, 1), ""),
    ],
)
def test_30_a_qform_that_is_off_is_in_the_report(tmp_path, affine, codes, words):
    """Where programs read it: the number is how far its corners lie."""
    path = written(tmp_path / "T2.nii", affine, affine, codes)
    weights = write_weights(tmp_path / "x2.safetensors")
    given = ["--input", str(path), "--checkpoint", str(weights), "--no-view"]
    assert main([*given, "--out", str(tmp_path / "o.nii")]) == 0
    warned = json.loads((tmp_path / "o.json").read_text())["warnings"]
    said = [text for text in warned if "qform of the result" in text]
    assert [words in text for text in said] == [True] * bool(words)
    found = nib.load(tmp_path / "o.nii")
    ends = list(itertools.product(*((-0.5, n - 0.5) for n in found.shape)))
    off = apply_affine(found.get_qform(), ends) - apply_affine(found.get_sform(), ends)
    error = np.linalg.norm(off, axis=1).max()
    if codes[1]:
        assert bool(error > 1e-4) is bool(words)
    if words:
        told = float(said[0].split("off by ")[1].split()[0])
        assert told == pytest.approx(error, rel=0.06)


@pytest.mark.parametrize("more", [(1,), (1, 1), (3,), (1, 2)])
def test_30_more_than_three_axes(tmp_path, caplog, more):
    """Axes of length 1 are one volume, which is said; of several none is chosen."""
    path = tmp_path / "p/T1.nii"
    path.parent.mkdir()
    voxels = np.transpose(scan_voxels(1), (2, 1, 0)).astype(np.int16)
    shape = (*voxels.shape, *more)
    many = np.broadcast_to(voxels.reshape(*voxels.shape, *(1 for _ in more)), shape)
    image = nib.Nifti1Image(many, LPS_AFFINE)
    nib.save(image, path)
    if max(more) == 1:
        found = read_scan(path)
        np.testing.assert_array_equal(found.voxels, voxels)
        assert found.remarks == (
            f"has shape {shape}, taken as the one volume it holds",
        )
        assert found.remarks[0] in caplog.text
        assert scan(tmp_path)[0].shape == voxels.shape[::-1]
        return
    for action in (lambda: scan(tmp_path), lambda: read_scan(path)):
        with pytest.raises(DataError) as error:
            action()
        one_line(error.value, path, f"has shape {shape}, so {max(more)} volumes")


def written(path, sform, qform=None, codes=(1, 0)):
    path.parent.mkdir(exist_ok=True)
    image = nib.Nifti1Image(np.transpose(scan_voxels(1), (2, 1, 0)), None)
    image.header.set_sform(sform, codes[0])
    if qform is not None:
        image.header.set_qform(qform, codes[1])
    nib.save(image, path)
    return path


@pytest.mark.parametrize("zero", [LPS_AFFINE * 0, np.diag([1.0, 1, 0, 1])])
def test_30_an_affine_that_is_none_is_refused(tmp_path, zero):
    path = written(tmp_path / "p/T1.nii", LPS_AFFINE)
    data = bytearray(path.read_bytes())
    data[280:328] = np.asarray(zero, "<f4")[:3].tobytes()
    path.write_bytes(data)
    for action in (lambda: scan(tmp_path), lambda: read_scan(path)):
        with pytest.raises(DataError) as error:
            action()
        one_line(error.value, path, "affine")


def test_30_no_orientation_is_said(tmp_path, caplog):
    path = written(tmp_path / "p/T1.nii", LPS_AFFINE, codes=(0, 0))
    assert scan(tmp_path)[0].affine is None
    assert "give no orientation" in caplog.text
    found = read_scan(path)
    assert not found.known_place
    assert any("no orientation" in text for text in found.remarks)


@pytest.mark.parametrize(
    "affine",
    [
        LPS_AFFINE,
        np.diag([0.7, -0.7, 3.0, 1.0]),  # left-handed
        turned(LPS_AFFINE, 20),
        turned(shifted(LPS_AFFINE, 91.25), 45),
        sheared(LPS_AFFINE, 0.3),
    ],
)
def test_30_corners_stay_where_they_lie(tmp_path, affine):
    path = written(tmp_path / "in/T1.nii", affine, affine, codes=(1, 1))
    found = read_scan(path)
    out, grid = tmp_path / "out.nii", enlarged(found, 2, 4)
    write_nifti(out, np.ones(grid.shape, np.float32), grid, found)
    far = [
        np.array(list(itertools.product(*((-0.5, n - 0.5) for n in shape))))
        for shape in (found.voxels.shape, grid.shape)
    ]
    before = apply_affine(nib.load(path).affine, far[0])
    after = apply_affine(nib.load(out).affine, far[1])
    np.testing.assert_allclose(after, before, atol=1e-4)
