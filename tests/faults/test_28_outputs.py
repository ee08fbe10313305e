"""Fault 28: a result in the place of an input or of another result; a write that stops.

Expected: an input is never written to, and no file of a run is replaced by a result.
What is there is replaced only with `--force`, whole: by a file beside it that takes its
name. Names may have spaces and other letters, and be as long as the disk allows.
"""

from __future__ import annotations

import os
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from daasr_jax.enhance import main
from daasr_jax.errors import ConfigError, DataError
from daasr_jax.experiment import enhance
from daasr_jax.experiment.enhance_files import EnhanceRequest
from daasr_jax.experiment.opening import _check_target, result_files
from daasr_jax.files import replacing
from daasr_jax.scans import (
    check_output,
    enlarged,
    grid_of,
    read_scan,
    write_dicom,
    write_nifti,
)
from tests.data_fixtures import one_line
from tests.unit.test_scans_files import save, values


def contents(folder):
    """Every file under a folder with its bytes."""
    return {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_28_an_input_is_never_written_to(tmp_path):
    scan = read_scan(save(tmp_path / "a.nii", values()))
    grid, voxels = enlarged(scan, 2, 1), scan.voxels
    before = (tmp_path / "a.nii").read_bytes()

    def fails(path, *parts, **more):
        with pytest.raises(DataError) as error:
            write_nifti(path, voxels, grid, scan, **more)
        one_line(error.value, *parts)

    fails(tmp_path / "b.mgz", "E354", ".nii or .nii.gz")
    write_nifti(tmp_path / "new/b.nii", voxels, grid, scan)
    fails(tmp_path / "new/b.nii", "E350", "--force")
    write_nifti(tmp_path / "new/b.nii", voxels, grid, scan, force=True)
    fails(tmp_path / "a.nii", "E351", "is the input", force=True)
    (tmp_path / "link.nii").symlink_to(tmp_path / "a.nii")
    fails(tmp_path / "link.nii", "E351", force=True)
    os.link(tmp_path / "a.nii", tmp_path / "hard.nii")
    fails(tmp_path / "hard.nii", "E351", force=True)
    ref = save(tmp_path / "ref.nii", values())
    fails(ref, "E351", "ref.nii", force=True, inputs=[ref])
    fails(tmp_path / "a.nii/b.nii", "E352", "cannot be written")
    (tmp_path / "folder.nii").mkdir()
    (tmp_path / "folder.nii/x").write_text("x")
    fails(tmp_path / "folder.nii", "E350", force=True)
    assert (tmp_path / "a.nii").read_bytes() == before


def refuse_folder(folder):
    """A folder without the right to write, as root has everywhere."""
    if not os.geteuid():
        pytest.skip("root may write into any folder")
    folder.chmod(0o555)


@pytest.mark.parametrize("kind", ["of the system", "as root sees none"])
@pytest.mark.parametrize("name", ["o.nii.gz", "deeper/o.nii.gz", "series"])
def test_28_a_folder_that_cannot_be_written(tmp_path, monkeypatch, capsys, kind, name):
    """Said before anything is read or computed."""
    given = save(tmp_path / "a.nii", values())
    folder = tmp_path / "results"
    folder.mkdir()
    if kind == "of the system":
        refuse_folder(folder)
    else:
        real = os.access
        monkeypatch.setattr(
            os, "access", lambda p, *a: folder != Path(p) and real(p, *a)
        )
    before = contents(tmp_path)
    monkeypatch.setattr(enhance, "_weights", None)  # what comes next
    form = [] if "." in name else ["--format", "dicom"]
    argv = ["--input", str(given), "--out", str(folder / name), *form]
    try:
        assert main(argv) == 3
    finally:
        folder.chmod(0o755)
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert line.startswith("error E352: ")
    assert f"{folder} cannot be written to" in line
    assert contents(tmp_path) == before


@pytest.fixture
def dicom(tmp_path):
    """A series, its scan and the grid of a result."""
    pytest.importorskip("pydicom", reason="pydicom, the extra dicom, is absent")
    from tests.unit import test_scans_dicom as made

    made.write(tmp_path / "in", made.series_of(made.pixels(shape=(3, 20, 16))))
    found = read_scan(tmp_path / "in")
    return found, grid_of(found)


def test_28_a_folder_of_dicom_that_is_there(tmp_path, dicom):
    found, grid = dicom
    before, out = contents(tmp_path / "in"), tmp_path / "out"

    def fails(path, *parts, **more):
        kept = contents(tmp_path)
        with pytest.raises(DataError) as error:
            write_dicom(path, found.voxels, grid, found, **more)
        one_line(error.value, *parts)
        assert contents(tmp_path) == kept

    write_dicom(out, found.voxels, grid, found)
    first = contents(out)
    fails(out, "E350", "--force")
    write_dicom(out, found.voxels + 1, grid, found, force=True)
    assert first.keys() == contents(out).keys()
    assert all(first[path] != data for path, data in contents(out).items())
    np.testing.assert_allclose(read_scan(out).voxels, found.voxels + 1.0, atol=0.05)
    (out / "notes.txt").write_text("mine")
    fails(out, "E350", "more than one DICOM series", force=True)
    for place in (tmp_path / "in", tmp_path / "in/deeper", tmp_path):
        fails(place, "E351", "is the input", force=True)
    assert contents(tmp_path / "in") == before
    assert {p.name for p in tmp_path.iterdir()} == {"in", "out"}


@pytest.mark.parametrize("there", [False, True])
@pytest.mark.parametrize("error", [OSError(28, "full"), KeyboardInterrupt()])
def test_28_a_series_is_whole_or_as_it_was(tmp_path, dicom, monkeypatch, there, error):
    found, grid = dicom
    if there:
        write_dicom(tmp_path / "out", found.voxels, grid, found)
    before = contents(tmp_path)
    import pydicom

    real = pydicom.Dataset.save_as

    def second(self, path, **more):
        if path.name == "IM0002.dcm":
            path.write_bytes(b"half of it")
            raise error
        real(self, path, **more)

    monkeypatch.setattr(pydicom.Dataset, "save_as", second)
    wanted = DataError if isinstance(error, OSError) else KeyboardInterrupt
    with pytest.raises(wanted) as raised:
        write_dicom(tmp_path / "out", found.voxels, grid, found, force=True)
    if wanted is DataError:
        one_line(raised.value, "E352", "No space left on device")
    assert contents(tmp_path) == before
    names = {"in", "out"} if there else {"in"}
    assert {p.name for p in tmp_path.iterdir()} == names


@pytest.mark.parametrize("name", ["b.nii", "b.nii.gz"])
@pytest.mark.parametrize("error", [OSError(28, "full"), KeyboardInterrupt()])
def test_28_a_write_that_stops_leaves_the_old_file(tmp_path, monkeypatch, name, error):
    scan = read_scan(save(tmp_path / "a.nii", values()))
    grid = enlarged(scan, 2, 1)
    write_nifti(tmp_path / name, scan.voxels, grid, scan)
    before = (tmp_path / name).read_bytes()

    def fails(self, path):
        path.write_bytes(b"half of it")
        raise error

    monkeypatch.setattr(nib.Nifti1Image, "to_filename", fails)
    wanted = DataError if isinstance(error, OSError) else KeyboardInterrupt
    with pytest.raises(wanted) as raised:
        write_nifti(tmp_path / name, scan.voxels, grid, scan, force=True)
    if wanted is DataError:
        one_line(raised.value, "E352", "No space left on device")
    assert (tmp_path / name).read_bytes() == before
    assert {p.name for p in tmp_path.iterdir()} == {"a.nii", name}


@pytest.mark.parametrize(
    "name", ["Übung 3/ä ü.nii.gz", "x" * 200 + "/" + "y" * 200 + ".nii"]
)
def test_28_names_with_spaces_other_letters_and_of_great_length(tmp_path, name):
    scan = read_scan(save(tmp_path / "a.nii", values()))
    grid, path = enlarged(scan, 2, 1), tmp_path / name
    check_output(path, [scan.source], force=False, form="nifti")
    write_nifti(path, scan.voxels, grid, scan, dtype=np.int16)
    np.testing.assert_array_equal(np.asarray(nib.load(path).dataobj), scan.voxels)
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_28_a_name_that_is_too_long_is_one_line(tmp_path):
    with pytest.raises(DataError) as error:
        check_output(tmp_path / ("z" * 300 + ".nii"), [], force=False, form="nifti")
    one_line(error.value, "E352", "File name too long")


def test_28_a_bank_is_never_written_to(tmp_path):
    """What was chosen from would be replaced by what is made of it."""
    bank = tmp_path / "bank"
    bank.mkdir()
    out = save(bank / "b.nii", values())
    request = EnhanceRequest(tmp_path / "a.nii", out, refs=("auto",), bank=bank)
    with pytest.raises(DataError) as error:
        check_output(out, request.used, force=True, form="nifti")
    one_line(error.value, "E351", out)
    new = EnhanceRequest(tmp_path / "a.nii", bank / "c.nii", refs=("auto",), bank=bank)
    check_output(new.out, new.used, force=False, form="nifti")


@pytest.mark.parametrize("ending", [".json", ".png", ".pairing.json"])
def test_28_an_evaluation_replaces_nothing_beside_its_result(tmp_path, ending):
    run = tmp_path / "run"
    run.mkdir()
    target, there = tmp_path / "photo.json", tmp_path / f"photo{ending}"
    there.write_bytes(b"mine")
    assert there in result_files(target)
    with pytest.raises(ConfigError) as error:
        _check_target(target, run, force=False)
    one_line(error.value, "E253", f"{there} is there already", "--force")
    _check_target(target, run, force=True)
    assert there.read_bytes() == b"mine"


@pytest.mark.parametrize("name", ["config.json", "split.json", "manifests/2.json"])
def test_28_no_file_of_a_run_is_replaced(tmp_path, name):
    for force in (False, True):
        with pytest.raises(ConfigError) as error:
            _check_target(tmp_path / name, tmp_path, force=force)
        one_line(error.value, "E254", name, "eval_NAME.json")


@pytest.mark.parametrize("error", [OSError(28, "full"), KeyboardInterrupt()])
def test_28_a_picture_is_whole_or_absent(tmp_path, error):
    path = tmp_path / "a.png"
    path.write_bytes(b"old")

    def stopped():
        with replacing(path, ".png") as temporary:
            temporary.write_bytes(b"half of")
            raise error

    with pytest.raises(type(error)):
        stopped()
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.png"]
