"""Fault 27: names of patients in results, logs, headers and file names.

Expected: what is written names nobody; what is printed may name files, as a user must
know which one to mend. Results name people and files by salted hashes, and headers are
cleared but for an allow-list; `--names` keeps the names. A name, an ID, a date of birth
and a hospital that were planted everywhere, in the data root too, are found in no file
that the commands write, but for `local.json` of a run: it has the lists of subjects and
the places that were given, so that the run can be opened again, and stays here.
Voxels stay: that a head still shows its face is said with every enhanced scan.
"""

from __future__ import annotations

import gzip
import io
import json
import zipfile

import h5py
import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from daasr_jax.data import Names, draw_pairing, load_pairing, prepare
from daasr_jax.data.sources.forms import is_contrast
from daasr_jax.errors import ConfigError, DataError
from daasr_jax.experiment import (
    evaluate,
    record,
    reproduce_request,
    reproduce_tables,
)
from daasr_jax.experiment.configuration import load
from daasr_jax.experiment.installation import without_places
from daasr_jax.experiment.opening import EvaluationRequest
from tests.data_fixtures import nifti_root, scan_voxels, settings, table, write_rss
from tests.e2e.commands import SMALL, run_all
from tests.weights import write_weights

pytestmark = pytest.mark.timeout(500)
NAME, ID, BORN, PLACE = "Qanary^Zed", "QX7731", "19411207", "Quimby Hospital"
PLANTED = (NAME, "Qanary", ID, BORN, PLACE, "Quimby")
QUIET = "--config.evaluate.show_progress=False"


def planted_h5(root):
    """A person for each file, who is in attributes, file name and contrast."""
    for folder, seeds in (("multicoil_train", range(6)), ("multicoil_val", (100, 101))):
        for k in seeds:
            path = root / folder / f"Qanary_{ID}_{k:03d}.h5"
            write_rss(path, k, f"{ID}-{k}", contrast="Qanary")
            with h5py.File(path, "a") as file:
                file.attrs["patient_name"], file.attrs["birth"] = NAME, BORN
                file["reconstruction_rss"].attrs["institution"] = PLACE
    return root


def planted_nifti(path, seed, side):
    voxels = scan_voxels(seed, (3, side, side)).transpose(2, 1, 0).astype(np.int16)
    image = nib.Nifti1Image(voxels, np.diag([48 / side, 48 / side, 6, 1]))
    header = image.header
    header["descrip"], header["aux_file"] = f"{NAME} {BORN}".encode(), ID.encode()
    header["db_name"], header["intent_name"] = b"Quimby", b"Qanary"
    header["data_type"] = b"Quimby"
    note = nib.nifti1.Nifti1Extension("comment", f"{NAME} {PLACE}".encode())
    header.extensions.append(note)
    nib.save(image, path)
    return path


def planted_dicom(folder):
    from tests.unit import test_scans_dicom as dicom

    images = dicom.series_of(dicom.pixels(shape=(3, 24, 22)))
    for image in images:
        image.PatientName, image.PatientID = NAME, ID
        image.PatientBirthDate, image.InstitutionName = BORN, PLACE
        image.StudyDescription = image.SeriesDescription = NAME
        image.StudyInstanceUID = f"1.2.{BORN}.1"
        image.add_new(0x00180091, "LO", NAME)  # in the place of a number
        image.add_new(0x00090010, "LO", "QUIMBY")
        image.add_new(0x00091001, "LO", PLACE)
    series = dicom.write(folder, images)
    (series / "Qanary notes.txt").write_text(NAME)
    return series


def unpacked(data: bytes) -> bytes:
    """The bytes, and what is in them where they are an archive or a picture."""
    if data.startswith(b"\x1f\x8b"):
        return data + unpacked(gzip.decompress(data))
    if data.startswith(b"\x89PNG"):  # its texts may be packed
        with Image.open(io.BytesIO(data)) as picture:
            return data + repr(picture.info).encode()
    if not zipfile.is_zipfile(io.BytesIO(data)):
        return data
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        names = [*archive.namelist(), repr(archive.comment)]
        members = [unpacked(archive.read(name)) for name in archive.namelist()]
        return data + b"".join([*(n.encode() for n in names), *members])


