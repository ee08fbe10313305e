"""The command `enhance.py` on small NIfTI files: results, words, refusals."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

import daasr_jax
from daasr_jax import enhancement
from daasr_jax.enhance import main
from daasr_jax.enhancement import bank as banks
from daasr_jax.enhancement import inputs
from daasr_jax.enhancement.bank import choose_references
from daasr_jax.experiment.enhance_files import _hidden as hidden
from daasr_jax.files import replace_all
from daasr_jax.scans.bank import scans_in
from tests.weights import write_weights

AFFINE = np.array([[0, -0.9, 0, 40], [0.8, 0, 0, -30], [0, 0, 3, 5.0], [0, 0, 0, 1]])
SHAPE = (26, 24, 3)


def volume(seed: int, shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    noise = np.random.default_rng(seed).random(shape)
    image = ndimage.gaussian_filter(noise, (1, 1, 0))
    image = (image - image.min()) / (image.max() - image.min())
    y, x = np.mgrid[-1 : 1 : shape[0] * 1j, -1 : 1 : shape[1] * 1j]
    return (900 * image * (np.hypot(y, x) < 0.9)[..., None]).astype(np.int16)


def write(path, voxels, affine=AFFINE):
    scan = nib.Nifti1Image(voxels, affine)
    scan.header["cal_max"] = 700  # up to which viewers show it
    nib.save(scan, path)
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scans")
    write_weights(folder / "x2.safetensors", spacing_mm=[0.5, 0.9])
    write(folder / "T2.nii.gz", volume(0))
    fine = AFFINE.copy()
    fine[:3, :2] /= 1.5
    write(folder / "T1.nii.gz", volume(1, (39, 36, 3)), fine)
    return folder


def call(folder, *more: str, out="out.nii.gz", ref="T1.nii.gz", **kwargs) -> int:
    given = ["--input", str(folder / kwargs.get("input", "T2.nii.gz"))]
    given += ["--checkpoint", str(folder / "x2.safetensors"), "--out", str(out)]
    if ref:
        given += ["--ref", str(folder / ref) if "." in ref else ref]
    return main([*given, *more])


@pytest.fixture(scope="module")
def done(folder):
    before = (folder / "T2.nii.gz").read_bytes()
    assert call(folder, out=folder / "out.nii.gz") == 0
    assert (folder / "T2.nii.gz").read_bytes() == before
    return folder


def image(folder, name):
    found = nib.load(folder / name)
    return np.asarray(found.dataobj), found


def test_the_output_lies_where_the_input_lay(done):
    voxels, found = image(done, "out.nii.gz")
    assert voxels.shape == (52, 48, 3)
    assert voxels.dtype == np.float32
    wanted = AFFINE.copy()
    wanted[:3, :2] /= 2
    wanted[:3, 3] += AFFINE[:3, :3] @ [-0.25, -0.25, 0]
    for affine in (found.get_sform(), found.get_qform()):
        np.testing.assert_allclose(affine, wanted, atol=1e-4)
    assert found.header.get_zooms() == pytest.approx((0.4, 0.45, 3))


def test_the_output_is_what_the_function_makes(done):
    """And it is the right way round: the function gets the slices as they lie."""
    voxels, _ = image(done, "out.nii.gz")
    low = voxels.reshape(26, 2, 24, 2, 3).mean((1, 3))
    small = np.asarray(nib.load(done / "T2.nii.gz").dataobj, np.float32)
    report = json.loads((done / "out.json").read_text())
    rms = np.sqrt(np.mean((low - small) ** 2)) / small.max()
    assert -20 * np.log10(rms) == pytest.approx(report["data_consistency_db"], abs=6)


def test_the_maps_say_where_each_voxel_came_from(done):
    c, found = image(done, "out_confidence.nii.gz")
    p, _ = image(done, "out_match.nii.gz")
    assert c.shape == p.shape == (52, 48, 3)
    assert p.dtype == np.int32
    assert c.max() <= 1 + 1e-5
    output = nib.load(done / "out.nii.gz")
    np.testing.assert_allclose(found.affine, output.affine)
    # the range in which it is shown is that of the scan's unit, which C has not
    assert (output.header["cal_max"], found.header["cal_max"]) == (700, 0)
    x, y, z = np.unravel_index(p, p.shape, order="F")
    k = np.broadcast_to(np.arange(3), p.shape)
    np.testing.assert_array_equal(z, k)  # of the same slice
    for place, axis in ((x, 0), (y, 1)):  # the same place in its cell
        own = np.arange(p.shape[axis]).reshape(
            [-1 if i == axis else 1 for i in range(3)]
        )
        np.testing.assert_array_equal(place % 2, np.broadcast_to(own % 2, p.shape))


def test_the_report_names_all_that_was_used(done):
    report = json.loads((done / "out.json").read_text())
    index = json.loads((done / "index.json").read_text())
    assert report["weights"]["source"]["sha256"] == index["x2"]["sha256"]
    assert report["input"]["shape"] == [26, 24, 3]
    assert report["output"]["shape"] == [52, 48, 3]
    assert report["references"][0]["covers"] == 1.0
    assert report["settings"]["scale"] == 2
    assert report["settings"]["within"] == 16
    assert report["data_consistency_db"] > 0
    assert {"reading", "enhancing"} <= set(report["seconds"])
    assert report["memory"]["peak_bytes"] > 1e7
    assert set(report["files"]) == {"output", "confidence", "match", "report", "page"}
    text = (done / "out.html").read_text()
    assert "the input x2" in text


def test_what_is_said(folder, tmp_path, capsys):
    assert call(folder, "--no-view", out=tmp_path / "o.nii") == 0
    said = capsys.readouterr().out
    assert "26x24x3 int16, voxels of 0.8x0.9x3 mm" in said
    assert "3 axial" in said
    assert "52x48 pixels of 0.4x0.45 mm" in said or "48x52" in said
    assert "reference 1: covers 100.0 %" in said
    assert "finer than any that the network has seen (0.5 to 0.9 mm)" in said
    assert not (tmp_path / "o.html").exists()


def test_a_reference_that_is_no_sharper_is_told(folder, tmp_path, capsys):
    write(folder / "coarse.nii.gz", volume(6))
    out = tmp_path / "o.nii"
    assert call(folder, "--no-view", ref="coarse.nii.gz", out=out) == 0
    assert "reference 1 is no sharper than the input" in capsys.readouterr().out
    assert call(folder, "--no-view", "--force", out=out) == 0
    assert "no sharper" not in capsys.readouterr().out


def test_low_confidence_is_told(folder, tmp_path, capsys):
    weights = write_weights(tmp_path / "strict.safetensors", low_confidence=1.1)
    given = ["--checkpoint", str(weights), "--no-view"]
    assert call(folder, *given, out=tmp_path / "o.nii") == 0
    assert "below 1.1 over 100 % of the tissue" in capsys.readouterr().out
    assert (
        "hardly used" in json.loads((tmp_path / "o.json").read_text())["warnings"][-1]
    )


@pytest.mark.parametrize("bound", [0.0, 0.5])
def test_a_confidence_that_tells_nothing_is_told(folder, tmp_path, capsys, bound):
    """By the command, the JSON and the page, whose picture is not stretched."""
    weights = write_weights(tmp_path / "x.safetensors", low_confidence=bound)
    out = tmp_path / "o.nii"
    assert call(folder, "--checkpoint", str(weights), out=out) == 0
    words = "C of these weights does not always tell whether a reference was of use"
    page = (tmp_path / "o.html").read_text()
    report = json.loads((tmp_path / "o.json").read_text())
    assert (words in capsys.readouterr().out) is (bound == 0)
    assert (words in page) is (bound == 0)
    assert report["confidence"]["tells_of_reference"] is (bound > 0)
    if not bound:
        assert '"confidence": 0.0' in page
        assert report["confidence"]["low_share_of_tissue"] == 0
    out.unlink()
    assert call(folder, "--checkpoint", str(weights), "--force", ref="", out=out) == 0
    assert words not in capsys.readouterr().out
    assert words not in (tmp_path / "o.html").read_text()


def test_a_simulation_measures(folder, tmp_path, capsys):
    write(tmp_path / "big.nii", volume(2, (41, 43, 3)))
    write(tmp_path / "ref.nii", volume(3, (41, 43, 3)))
    given = ["--input", str(tmp_path / "big.nii"), "--ref", str(tmp_path / "ref.nii")]
    given += ["--checkpoint", str(folder / "x2.safetensors"), "--low-res-simulated"]
    assert main([*given, "--out", str(tmp_path / "o.nii")]) == 0
    report = json.loads((tmp_path / "o.json").read_text())
    assert set(report["quality"]) == {
        *("bicubic", "without reference", "with reference")
    }
    assert report["quality"]["bicubic"]["psnr"] > 15
    said = capsys.readouterr().out
    assert "dB  SSIM" in said
    assert "input       41x43x3 int16" in said
    assert "cut from 41x43x3 to 40x42x3 voxels and made small first, to 20x21" in said
    voxels, found = image(tmp_path, "o.nii")
    assert voxels.shape == (40, 42, 3)  # what the scale divides
    np.testing.assert_allclose(found.affine, AFFINE, atol=1e-5)


@pytest.mark.parametrize("known", [True, False])
def test_a_simulation_refuses_the_input_as_reference(folder, refused, tmp_path, known):
    """Though it is cropped to what the scale divides, and however it is stored."""
    big, turned = volume(2, (41, 43, 3)), tmp_path / "turned.nii"
    refs = [write(tmp_path / "big.nii", big), turned]
    nib.save(nib.load(refs[0]).as_reoriented([[2, 1], [0, -1], [1, 1]]), turned)
    refs.append(write(tmp_path / "part.nii", big[:, 1:], moved(big, 1)))
    if not known:
        refs = [tmp_path / "big.npz"]
        np.savez(refs[0], voxels=np.moveaxis(big, 2, 0))
    argv = ["--input", str(refs[0]), "--low-res-simulated"]
    for ref in refs:
        more = [*argv, "--ref", str(ref)]
        refused(
            "E363", ref.name, exit_code=3, ref="", argv=more, out=tmp_path / "o.nii"
        )


def moved(voxels, columns: int) -> np.ndarray:
    """The place of a volume without its first columns."""
    affine = AFFINE.copy()
    affine[:3, 3] += columns * AFFINE[:3, 1]
    return affine


def test_a_reference_of_unknown_place_is_cropped_as_the_input(tmp_path):
    big = [np.moveaxis(volume(i, (41, 43, 3)), 2, 0) for i in (2, 3)]
    for i, voxels in enumerate(big):
        np.savez(tmp_path / f"{i}.npz", voxels=voxels)
    target = inputs.read_target(tmp_path / "0.npz", "axial", 2, simulated="bicubic")
    guides = inputs.read_references([tmp_path / "1.npz"], target)
    assert guides.images is not None
    assert target.hr is not None
    hr, ref = (x[:, 1:, :42] / x.max() for x in big)  # rows of a file run to the front
    np.testing.assert_allclose(target.hr, hr, atol=1e-4)
    np.testing.assert_allclose(guides.images[:, 0], ref, atol=1e-4)


def test_a_hot_voxel_of_a_reference_darkens_nothing(folder, tmp_path):
    target = inputs.read_target(folder / "T2.nii.gz", "auto", 2)
    clean = nib.load(folder / "T1.nii.gz")
    hot = np.array(clean.dataobj)
    hot[20, 18, 1] = 30_000
    write(tmp_path / "hot.nii", hot, clean.affine)
    found = [
        inputs.read_references([path], target)
        for path in (folder / "T1.nii.gz", tmp_path / "hot.nii")
    ]
    one, other = (x.images for x in found)
    assert one is not None
    assert other is not None
    assert np.mean(np.abs(one - other) > 1e-3) < 0.02  # but for the voxel itself
    assert not found[0].logged
    assert "reference 1 has 1 voxel of up to 3e+04" in found[1].logged[0]


def test_a_bank_leaves_out_the_input(folder, refused, tmp_path):
    """Under another name and another type; and says so."""
    bank = tmp_path / "bank"
    bank.mkdir()
    copied = volume(0)
    write(bank / "copy.nii", copied.astype(np.float32) * 2)
    argv = ["--bank", str(bank)]
    refused("E256", "beside the input", exit_code=2, ref="auto", argv=argv)
    part = copied[:, :, [1, 0, 2]]
    part[:, :, 0] = volume(5)[:, :, 0]
    write(bank / "part.nii", part)
    assert call(folder, *argv, ref="auto", out=tmp_path / "o.nii") == 0
    report = json.loads((tmp_path / "o.json").read_text())
    assert report["settings"]["within"] == 0
    chosen = {(r["name"], r["slice"]) for r in report["references"]}
    assert chosen == {("scan 2 of the bank", 1)}  # as the page counts
    said = [text for text in report["warnings"] if "image of the input" in text]
    assert said[0].startswith("scan 1 of the bank has 3 of 3 slices")
    assert said[1].startswith("scan 2 of the bank has 2 of 3 slices")


def labels(seed: int = 0) -> np.ndarray:
    """A map of a few labels in patches."""
    return np.digitize(volume(seed), [1, 300, 500, 600]).astype(np.uint8)


def test_results_and_labels_are_no_evidence(done, refused, tmp_path):
    """An earlier result, its maps, a mask and labels in the folder of the scans."""
    bank = tmp_path / "bank"
    bank.mkdir()
    for name in ("out.nii.gz", "out_confidence.nii.gz", "out_match.nii.gz"):
        (bank / f"T2_{name}").write_bytes((done / name).read_bytes())
    write(bank / "mask.nii.gz", (volume(0) > 0).astype(np.float32))
    write(bank / "aseg.nii.gz", labels())
    argv = ["--bank", str(bank)]
    told = "3 made by this program, so no evidence, 2 with a mask or labels"
    refused("E256", told, exit_code=2, ref="auto", argv=argv)
    write(bank / "other.nii", volume(5))
    assert call(done, *argv, "--names", ref="auto", out=tmp_path / "o.nii") == 0
    report = json.loads((tmp_path / "o.json").read_text())
    assert {r["name"] for r in report["references"]} == {"other.nii"}
    assert report["warnings"][0] == f"Files left out of the bank: {told}."
    for ref, code in (("T2_out", "E367"), ("mask", "E366"), ("aseg", "E366")):
        argv = ["--ref", str(bank / f"{ref}.nii.gz")]
        refused(code, ref, exit_code=3, ref="", argv=argv, out=tmp_path / "p.nii")


def test_a_result_as_input_is_told(done, tmp_path, capsys):
    out = tmp_path / "o.nii"
    assert call(done, "--no-view", input="out.nii.gz", ref="none", out=out) == 0
    assert "The input was made by this program" in capsys.readouterr().out
    assert call(done, "--no-view", "--force", ref="none", out=out) == 0
    assert "made by this program" not in capsys.readouterr().out


def test_a_bank_leaves_out_an_input_that_rings(folder, tmp_path):
    """Values below 0 and a hot voxel are treated alike in the input and its copy."""
    rings = volume(0).astype(np.float32)
    rings -= np.float32(0.02) * rings.max()
    write(tmp_path / "in.nii", rings)
    bank = tmp_path / "bank"
    bank.mkdir()
    write(bank / "copy.nii", rings * np.float32(2))
    write(bank / "other.nii", volume(5))
    target = inputs.read_target(tmp_path / "in.nii", "auto", 2)
    guides = choose_references(bank, target, list, names=True)
    assert {one["name"] for one in guides.about} == {"other.nii"}
    assert guides.remarks[0].startswith("copy.nii has 3 of 3 slices")


def test_an_unreadable_file_makes_no_series(tmp_path, monkeypatch):
    def refuse(folder):
        raise PermissionError(13, "Permission denied", str(folder / "README"))

    write(tmp_path / "a.nii", volume(0))
    monkeypatch.setattr("daasr_jax.scans.bank.dicom_files", refuse)
    assert scans_in(tmp_path) == ([tmp_path / "a.nii"], [])


def test_what_cannot_be_put_back_is_kept(tmp_path, monkeypatch, caplog):
    """Of an earlier result, where renaming fails and its undoing too."""
    earlier = tmp_path / "o.nii"
    earlier.write_text("earlier")
    real = Path.rename

    def rename(self, target):
        if Path(target) == earlier:
            raise OSError(5, "Input/output error")
        return real(self, target)

    monkeypatch.setattr(Path, "rename", rename)

    def replace():
        with hidden(tmp_path) as (new, old):
            (new / "o.nii").write_text("new")
            replace_all({earlier: new / "o.nii"}, [], old)

    with pytest.raises(OSError, match="Input/output"):
        replace()
    kept = [p for p in tmp_path.rglob("*") if p.is_file()]
    assert [p.read_text() for p in kept] == ["earlier"]
    assert str(kept[0].parent) in caplog.text


def test_a_bank_holds_dicom_series(folder, tmp_path):
    pytest.importorskip("pydicom", reason="pydicom, the extra dicom, is absent")
    from tests.unit import test_scans_dicom as dicom

    bank = tmp_path / "bank"
    for name in ("a", "b"):
        voxels = dicom.pixels(shape=(3, 24, 22))
        dicom.write(bank / "inner" / name, dicom.series_of(voxels))
    (bank / "inner/b/IM0.txt").write_text("no scan")
    write(bank / "c.nii", volume(7))
    for given, files in ((bank, 3), (bank / "inner/a", 1)):
        guides = choose_references(
            given, inputs.read_target(folder / "T2.nii.gz", "auto", 2), list, names=True
        )
        names = {path.name for path in scans_in(given)[0]}
        assert names == ({"a", "b", "c.nii"} if files == 3 else {"a"})
        assert not guides.remarks
        assert {one["name"] for one in guides.about} <= names


def types(tmp_path):
    """Files of each kind of stored voxels: plain, scaled, floats."""
    whole = volume(0)
    plain = nib.Nifti1Image(whole.astype(">u2"), AFFINE)
    scaled = nib.Nifti1Image(whole * 0.37 - 5.0, AFFINE)
    scaled.header.set_data_dtype(np.int16)
    many = {"plain": plain, "scaled": scaled}
    many["double"] = nib.Nifti1Image(whole.astype(np.float64), AFFINE)
    many["long"] = nib.Nifti1Image(whole.astype(np.int64), AFFINE, dtype=np.int64)
    many["byte"] = nib.Nifti1Image((whole // 4).astype(np.uint8), AFFINE)
    for name, one in many.items():
        nib.save(one, tmp_path / f"{name}.nii")
    return list(many)


def test_the_type_of_the_input_is_kept(folder, tmp_path):
    for name in types(tmp_path):
        path, found = tmp_path / f"{name}.nii", []
        for more in ([], ["--dtype", "input"]):
            out = tmp_path / f"{name}{len(more)}.nii"
            given = ["--input", str(path), "--no-view", *more, "--out", str(out)]
            weights = ["--checkpoint", str(folder / "x2.safetensors")]
            assert main([*given, *weights]) == 0
            report = json.loads(out.with_suffix(".json").read_text())
            assert report["settings"]["dtype"] == (more or ["", "float32"])[1]
            found.append(nib.load(out))
        plain, typed = found
        assert plain.get_data_dtype() == np.float32
        assert typed.get_data_dtype() == nib.load(path).get_data_dtype()
        wanted, values = (np.asarray(x.dataobj, np.float64) for x in found)
        step = {"double": 1e-6, "scaled": np.ptp(wanted) / 60_000}.get(name, 0.5)
        if name in ("plain", "byte", "long"):
            limits = np.iinfo(typed.get_data_dtype())
            wanted = wanted.clip(limits.min, limits.max)
        np.testing.assert_allclose(values, wanted, atol=1.01 * step)


def test_a_bank_gives_the_most_similar_slice(folder, tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr(banks.log, "warning", lambda form, *a: said.append(form % a))
    bank = tmp_path / "bank"
    bank.mkdir()
    turned = volume(0)[:, :, [2, 0, 1]]
    write(bank / "like.nii.gz", turned // 2 + 3)
    write(bank / "unlike.nii.gz", volume(7))
    (bank / "broken.nii.gz").write_bytes(b"nothing")
    given = ["--ref", "auto", "--bank", str(bank)]
    for names, name in (([], "scan 2 of the bank"), (["--names"], "like.nii.gz")):
        out = tmp_path / f"o{len(names)}.nii"
        assert call(folder, *given, *names, ref="", out=out) == 0
        report = json.loads(out.with_suffix(".json").read_text())
        chosen = [(r["name"], r["slice"]) for r in report["references"]]
        assert chosen == [(name, i) for i in (2, 3, 1)]
        told = "Files left out of the bank: 1 that cannot be used."
        assert told == report["warnings"][0]
        assert name in out.with_suffix(".html").read_text()
    assert "broken.nii.gz" in said[0]


@pytest.mark.parametrize("names", [True, False])
def test_weights_of_ones_own_are_not_named(folder, tmp_path, monkeypatch, names):
    from daasr_jax.experiment import weights

    run = tmp_path / "of Jane Doe"
    run.mkdir()
    (run / weights.RECORD).write_text("{}")
    loaded = weights.released.load(folder / "x2.safetensors")
    monkeypatch.setattr(weights, "about_run", lambda _: loaded.about)
    monkeypatch.setattr(weights.parts, "make_model", lambda _: loaded.model)

    class Run:
        config, variables, source = None, loaded.variables, {"manifest_sha256": "ab"}

    monkeypatch.setattr(weights, "load_run", lambda _: Run)
    given = {"a run": run, "a file": folder / "x2.safetensors"}
    for words, path in given.items():
        source = weights.open_weights(path, names=names).about["source"]
        own = {"a run": str(run), "a file": "x2"}[words]
        assert source["weights"] == (own if names else words)
        assert any(key.endswith("sha256") for key in source)
    assert weights.open_weights("x4").about["source"]["weights"] == "x4"


def test_without_a_reference_there_are_no_maps(folder, tmp_path):
    assert call(folder, ref="none", out=tmp_path / "o.nii") == 0
    assert {p.name for p in tmp_path.iterdir()} == {"o.nii", "o.json", "o.html"}
    assert call(folder, ref="", out=tmp_path / "p.nii") == 0  # none is the default
    np.testing.assert_array_equal(
        image(tmp_path, "o.nii")[0], image(tmp_path, "p.nii")[0]
    )


def test_a_reference_is_searched_near_each_place(folder, tmp_path):
    """As far as it is told, in tiles of 16 places; the library likewise."""
    least = {}
    for within in (0, 1):
        out = tmp_path / f"{within}.nii"
        assert call(folder, "--no-view", "--within", str(within), out=out) == 0
        p, _ = image(tmp_path, f"{within}_match.nii.gz")
        x = np.unravel_index(p, p.shape, order="F")[0]
        least[within] = x[2 * 16 :].min() // 2  # of the second tile of 26 LR pixels
        report = json.loads((tmp_path / f"{within}.json").read_text())
        assert report["settings"]["within"] == within
    assert least[0] < 26 - (16 + 2) <= least[1]
    rng = np.random.default_rng(0)
    lr, ref = rng.random((1, 24, 24)), rng.random((1, 48, 48))
    weights = folder / "x2.safetensors"
    index = [
        daasr_jax.enhance(lr, ref, weights, within=within).index for within in (0, 1)
    ]
    rows = [(x[0, 16:] // 24).min() for x in index]
    assert rows[0] < 24 - (16 + 2) <= rows[1]


def test_what_is_not_known_is_not_said(folder, tmp_path, capsys):
    np.savez(tmp_path / "a.npz", voxels=np.moveaxis(volume(5), -1, 0))
    given = ["--input", str(tmp_path / "a.npz"), "--out", str(tmp_path / "o.nii")]
    weights = ["--checkpoint", str(folder / "x2.safetensors")]
    assert main([*given, *weights, "--within", "4", "--no-view"]) == 0
    said = capsys.readouterr().out
    assert "3 across axis 2, enhanced" in said
    assert "pixels of unknown size; their distance stays" in said
    report = json.loads((tmp_path / "o.json").read_text())
    assert report["settings"]["within"] is None  # there was nothing to search


def test_weights_whose_hash_nobody_checked_are_told(folder, tmp_path, capsys):
    shutil.copy(folder / "x2.safetensors", tmp_path / "other.safetensors")
    more = ["--checkpoint", str(tmp_path / "other.safetensors"), "--no-view"]
    assert call(folder, *more, out=tmp_path / "o.nii") == 0
    assert ", of no index.json" in capsys.readouterr().out
    assert call(folder, "--no-view", out=tmp_path / "p.nii") == 0
    assert ", of no index.json" not in capsys.readouterr().out


def test_several_references(folder, tmp_path):
    more = ["--ref", str(folder / "T1.nii.gz"), "--no-view"]
    write(folder / "PD.nii.gz", volume(4))
    assert call(folder, *more, ref="PD.nii.gz", out=tmp_path / "o.nii") == 0
    p, _ = image(tmp_path, "o_match.nii.gz")
    assert p.max() >= p.size  # some of the second


def test_another_axis(folder, tmp_path):
    write(tmp_path / "cube.nii", volume(0, (24, 24, 24)), np.diag([1, 1, 1, 1.0]))
    given = ["--input", str(tmp_path / "cube.nii"), "--no-view", "--axis", "sagittal"]
    given += ["--checkpoint", str(folder / "x2.safetensors")]
    assert main([*given, "--out", str(tmp_path / "o.nii")]) == 0
    assert image(tmp_path, "o.nii")[0].shape == (24, 48, 48)


@pytest.fixture
def refused(folder, capsys, tmp_path):
    def check(code: str, *parts: str, exit_code: int, argv=(), **kwargs):
        kwargs.setdefault("out", tmp_path / "o.nii.gz")
        before = sorted(tmp_path.rglob("*"))
        assert call(folder, *argv, **kwargs) == exit_code
        err = [x for x in capsys.readouterr().err.splitlines() if x.startswith("error")]
        assert len(err) == 1
        assert err[0].startswith(f"error {code}: ")
        for part in parts:
            assert part in err[0]
        assert sorted(tmp_path.rglob("*")) == before

    return check


def test_wrong_input_is_one_line(folder, refused, tmp_path):
    far = AFFINE.copy()
    far[0, 3] += 500
    write(folder / "far.nii.gz", volume(1), far)
    write(folder / "blank.nii.gz", np.full(SHAPE, 7, np.int16))
    write(folder / "copy.nii.gz", (volume(0) * 2.0).astype(np.float32))
    write(folder / "series.nii.gz", np.stack([volume(0)] * 4, axis=-1))
    write(folder / "small.nii.gz", volume(0, (15, 24, 3)))
    whole = (folder / "T2.nii.gz").read_bytes()
    (folder / "cut.nii.gz").write_bytes(whole[: len(whole) // 2])
    (folder / "words.nii.gz").write_text("no scan")
    rgb = np.zeros(SHAPE, [(c, "u1") for c in "RGB"])
    nib.save(nib.Nifti1Image(rgb, AFFINE), folder / "rgb.nii.gz")

    refused("E348", "far.nii.gz", exit_code=3, ref="far.nii.gz")
    refused("E347", "blank.nii.gz", exit_code=3, ref="blank.nii.gz")
    refused("E347", "blank.nii.gz", exit_code=3, input="blank.nii.gz")
    refused("E363", "copy.nii.gz", exit_code=3, ref="copy.nii.gz")
    refused("E363", "T2.nii.gz", exit_code=3, ref="T2.nii.gz")
    turned = nib.load(folder / "T2.nii.gz").as_reoriented([[2, 1], [0, -1], [1, 1]])
    nib.save(turned, folder / "turned.nii.gz")
    refused("E363", "turned.nii.gz", exit_code=3, ref="turned.nii.gz")
    refused("E362", "15x24", exit_code=3, input="small.nii.gz")
    small = ["--low-res-simulated"]
    refused("E362", "once they are made small", exit_code=3, argv=small)
    for name in ("series", "cut", "words", "rgb", "absent"):
        refused("E342", f"{name}.nii.gz", exit_code=3, input=f"{name}.nii.gz")


def test_wrong_places_are_one_line(folder, refused, tmp_path):
    there = tmp_path / "there.nii.gz"
    there.write_bytes(b"x")
    refused("E350", "--force", exit_code=3, out=there)
    assert there.read_bytes() == b"x"
    refused("E351", exit_code=3, out=folder / "T2.nii.gz")
    refused("E351", exit_code=3, out=folder / "T1.nii.gz", argv=["--force"])
    refused("E354", exit_code=3, out=tmp_path / "o.png")
    refused("E352", exit_code=3, out=folder / "index.json/o.nii")
    refused("E225", "--out: it is empty", exit_code=2, out="")
    for out in (".", "..", "/"):
        refused("E354", "a name of its own", exit_code=3, out=out)
        form = ["--format", "dicom"]
        refused("E354", "a name of its own", exit_code=3, out=out, argv=form)
    (tmp_path / "p.json").write_text("{}")
    refused("E350", "p.json", exit_code=3, out=tmp_path / "p.nii")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_written(refused, tmp_path):
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o500)
    refused("E352", exit_code=3, out=closed / "o.nii")


def test_wrong_options_are_one_line(folder, refused, tmp_path):
    refused("E258", "x2", "--scale=4", exit_code=2, argv=["--scale", "4"])
    refused("E225", "--scale", exit_code=2, argv=["--scale", "5"])
    for memory in ("0", "-1", "inf", "nan", "1e300"):
        refused("E225", "--memory is", exit_code=2, argv=["--memory", memory])
    refused("E225", "--within is -1", exit_code=2, argv=["--within", "-1"])
    refused("E225", "--dtype", exit_code=2, argv=["--dtype", "float16"])
    both = ["--format", "dicom", "--dtype", "input"]
    refused("E257", "--dtype input", exit_code=2, argv=both, out=tmp_path / "series")
    again = ["--ref", str(folder / "T1.nii.gz")]
    refused("E257", "T1.nii.gz is given twice", exit_code=2, argv=again)
    refused("E225", "--ref: it is empty", exit_code=2, argv=["--ref", ""])
    gone = ["--bank", str(tmp_path / "gone")]
    refused("E256", "gone is not there", exit_code=2, ref="auto", argv=gone)
    refused("E225", "--sacle", exit_code=2, argv=["--sacle", "4"])
    refused("E257", exit_code=2, argv=["--ref", "none"])
    refused("E257", "--bank", exit_code=2, ref="auto")
    refused("E257", "--bank", exit_code=2, argv=["--bank", str(tmp_path)])
    empty = ["--bank", str(tmp_path)]
    refused("E256", str(tmp_path), exit_code=2, ref="auto", argv=empty)
    refused("E420", "'x9'", exit_code=4, argv=["--checkpoint", "x9"])
    refused("E353", exit_code=3, argv=["--format", "dicom"], out=tmp_path / "series")


def test_damaged_weights_are_one_line(folder, refused, tmp_path):
    path = write_weights(tmp_path / "bad.safetensors")
    path.write_bytes(path.read_bytes()[:-9] + b"123456789")
    refused("E421", "SHA-256", exit_code=4, argv=["--checkpoint", str(path)])


def test_force_replaces(folder, tmp_path):
    out = tmp_path / "o.nii"
    out.write_bytes(b"x")
    assert call(folder, "--force", "--no-view", out=out) == 0
    assert image(tmp_path, "o.nii")[0].shape == (52, 48, 3)


def test_force_leaves_nothing_of_an_earlier_result(folder, tmp_path):
    (tmp_path / "o.txt").write_text("mine")
    assert call(folder, out=tmp_path / "o.nii") == 0
    kept = {"o.txt", "o.nii", "o.json"}
    maps = {"o_confidence.nii.gz", "o_match.nii.gz"}
    assert {p.name for p in tmp_path.iterdir()} == kept | maps | {"o.html"}
    for more, ref, beside in (
        (["--no-view"], "T1.nii.gz", maps),
        ([], "none", {"o.html"}),
        (["--no-view"], "none", set()),
    ):
        assert call(folder, "--force", *more, ref=ref, out=tmp_path / "o.nii") == 0
        assert {p.name for p in tmp_path.iterdir()} == kept | beside


@pytest.mark.parametrize("error", [OSError(28, "full"), KeyboardInterrupt()])
@pytest.mark.parametrize("at", ["map", "page", "report", "output", "rename"])
def test_a_failure_keeps_the_earlier_result(
    folder, tmp_path, monkeypatch, capsys, at, error
):
    """All of it, and nothing of the new one beside it."""
    from daasr_jax import scans
    from daasr_jax.experiment import enhance_files

    out = tmp_path / "o.nii"
    assert call(folder, ref="none", out=out) == 0
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    assert set(before) == {"o.nii", "o.json", "o.html"}
    hit = []

    def failing(real, name):
        def call(path, *args, **kwargs):
            if path.name == name:
                hit.append(name)
                raise error
            return real(path, *args, **kwargs)

        return call

    if at in ("map", "output"):
        name = {"map": "o_match.nii.gz", "output": "o.nii"}[at]
        broken = failing(scans.write_nifti, name)
        monkeypatch.setattr(scans, "write_nifti", broken)
    elif at == "rename":  # the last, when all others have their names
        real = Path.rename

        def rename(self, target):
            if self.parent.name == "new" and self.name == "o.nii":
                hit.append(at)
                raise error
            return real(self, target)

        monkeypatch.setattr(Path, "rename", rename)
    else:
        name = {"page": "o.html", "report": "o.json"}[at]
        broken = failing(enhance_files.write_atomically, name)
        monkeypatch.setattr(enhance_files, "write_atomically", broken)
    stopped = isinstance(error, KeyboardInterrupt)
    assert call(folder, "--force", out=out) == (130 if stopped else 3)
    assert hit
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before
    err = capsys.readouterr().err
    assert ("nothing was written" if stopped else f"error E352: {out} cannot") in err


def test_what_cannot_be_written_has_its_own_name(folder, refused, monkeypatch):
    def fails(*_):
        raise OSError(28, "full")

    monkeypatch.setattr(nib.Nifti1Image, "to_filename", fails)
    refused("E352", "/o_confidence.nii.gz cannot be written", exit_code=3)


@pytest.mark.parametrize("at", ["engine", "page", "output"])
def test_an_interrupt_leaves_no_file(folder, tmp_path, monkeypatch, capsys, at):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    from daasr_jax import scans
    from daasr_jax.experiment import enhance_files

    written = []
    if at == "engine":
        monkeypatch.setattr(enhancement.Engine, "_some", interrupt)
    elif at == "page":
        monkeypatch.setattr(enhance_files, "make_page", interrupt)
    else:
        real = scans.write_nifti

        def last(path, *args, **kwargs):
            if path.name == "o.nii":
                written.extend(p for p in tmp_path.rglob("*") if p.is_file())
                raise KeyboardInterrupt
            return real(path, *args, **kwargs)

        monkeypatch.setattr(scans, "write_nifti", last)
    assert call(folder, out=tmp_path / "o.nii") == 130
    assert list(tmp_path.iterdir()) == []
    assert "nothing was written" in capsys.readouterr().err
    assert len(written) == (4 if at == "output" else 0)


def test_help_says_what_stays(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert "enhanced in their plane" in text
    assert "their number and distance stay" in text
    assert "exit codes:" in text
    assert "130 stopped by Ctrl-C" in text
    assert "75 " not in text