def found_in(*places, text=""):
    """What of the planted is in the files of the places, unpacked, or in a text.

    A word of UTF-16 is found too.
    """
    contents = {"what was printed": text.encode()}
    for place in places:
        for path in place.rglob("*"):
            name = path.relative_to(place).as_posix()
            data = path.read_bytes() if path.is_file() else b""
            contents[str(path)] = name.encode() + unpacked(data)
    return {
        (where, word)
        for where, data in contents.items()
        for word in PLANTED
        if word.lower().encode() in data.lower()
        or word.lower().encode("utf-16-le") in data.lower()
    }


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("names")


@pytest.fixture(scope="module")
def trained(place):
    """A run on planted data, and what training and evaluation have printed."""
    root, run = planted_h5(place / f"Qanary_{ID}"), place / "run"
    train = [
        "train.py", *SMALL, f"--config.data.root={root}", f"--workdir={run}",
        "--config.train.steps=2",
    ]  # fmt: skip
    done = run_all([train, ["eval.py", f"--workdir={run}", QUIET]], place / "cache")
    assert [result["code"] for result in done] == [0, 0], done
    return run, "".join(result["out"] + result["err"] for result in done)


def test_27_training_and_evaluation_name_nobody(place, trained):
    run, said = trained
    root = str(place / f"Qanary_{ID}")
    local = run / "local.json"
    found = found_in(run, place / "cache")
    assert {where for where, _ in found} == {str(local)}
    assert json.loads(local.read_text())["data.root"] == root
    # what is printed names the data root, which the user has named, and no file there
    assert found_in(text=said.replace(f"fastmri:Qanary_{ID}", "")) == set()
    report = json.loads((run / "eval_test_random.json").read_text())
    assert len(report["per_subject"]) == 2
    assert {r["subject"] for r in report["per_slice"]} == set(report["per_subject"])
    salt = json.loads((run / "subjects.json").read_text())["salt"]
    assert set(report["per_subject"]) == {
        Names(salt).subject(f"{ID}-{k}") for k in (100, 101)
    }
    pairs = json.loads((run / "eval_test_random.pairing.json").read_text())["pairs"]
    assert {target for target, _ in pairs} == {r["slice"] for r in report["per_slice"]}


@pytest.mark.full
def test_27_bad_files_are_named_on_the_console_alone(tmp_path):
    """A sheared header is a remark, a damaged file is left out: both name the file."""
    root, run = tmp_path / f"Qanary_{ID}", tmp_path / "run"
    for k in range(7):
        path = root / f"sub-{k}/anat/sub-{k}_acq-Qanary_T1w.nii.gz"
        path.parent.mkdir(parents=True)
        planted_nifti(path, k, 24)
    header = nib.load(path)
    sheared = np.asarray(header.affine) @ np.array(
        [[1, 0.3, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]
    )
    voxels = np.asanyarray(header.dataobj)
    image = nib.Nifti1Image(voxels, sheared)
    image.set_sform(sheared, 1)
    nib.save(image, path)
    bad = root / "sub-7/anat/sub-7_acq-Qanary_T1w.nii.gz"
    bad.parent.mkdir(parents=True)
    bad.write_bytes(b"no image")
    train = [
        "train.py", *SMALL, f"--config.data.root={root}", f"--workdir={run}",
        "--config.train.steps=1", "--config.data.skip_bad=True",
        "--config.data.subjects.val=sub-0,sub-1",
        "--config.data.subjects.test=sub-2,sub-3",
        "--config.data.subjects.train=sub-4,sub-5,sub-6",
    ]  # fmt: skip
    done = run_all([train, ["eval.py", f"--workdir={run}", QUIET]], tmp_path / "cache")
    assert [result["code"] for result in done] == [0, 0], done[0]["err"]
    said = "".join(done[0]["err"].split())  # lines are folded
    assert f"leftout{bad}" in said
    assert "aresheared" in said
    assert str(path) in said
    found = found_in(run, tmp_path / "cache")
    assert {where for where, _ in found} == {str(run / "local.json")}
    local = json.loads((run / "local.json").read_text())
    assert local["data.subjects.val"] == "sub-0,sub-1"
    config = json.loads((run / "config.json").read_text())["config"]["data"]
    assert config["root"] == config["subjects"]["val"] == ""


def test_27_a_run_opens_with_its_names_and_without(tmp_path, caplog):
    """`local.json` is absent where a run was given away, and may be damaged."""
    config = load("fastmri_x4")
    config.data.root, config.data.subjects.val = f"/Qanary/{ID}", ID
    config.data.split_file, config.train.start_from = f"{ID}.json", f"{NAME}/run"
    record.record_config(config.to_dict(), tmp_path, {})
    assert {path for path, _ in found_in(tmp_path)} == {str(tmp_path / "local.json")}
    whole = json.loads(json.dumps(config.to_dict()))
    assert record.read_record(tmp_path)["config"] == whole
    assert json.loads(load(str(tmp_path / "config.json")).to_json()) == whole
    record.record_config(config.to_dict(), tmp_path, {}, begun=True)  # it goes on
    config.data.subjects.val = f"{ID}-2"
    record.record_config(config.to_dict(), tmp_path, {}, begun=True, allow=True)
    assert record.read_record(tmp_path)["changes"] == [
        "data.subjects.val was another one"
    ]
    (tmp_path / "local.json").write_text('{"data.root": ')
    assert record.read_record(tmp_path)["config"]["data"]["root"] == ""
    assert "local.json cannot be read (JSONDecodeError)" in caplog.text
    (tmp_path / "local.json").write_text('{"scale": 2, "data.root": "/x"}')
    found = record.read_record(tmp_path)["config"]
    assert (found["scale"], found["data"]["root"]) == (4, "/x")
    (tmp_path / "local.json").unlink()
    assert record.read_record(tmp_path)["config"]["data"]["root"] == ""
    assert found_in(tmp_path) == set()


def test_27_what_is_packed_is_looked_into(tmp_path):
    hidden = io.BytesIO()
    with zipfile.ZipFile(hidden, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("a.txt", f"{'x' * 99} {NAME}")
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("b.gz", gzip.compress(hidden.getvalue()))
    (tmp_path / "c.dat").write_bytes(PLACE.encode("utf-16-le"))
    assert NAME.encode() not in (tmp_path / "a.zip").read_bytes()
    words = {(path.rpartition("/")[2], word) for path, word in found_in(tmp_path)}
    assert ("a.zip", NAME) in words
    assert ("c.dat", PLACE) in words


def test_27_tables_name_no_folder_and_nobody():
    words = [
        "--table", "1", "--data_root", "/Q", "--masks=/Q", "--workdir", "/Q",
        "--set", "data.subjects.val=Q,R", "--set=data.root=/Q", "--seeds", "2",
    ]  # fmt: skip
    words += ["--set", "perceptual.weights=/Q", "--set", "train.start_from=Q"]
    shown = without_places(reproduce_request._unnamed(words), reproduce_tables._PLACES)
    assert shown == [
        "--table", "1", "--data_root", "DIR", "--masks=MASKS", "--workdir", "W",
        "--set", "data.subjects.val=...", "--set=data.root=...", "--seeds", "2",
        "--set", "perceptual.weights=...", "--set", "train.start_from=...",
    ]  # fmt: skip
    given = {
        "data": {"size": 64, "subjects": {"train": "", "val": "Q"}},
        "changes": {"data.subjects.test": "Q", "scale": "2"},
    }
    once = reproduce_request._without_names(given, "a")
    assert "Q" not in json.dumps(once)
    assert reproduce_request._without_names(once, "a") == once
    assert reproduce_request._without_names(given, "b") != once
    assert once["data"]["size"] == 64
    assert once["changes"]["scale"] == "2"
    assert once["data"]["subjects"]["train"] == ""


@pytest.mark.full
def test_27_controls_name_nobody(place, trained):
    run, _ = trained
    command = ["eval.py", f"--workdir={run}", QUIET, "--controls"]
    (done,) = run_all([command], place / "cache")
    assert done["code"] == 0, done
    assert (run / "eval_test_controls.png").is_file()
    said = (done["out"] + done["err"]).replace(f"fastmri:Qanary_{ID}", "")
    assert {where for where, _ in found_in(run)} == {str(run / "local.json")}
    assert found_in(text=said) == set()


def test_27_names_by_a_flag(place, trained, monkeypatch):
    """The same numbers and pairs; the picture too has what the report has."""
    run, _ = trained
    titles = {}

    def draw(shown, *, titles: tuple, path, **_):
        path.write_bytes(b"")
        drawn.append(titles)

    drawn: list[tuple] = []
    monkeypatch.setattr(evaluate, "draw_panel", draw)
    given = {"evaluate.show_progress": False}
    for names in (False, True):
        out = place / f"names_{names}.json"
        request = EvaluationRequest(given=given, names=names, out=str(out))
        titles[names] = evaluate.evaluate_run(str(run), request)[0]
    hashed, named = (titles[names]["per_slice"] for names in (False, True))
    assert drawn[0][0] in {r["slice"] for r in hashed}
    assert drawn[1][0] in {r["slice"] for r in named}
    assert named[0]["slice"].startswith(f"multicoil_val/Qanary_{ID}")
    for key in ("methods", "pairing_sha256", "n_subjects"):
        assert titles[False][key] == titles[True][key]
    assert [r["daasr"] for r in hashed] == [r["daasr"] for r in named]


@pytest.mark.full
def test_27_enhanced_scans_name_nobody(place):
    pytest.importorskip("pydicom", reason="pydicom, the extra dicom, is absent")
    weights = write_weights(place / "x2.safetensors")
    given = place / "given"
    given.mkdir()
    t2 = planted_nifti(given / "Qanary_T2.nii.gz", 1, 24)
    t1 = planted_nifti(given / f"{ID}_T1.nii.gz", 2, 48)
    series = planted_dicom(given / "Qanary")
    bank = given / "bank"
    bank.mkdir()
    planted_nifti(bank / "Qanary.nii.gz", 3, 48)
    command = ["enhance.py", "--checkpoint", str(weights), "--input"]

    def cases(out):
        return [
            [*command, str(t2), "--ref", str(t1), "--out", f"{out}/a.nii.gz"],
            [*command, str(t2), "--ref", "auto", "--bank", str(bank), "--out",
             f"{out}/b.nii"],
            [*command, str(series), "--format", "dicom", "--out", f"{out}/c"],
        ]  # fmt: skip

    hidden, kept = place / "hidden", place / "kept"
    for folder in (hidden, kept):
        folder.mkdir()
    named = [[*case, "--names"] for case in cases(kept)[::2]]
    done = run_all([*cases(hidden), *named], place / "cache")
    assert [result["code"] for result in done] == [0] * 5, done
    for result in done:  # nobody takes the result for one without a face
        assert "no face was removed" in result["out"] + result["err"]
    assert "no face was removed" in (hidden / "a.html").read_text(encoding="utf-8")
    said = "".join(result["out"] + result["err"] for result in done[:3])
    for asked in (bank, series):  # the places that were asked for, and a warning names
        said = said.replace(str(asked), "")
    assert found_in(hidden, text=said) == set()
    where = {path.rpartition("kept/")[2] for path, _ in found_in(kept)}
    assert {"a.nii.gz", "a.json", "a.html"} <= where
    assert any(name.startswith("c/IM") for name in where)


def test_27_the_split_of_a_run_is_used_again(tmp_path):
    """`data.split_file` takes hashes with their salt; other data are refused."""
    root, cache = nifti_root(tmp_path / "data"), tmp_path / "cache"
    first, path = prepare(settings(root, cache)), tmp_path / "split.json"
    first.write_split(path, "salt")
    split = json.loads(path.read_text())
    assert {len(name) for s in ("train", "val", "test") for name in split[s]} == {64}
    again = prepare(settings(root, cache, split_file=str(path)))
    assert (again.key, again.split) == (first.key, first.split)
    other = nifti_root(tmp_path / "other", subjects=4)
    with pytest.raises(ConfigError, match=r"E203.* of which no volume has"):
        prepare(settings(other, cache, split_file=str(path)))


def test_27_pairings_are_read_by_their_salt(tmp_path):
    slices = table()
    pairing = draw_pairing(slices, seed=3)
    path, names = tmp_path / "pairs.json", Names("salt")
    pairing.save(path, names.slices(slices))
    assert not any(f'"{key}"' in path.read_text() for key in slices.keys)
    again = load_pairing(path, slices, names)
    assert again.references.tolist() == pairing.references.tolist()
    assert again.sha256 == pairing.sha256
    with pytest.raises(DataError, match="E313"):
        load_pairing(path, slices, Names("another"))
    content = json.loads(path.read_text())
    first, second = content["pairs"][:2]
    first[1], second[1] = second[1], first[1]
    content["pairs"][:2] = [first, second]
    changed = path.with_name("changed.json")
    changed.write_text(json.dumps(content))
    if first[1] != second[1]:
        with pytest.raises(DataError, match="E313"):
            load_pairing(changed, slices, names)


@pytest.mark.parametrize(
    ("word", "known"),
    [("T2w", True), ("FLAIR", True), ("AXT1POST", True), ("CORPDFS_FBK", True),
     ("Qanary", False), ("T1_Qanary", False), ("", False)],
)  # fmt: skip
def test_27_words_of_contrasts(word, known):
    assert is_contrast(word) is known
    assert Names("salt").contrast(word) == (word if known else "")
