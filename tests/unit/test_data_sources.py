import errno
import fcntl
import gzip
import logging
import os

import h5py
import nibabel as nib
import numpy as np
import pytest

from daasr_jax.data import DataSettings
from daasr_jax.data.kspace import (
    center_crop,
    ifft2c,
    recon_size,
    rss_from_kspace,
    slice_thickness,
)
from daasr_jax.data.sources import (
    base,
    choose_source,
    fastmri,
    nifti,
    template,
)
from daasr_jax.data.splits import assign_splits
from daasr_jax.errors import ConfigError, DataError
from tests.data_fixtures import (
    HEADER,
    LPS_AFFINE,
    fastmri_root,
    nifti_root,
    one_line,
    scan_voxels,
    write_h5,
    write_nifti,
    write_rss,
)


def fft2c(image):
    shifted = np.fft.ifftshift(image, axes=(-2, -1))
    spectrum = np.fft.fft2(shifted, axes=(-2, -1), norm="ortho")
    return np.fft.fftshift(spectrum, axes=(-2, -1))


def shifted(affine, by):
    moved = affine.copy()
    moved[0, 3] += by
    return moved


def turned(affine, degrees):
    """The affine turned about the first axis of the patient."""
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    turn = np.eye(4)
    turn[1:3, 1:3] = [[c, -s], [s, c]]
    return turn @ affine


def sheared(affine, by):
    shear = np.eye(4)
    shear[0, 1] = by
    return shear @ affine


def scan(root, **changes):
    changes = {"root": str(root), **changes}
    wanted = DataSettings(**changes)
    source = choose_source(wanted)
    return source, source.scan(wanted)


class TestLayout:
    def test_no_root(self):
        with pytest.raises(ConfigError) as error:
            choose_source(DataSettings())
        one_line(error.value, "E201", "--config.data.root=DIR")

    def test_missing_root_and_file_as_root(self, tmp_path):
        file = tmp_path / "a.h5"
        file.write_bytes(b"")
        for root, why in ((tmp_path / "no", "does not exist"), (file, "is a file")):
            with pytest.raises(DataError) as error:
                choose_source(DataSettings(root=str(root)))
            one_line(error.value, "E301", root, why)

    def test_empty_root(self, tmp_path):
        (tmp_path / ".DS_Store").write_bytes(b"x")
        (tmp_path / "._a.h5").write_bytes(b"x")
        with pytest.raises(DataError) as error:
            choose_source(DataSettings(root=str(tmp_path)))
        one_line(error.value, "E301", tmp_path)

    def test_both_kinds(self, tmp_path):
        (tmp_path / "a.h5").touch()
        (tmp_path / "b.nii.gz").touch()
        with pytest.raises(ConfigError) as error:
            choose_source(DataSettings(root=str(tmp_path)))
        one_line(error.value, "E213", "--config.data.layout")
        assert (
            choose_source(DataSettings(root=str(tmp_path), layout="nifti")).name
            == "nifti"
        )

    def test_auto(self, tmp_path):
        assert scan(fastmri_root(tmp_path / "f"))[0].name == "fastmri"
        assert scan(nifti_root(tmp_path / "n", 1))[0].name == "nifti"

    @pytest.mark.parametrize(
        ("field", "value"),
        [
            ("layout", "dicom"),
            ("resize", "crop"),
            ("slice_axis", "oblique"),
            ("exclude", "nothing"),
            ("track", "both"),
            ("target", "image"),
            ("size", 4),
            ("n_volumes", -1),
            ("seed", -1),
            ("slice_step", 0),
            ("val_fraction", 1.0),
            ("test_fraction", 0.0),
            ("pattern", "(?P<subject"),
            ("pattern", "nothing"),
            ("subject_from", "name"),
        ],
    )
    def test_bad_settings(self, field, value):
        with pytest.raises(ConfigError) as error:
            DataSettings(**{field: value})
        name = {"slice_range": "data.slice_first, data.slice_last"}.get(field, field)
        one_line(error.value, name, value)

    @pytest.mark.parametrize("cut", [(0.5, 0.5), (0.8, 0.2), (0.0, 1.5)])
    def test_bad_cut_names_the_keys(self, cut):
        with pytest.raises(ConfigError) as error:
            DataSettings(slice_range=cut)
        one_line(error.value, "E211", "data.slice_first", "data.slice_last", cut)

    def test_lists_become_tuples(self):
        assert DataSettings(contrasts=["T1"]).contrasts == ("T1",)
        assert DataSettings(contrasts="T1").contrasts == ("T1",)


class TestFastMri:
    def test_folders(self, tmp_path, caplog):
        root = fastmri_root(tmp_path, 2, 1)
        write_rss(root / "brain_multicoil_train/x.h5", 9, "other")
        write_rss(root / "multicoil_test/t.h5", 9, "no")
        write_rss(root / "multicoil_challenge/t.h5", 9, "no")
        write_rss(root / "loose.h5", 9, "no")
        (root / "multicoil_train/.DS_Store").write_bytes(b"x")
        (root / "multicoil_train/._file_000.h5").write_bytes(b"x")
        (root / "multicoil_train/notes.txt").write_bytes(b"x")
        with caplog.at_level(logging.INFO, "daasr_jax"):
            _, volumes = scan(root)
        assert [(v.key, v.role) for v in volumes] == [
            ("brain_multicoil_train/x", "train"),
            ("multicoil_train/file_000", "train"),
            ("multicoil_train/file_001", "train"),
            ("multicoil_val/file_000", "val"),
        ]
        assert "multicoil_challenge, multicoil_test" in caplog.text
        assert "1 .h5 files directly" in caplog.text
        assert "several train folders" in caplog.text
        one = scan(root, folders=("multicoil_train",))[1]
        assert {v.folder for v in one} == {"multicoil_train"}
        with pytest.raises(ConfigError) as error:
            scan(root, folders=("knee_train",))
        one_line(error.value, "E214", "knee_train", "multicoil_train")

    def test_flat(self, tmp_path):
        write_rss(tmp_path / "a.h5", 1, "p1", "AXT1")
        source, (volume,) = scan(tmp_path)
        assert (volume.key, volume.subject, volume.contrast, volume.role) == (
            "a",
            "p1",
            "AXT1",
            "",
        )
        array = source.read(volume)
        assert array.dtype == np.float32
        np.testing.assert_array_equal(array * 2.0**20, scan_voxels(1))

    def test_only_files_elsewhere(self, tmp_path):
        write_rss(tmp_path / "multicoil_challenge/a.h5", 1, "p1")
        with pytest.raises(DataError) as error:
            scan(tmp_path)
        one_line(error.value, "E301", tmp_path, "multicoil_train")

    def test_esc_is_preferred_and_can_be_overruled(self, tmp_path):
        rss = scan_voxels(1).astype(np.float32)
        write_h5(
            tmp_path / "a.h5",
            subject="p",
            reconstruction_rss=rss,
            reconstruction_esc=rss + 1,
            kspace=rss.astype(np.complex64),
        )
        source, (volume,) = scan(tmp_path)
        np.testing.assert_array_equal(source.read(volume), rss + 1)
        source, (volume,) = scan(tmp_path, target="reconstruction_rss")
        np.testing.assert_array_equal(source.read(volume), rss)

    def test_all_bad_files_in_one_error(self, tmp_path, caplog):
        image = scan_voxels(1).astype(np.float32)
        good = write_rss(tmp_path / "a_good.h5", 1, "p")
        (tmp_path / "b_empty.h5").touch()
        (tmp_path / "c_html.h5").write_text("<!DOCTYPE html><html>404</html>")
        cut = good.read_bytes()
        (tmp_path / "d_cut.h5").write_bytes(cut[: len(cut) // 2])
        (tmp_path / "e_noise.h5").write_bytes(b"\x00\x01noise" * 100)
        write_h5(tmp_path / "f_key.h5", subject="p", reconstruction_es=image)
        with pytest.raises(DataError) as error:
            scan(tmp_path)
        one_line(
            error.value,
            "E302",
            "5 of 6",
            "b_empty.h5: is empty",
            "web page",
            "d_cut.h5: damaged HDF5 file",
            "e_noise.h5: is not an HDF5 file",
            "reconstruction_es",
        )
        assert "a_good" not in str(error.value)
        assert "more" not in str(error.value)
        for i in range(8):
            (tmp_path / f"h_{i}.h5").write_bytes(b"noise")
        with pytest.raises(DataError) as error:
            scan(tmp_path)
        one_line(error.value, "13 of 14", "and 8 more, all in the warnings above")
        warned = [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]
        assert len(warned) == 13
        assert any("h_7.h5: is not an HDF5 file" in text for text in warned)

    @pytest.mark.parametrize(
        ("arrays", "why"),
        [
            (
                {"reconstruction_es": np.ones((2, 16, 16))},
                "reconstruction_es misspelt, did you mean reconstruction_esc?",
            ),
            ({"reconstruction_rss": np.ones((2, 16, 16), "c8")}, "real, 3 axes"),
            ({"reconstruction_rss": np.ones((16, 16))}, "real, 3 axes"),
            ({"reconstruction_rss": np.ones((2, 6, 6))}, "under 11 pixels"),
            ({"kspace": np.ones((2, 16, 16), "f4")}, "complex"),
            (
                {"kspace": np.ones((2, 16, 16), "c8"), "mask": np.ones(16)},
                "undersampled",
            ),
        ],
    )
    def test_bad_contents(self, tmp_path, arrays, why):
        path = write_h5(tmp_path / "a.h5", subject="p", **arrays)
        with pytest.raises(DataError) as error:
            scan(tmp_path)
        one_line(error.value, path, why)

    def test_without_ids_the_file_names_are_the_subjects(self, tmp_path, caplog):
        image = scan_voxels(1).astype(np.float32)
        for name in "abcd":
            path = tmp_path / f"{name}.h5"
            write_h5(path, subject=None, reconstruction_rss=image)
        write_rss(tmp_path / "e.h5", 1, "patient5")
        volumes = scan(tmp_path)[1]
        assert [v.subject for v in volumes] == ["a", "b", "c", "d", "patient5"]
        assert "4 of 5 files have no attribute patient_id" in caplog.text
        assert "a, b, c and 1 more" in caplog.text
        caplog.clear()
        volumes = scan(tmp_path, subject_from="file")[1]
        assert [v.subject for v in volumes] == list("abcde")
        assert not caplog.records
        with pytest.raises(DataError) as error:
            scan(tmp_path, subject_from="attribute")
        one_line(error.value, "E302", "4 of 5", "patient_id", "subject_from=file")

    def test_named_subjects_without_ids(self, tmp_path):
        image = scan_voxels(1).astype(np.float32)
        for name in "abcd":
            path = tmp_path / f"multicoil_train/{name}.h5"
            write_h5(path, subject=None, reconstruction_rss=image)
        lists = {"train_subjects": ("a", "b"), "test_subjects": ("c", "d")}
        wanted = DataSettings(root=str(tmp_path), **lists)
        splits = assign_splits(scan(tmp_path, **lists)[1], wanted)
        named = {s: [v.subject for v in members] for s, members in splits.items()}
        assert named == {"train": ["a", "b"], "val": [], "test": ["c", "d"]}

    def test_contrasts_choose_before_the_image_is_looked_at(self, tmp_path):
        write_rss(tmp_path / "a.h5", 1, "p1", "AXT1")
        bad = {"reconstruction_rss": np.ones((16, 16), np.float32)}
        write_h5(tmp_path / "b.h5", subject="p2", contrast="AXT2", **bad)
        volumes = scan(tmp_path, contrasts="AXT1")[1]
        assert [v.key for v in volumes] == ["a"]
        with pytest.raises(ConfigError) as error:
            scan(tmp_path, contrasts="FLAIR")
        one_line(error.value, "E204", "FLAIR", "AXT1, AXT2")

    def test_endings_in_any_case_and_doubles(self, tmp_path):
        write_rss(tmp_path / "a.H5", 1, "p1")
        write_rss(tmp_path / "b.h5", 2, "p2")
        assert [v.key for v in scan(tmp_path)[1]] == ["a", "b"]
        write_rss(tmp_path / "b.H5", 2, "p2")
        with pytest.raises(DataError) as error:
            scan(tmp_path)
        one_line(error.value, "E322", "b.h5", "b.H5", "two files of one scan")

    def test_a_locked_file_is_not_damaged(self, tmp_path):
        path = write_rss(tmp_path / "a.h5", 1, "p")
        with path.open("r+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            with pytest.raises(DataError) as error:
                scan(tmp_path)
        words = ("Resource temporarily unavailable", "HDF5_USE_FILE_LOCKING")
        one_line(error.value, "E302", path, *words)
        assert "damaged HDF5" not in str(error.value)

    @pytest.mark.parametrize("code", [errno.EACCES, errno.ESTALE, errno.EIO])
    def test_what_the_system_said_is_passed_on(self, tmp_path, monkeypatch, code):
        path = write_rss(tmp_path / "a.h5", 1, "p")
        source, (volume,) = scan(tmp_path)

        def refuse(*_, **__):
            raise OSError(code, "h5py's own words")

        monkeypatch.setattr(h5py, "File", refuse)
        for action in (lambda: scan(tmp_path), lambda: source.read(volume)):
            with pytest.raises(DataError) as error:
                action()
            one_line(error.value, "E302", path, os.strerror(code))
            assert "damaged HDF5" not in str(error.value)

    def test_damaged_chunk_is_named_when_read(self, tmp_path):
        path = write_rss(tmp_path / "a.h5", 1, "p")
        source, (volume,) = scan(tmp_path)
        with h5py.File(path) as file:
            info = file["reconstruction_rss"].id.get_chunk_info(0)
        data = bytearray(path.read_bytes())
        start = info.byte_offset
        data[start : start + 40] = bytes(40)
        path.write_bytes(data)
        with pytest.raises(DataError) as error:
            source.read(volume)
        one_line(error.value, path)


class TestKspace:
    def test_inverse_of_centred_fft_and_parseval(self):
        rng = np.random.default_rng(0)
        image = rng.normal(size=(3, 15, 12)) + 1j * rng.normal(size=(3, 15, 12))
        spectrum = fft2c(image)
        np.testing.assert_allclose(ifft2c(spectrum), image, atol=1e-12)
        np.testing.assert_allclose(
            np.sum(np.abs(spectrum) ** 2), np.sum(np.abs(image) ** 2)
        )

    def test_rss_against_the_formula(self):
        rng = np.random.default_rng(0)
        coils = rng.normal(size=(2, 5, 16, 12)) + 1j * rng.normal(size=(2, 5, 16, 12))
        wanted = np.sqrt((np.abs(coils) ** 2).sum(1))
        got = rss_from_kspace(fft2c(coils).astype(np.complex64))
        assert got.dtype == np.float32
        np.testing.assert_allclose(got, wanted, rtol=1e-5)
        cropped = rss_from_kspace(fft2c(coils), (8, 6))
        np.testing.assert_allclose(cropped, wanted[:, 4:12, 3:9], rtol=1e-6)
        single = rss_from_kspace(fft2c(coils[:, 0]))
        np.testing.assert_allclose(single, np.abs(coils[:, 0]), rtol=1e-6)

    @pytest.mark.parametrize("shape", [(4, 4), (1, 1, 1, 4, 4)])
    def test_rss_refuses_other_shapes(self, shape):
        with pytest.raises(ValueError, match="kspace must be complex"):
            rss_from_kspace(np.ones(shape, np.complex64))
        with pytest.raises(ValueError, match="kspace must be complex"):
            rss_from_kspace(np.ones((2, 4, 4), np.float32))

    def test_crop_larger_than_the_image_keeps_it(self):
        assert center_crop(np.ones((5, 4)), 9, 2).shape == (5, 2)

    def test_header(self):
        square = HEADER.format(ex=640, ey=368, x=320, y=320)
        assert recon_size(square, 640, 368) == (320, 320)
        rows = HEADER.format(ex=640, ey=368, x=320, y=300)
        assert recon_size(rows, 640, 368) == (320, 300)
        columns = HEADER.format(ex=368, ey=640, x=300, y=320)
        assert recon_size(columns.encode(), 640, 368) == (320, 300)
        assert recon_size(square, 200, 368) == (200, 320)

    def test_thickness(self, tmp_path):
        plain = HEADER.format(ex=640, ey=368, x=320, y=320)
        fov = "<fieldOfView_mm><x>230</x><y>230</y><z>{}</z></fieldOfView_mm>"
        told = plain.replace("</reconSpace>", fov.format("4.5") + "</reconSpace>")
        assert slice_thickness(told.encode()) == 4.5
        for bad in (plain, told.replace("4.5", "0"), told.replace("4.5", "1.2.3")):
            assert np.isnan(slice_thickness(bad))
        image = scan_voxels(1).astype(np.float32)
        for name, header in (("a", told), ("b", None), ("c", plain)):
            write_h5(
                tmp_path / f"{name}.h5",
                subject=name,
                header=header,
                reconstruction_rss=image,
            )
        a, b, c = scan(tmp_path)[1]
        assert (a.spacing, a.affine) == (4.5, None)
        assert np.isnan(b.spacing)
        assert np.isnan(c.spacing)

    def test_file_with_kspace_only(self, tmp_path):
        rng = np.random.default_rng(0)
        image = scan_voxels(1, (2, 32, 24))[:, np.newaxis] * np.exp(
            1j * rng.normal(size=(1, 3, 1, 1))
        )
        header = HEADER.format(ex=32, ey=24, x=20, y=16)
        write_h5(
            tmp_path / "multicoil_train/a.h5",
            subject="p",
            header=header,
            kspace=fft2c(image).astype(np.complex64),
        )
        write_h5(
            tmp_path / "multicoil_val/b.h5",
            subject="q",
            kspace=fft2c(image[:, 0]).astype(np.complex64),
        )
        source, (cropped, whole) = scan(tmp_path)
        assert cropped.shape == (2, 20, 16)
        assert whole.shape == (2, 32, 24)
        wanted = np.sqrt(3) * scan_voxels(1, (2, 32, 24))
        np.testing.assert_allclose(
            source.read(cropped), wanted[:, 6:26, 4:20], atol=0.01
        )
        np.testing.assert_allclose(source.read(whole), wanted / np.sqrt(3), atol=0.01)

    def test_bad_header_is_reported_with_the_file(self, tmp_path):
        path = write_h5(
            tmp_path / "a.h5",
            subject="p",
            header='<!DOCTYPE x [<!ENTITY a "b">]>',
            kspace=np.ones((2, 16, 16), np.complex64),
        )
        with pytest.raises(DataError) as error:
            scan(tmp_path)
        one_line(error.value, path, "entity")

    @pytest.mark.parametrize(
        ("shape", "words"),
        [
            ((64, 48, 4, 3), "axis 1 (48) cannot be coils beside planes of 4x3"),
            ((3, 64, 48, 4), "axis 1 (64) cannot be coils beside planes of 48x4"),
            ((64, 48, 12), "axis 0 (64) cannot be slices beside planes of 48x12"),
            ((64, 4, 48, 12), "axis 0 (64) cannot be slices beside planes of 48x12"),
        ],
    )
    def test_axes_in_another_order(self, tmp_path, shape, words):
        kspace = np.ones(shape, np.complex64)
        path = write_h5(tmp_path / "a.h5", subject="p", kspace=kspace)
        with pytest.raises(DataError) as error:
            scan(tmp_path)
        one_line(error.value, "E302", path, words, "the order is (slices, ")
        one_line(error.value, "readout, phase)")

    def test_coils_and_slices_by_the_header(self, tmp_path):
        more = (
            "<receiverChannels>5</receiverChannels><encodingLimits><slice>"
            "<minimum>0</minimum><maximum>2</maximum></slice></encodingLimits>"
        )
        header = HEADER.format(ex=32, ey=24, x=24, y=24) + more
        right, swapped = np.ones((2, 3, 5, 32, 24), np.complex64), None
        write_h5(tmp_path / "a.h5", subject="p", header=header, kspace=right[0])
        assert scan(tmp_path)[1][0].shape == (3, 24, 24)
        swapped = right[0].transpose(1, 0, 2, 3)
        write_h5(tmp_path / "b.h5", subject="p", header=header, kspace=swapped)
        with pytest.raises(DataError) as error:
            scan(tmp_path)
        one_line(error.value, "b.h5", "has 5 coils and 3 slices: the order is (slices")

    @pytest.mark.parametrize(
        ("plane", "asked", "words"),
        [
            ((64, 32), None, "seem oversampled along the readout; the first is"),
            ((64, 37), None, "64 rows (readout) and 37 columns (phase), all kept"),
            ((32, 64), None, "the readout as their last axis, where the order is"),
            ((64, 26), (32, 32), "26 columns (phase) where it asks for 32 and 32, so "
             "its images are 32x26"),
            ((24, 64), (32, 32), "24 rows (readout) and 64 columns"),
            ((64, 40), (32, 32), ""),
            ((40, 32), None, ""),
        ],
    )  # fmt: skip
    def test_planes_that_are_odd_are_said(self, tmp_path, caplog, plane, asked, words):
        header = None
        if asked:
            header = HEADER.format(ex=plane[0], ey=plane[1], x=asked[0], y=asked[1])
        kspace = np.ones((2, 3, *plane), np.complex64)
        for name in "ab":
            path = tmp_path / f"{name}.h5"
            write_h5(path, subject=name, header=header, kspace=kspace)
        scan(tmp_path)
        said = [r.getMessage() for r in caplog.records]
        if not words:
            assert not said
            return
        (line,) = said
        assert line.startswith("2 of 2 k-space files")
        for part in (words, tmp_path / "a.h5", "--config.data.resize=pad"):
            assert str(part) in line
        caplog.clear()
        scan(tmp_path, resize="pad")
        assert "resize=pad" not in caplog.text
        assert words in caplog.text


class TestNifti:
    def test_names_and_voxels(self, tmp_path):
        voxels = scan_voxels(3)
        write_nifti(tmp_path / "deep/patient01/study1_FLAIR.nii.gz", voxels)
        write_nifti(tmp_path / "deep/patient02/T1W.nii", voxels)
        source, (first, second) = scan(tmp_path)
        named = (first.key, first.subject, first.study, first.contrast, first.shape)
        assert named == (
            "deep/patient01/study1_FLAIR",
            "patient01",
            "study1",
            "FLAIR",
            voxels.shape,
        )
        assert (second.subject, second.study, second.contrast) == (
            "patient02",
            "",
            "T1W",
        )
        for volume in (first, second):
            array = source.read(volume)
            assert array.dtype == np.uint16
            np.testing.assert_array_equal(array, voxels)

    @pytest.mark.parametrize("codes", ["RAS", "LPS", "SAL", "PIR", "ASL"])
    def test_any_storage_order_gives_the_same_slices(self, tmp_path, codes):
        voxels = scan_voxels(3)
        image = nib.Nifti1Image(np.transpose(voxels, (2, 1, 0)), LPS_AFFINE)
        turn = nib.orientations.ornt_transform(
            nib.io_orientation(LPS_AFFINE), nib.orientations.axcodes2ornt(codes)
        )
        path = tmp_path / "p1/T1.nii"
        path.parent.mkdir()
        turned = image.as_reoriented(turn)
        assert "".join(nib.aff2axcodes(turned.affine)) == codes
        nib.save(turned, path)
        source, (volume,) = scan(tmp_path)
        assert volume.shape == voxels.shape
        np.testing.assert_array_equal(source.read(volume), voxels)

    def test_slice_axis(self, tmp_path):
        voxels = scan_voxels(3, (12, 16, 20))
        thick_p = np.diag([-1.0, -4.0, 1.0, 1.0])
        write_nifti(tmp_path / "p1/T1.nii", voxels, thick_p)
        source, (auto,) = scan(tmp_path)
        assert auto.shape == (16, 12, 20)
        coronal = np.moveaxis(voxels, 1, 0)[:, ::-1]
        np.testing.assert_array_equal(source.read(auto), coronal)
        (axial,) = scan(tmp_path, slice_axis="axial")[1]
        np.testing.assert_array_equal(source.read(axial), voxels)
        (sagittal,) = scan(tmp_path, slice_axis="sagittal")[1]
        assert sagittal.shape == (20, 12, 16)
        np.testing.assert_array_equal(
            source.read(sagittal), np.moveaxis(voxels, 2, 0)[:, ::-1]
        )
        write_nifti(tmp_path / "p1/T1.nii", voxels, np.diag([-1.0, -1.4, 1.0, 1]))
        assert scan(tmp_path)[1][0].options == "axial"

    @pytest.mark.parametrize("axis", ["axial", "coronal", "sagittal"])
    @pytest.mark.parametrize("codes", ["RAS", "LPS", "PIR", "SAL"])
    def test_the_affine_leads_to_the_stored_voxels(self, tmp_path, codes, axis):
        voxels = scan_voxels(3, (12, 16, 20))
        affine = turned(np.diag([-0.7, -0.9, 3.0, 1.0]), 20)
        affine[:3, 3] = 5, -7, 11
        image = nib.Nifti1Image(np.transpose(voxels, (2, 1, 0)), affine)
        image = image.as_reoriented(
            nib.orientations.ornt_transform(
                nib.io_orientation(affine), nib.orientations.axcodes2ornt(codes)
            )
        )
        path = tmp_path / "p1/T1.nii"
        path.parent.mkdir()
        nib.save(image, path)
        source, (volume,) = scan(tmp_path, slice_axis=axis)
        array, stored = source.read(volume), np.asanyarray(image.dataobj)
        assert volume.affine is not None
        to_stored = np.linalg.inv(image.affine) @ np.array(volume.affine)
        rng = np.random.default_rng(0)
        for place in rng.integers(array.shape, size=(50, 3)):
            k = to_stored @ [*place, 1]
            np.testing.assert_allclose(k, np.round(k), atol=1e-4)
            assert stored[tuple(np.round(k[:3]).astype(int))] == array[tuple(place)]
        sides = {"axial": 3.0, "coronal": 0.9, "sagittal": 0.7}
        assert volume.spacing == pytest.approx(sides[axis], rel=1e-5)

    def test_units_and_headers_without_orientation(self, tmp_path):
        path = tmp_path / "p1/T1.nii"
        path.parent.mkdir()
        voxels = np.transpose(scan_voxels(1), (2, 1, 0))
        image = nib.Nifti1Image(voxels, LPS_AFFINE)
        image.header.set_xyzt_units("micron")
        nib.save(image, path)
        (volume,) = scan(tmp_path)[1]
        assert volume.spacing == pytest.approx(0.003)
        assert np.array(volume.affine)[2, 0] == pytest.approx(0.003)
        image = nib.Nifti1Image(voxels, LPS_AFFINE)
        image.set_sform(None, 0)
        image.set_qform(None, 0)
        nib.save(image, path)
        (volume,) = scan(tmp_path)[1]
        assert volume.affine is None
        assert volume.spacing == pytest.approx(3.0)

    def test_scaled_voxels(self, tmp_path):
        voxels = scan_voxels(1) / 4096
        path = tmp_path / "p1/T1.nii.gz"
        path.parent.mkdir()
        image = nib.Nifti1Image(np.transpose(voxels, (2, 1, 0)), LPS_AFFINE)
        image.set_data_dtype(np.int16)
        nib.save(image, path)  # stores int16 with a slope
        source, (volume,) = scan(tmp_path)
        np.testing.assert_allclose(source.read(volume), voxels, atol=1e-5)

    def test_path_that_does_not_match(self, tmp_path):
        write_nifti(tmp_path / "loose.nii", scan_voxels(1))
        with pytest.raises(DataError) as error:
            scan(tmp_path)
        one_line(error.value, "E309", "loose.nii", "data.pattern")
        (volume,) = scan(tmp_path, pattern=r"(?P<subject>\w+)\.nii")[1]
        assert (volume.subject, volume.contrast) == ("loose", "")

    def test_bad_files_in_one_error(self, tmp_path):
        good = write_nifti(tmp_path / "p0/T1.nii.gz", scan_voxels(1))
        (tmp_path / "p0/a.nii").touch()
        (tmp_path / "p0/b.nii.gz").write_text("<html>404</html>")
        plain = write_nifti(tmp_path / "p0/c.nii", scan_voxels(1))
        plain.write_bytes(plain.read_bytes()[:-100])
        (tmp_path / "p0/d.nii.gz").write_bytes(good.read_bytes()[:60])
        with pytest.raises(DataError) as error:
            scan(tmp_path)
        one_line(error.value, "4 of 5", "a.nii", "b.nii.gz", "c.nii", "d.nii.gz")

    @pytest.mark.parametrize(
        ("array", "affine", "why"),
        [
            (np.ones((16, 16, 4, 2), np.float32), LPS_AFFINE, "three axes"),
            (np.ones((16, 16, 4), np.complex64), LPS_AFFINE, "complex64"),
            (np.ones((8, 16, 4), np.float32), LPS_AFFINE, "under 11 pixels"),
            (np.ones((16, 16, 4), np.float32), np.zeros((4, 4)), "affine"),
            (np.ones((16, 16, 4), np.float32), np.full((4, 4), np.nan), "affine"),
        ],
    )
    def test_bad_headers(self, tmp_path, array, affine, why):
        path = tmp_path / "p/T1.nii"
        path.parent.mkdir()
        image = nib.Nifti1Image(array, None)
        image.header.set_sform(affine, code=1)
        image.header.set_qform(None, code=0)
        header = image.header.copy()
        nib.save(image, path)
        data = bytearray(path.read_bytes())
        data[:348] = header.binaryblock[:348]
        data[108:112] = np.float32(352).tobytes()
        path.write_bytes(data)
        with pytest.raises(DataError) as error:
            scan(tmp_path)
        one_line(error.value, path, why)

    def test_stream_is_read_to_its_end(self, tmp_path):
        path = write_nifti(tmp_path / "p/T1.nii.gz", scan_voxels(1))
        source, (volume,) = scan(tmp_path)
        data = bytearray(path.read_bytes())
        data[-6] ^= 1  # in the CRC
        path.write_bytes(data)
        with pytest.raises(DataError) as error:
            source.read(volume)
        one_line(error.value, path, "CRC")

    def test_no_orientation_is_said(self, tmp_path, caplog):
        path = tmp_path / "p/T1.nii"
        path.parent.mkdir()
        nib.save(nib.Nifti1Image(np.ones((16, 16, 16), np.uint8), None), path)
        scan(tmp_path)
        assert "no orientation" in caplog.text

    @pytest.mark.parametrize(
        ("shape", "good"),
        [((16, 16, 4, 1), True), ((16, 16, 4, 1, 1), True), ((16, 16, 4, 2), False)],
    )
    def test_a_last_axis_of_one(self, tmp_path, shape, good):
        voxels = np.arange(np.prod(shape), dtype=np.float32).reshape(shape, order="F")
        path = tmp_path / "p/T1.nii.gz"
        path.parent.mkdir()
        nib.save(nib.Nifti1Image(voxels, LPS_AFFINE), path)
        if not good:
            with pytest.raises(DataError) as error:
                scan(tmp_path)
            one_line(error.value, "E302", path, shape, "three axes")
            return
        source, (volume,) = scan(tmp_path)
        assert volume.shape == (4, 16, 16)
        wanted = voxels.reshape(shape[:3]).transpose(2, 1, 0)
        np.testing.assert_array_equal(source.read(volume), wanted)

    @pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
    @pytest.mark.parametrize("order", ["<", ">"])
    def test_the_content_says_whether_a_file_is_packed(self, tmp_path, kind, order):
        voxels = scan_voxels(3)
        header = kind.header_class(endianness=order)
        image = kind(np.transpose(voxels, (2, 1, 0)), LPS_AFFINE, header)
        image.set_data_dtype(np.uint16)
        (tmp_path / "p").mkdir()
        plain = image.to_bytes()
        (tmp_path / "p/plain.nii.gz").write_bytes(plain)
        (tmp_path / "p/packed.nii").write_bytes(gzip.compress(plain))
        source, volumes = scan(tmp_path)
        assert len(volumes) == 2
        for volume in volumes:
            np.testing.assert_array_equal(source.read(volume), voxels)

    @pytest.mark.parametrize("code", [errno.EACCES, errno.ESTALE, errno.EIO])
    def test_what_the_system_said_is_passed_on(self, tmp_path, monkeypatch, code):
        path = write_nifti(tmp_path / "p/T1.nii", scan_voxels(1))
        source, (volume,) = scan(tmp_path)

        def refuse(*_, **__):
            raise OSError(code, os.strerror(code))

        monkeypatch.setattr(type(path), "open", refuse)
        for action in (lambda: scan(tmp_path), lambda: source.read(volume)):
            with pytest.raises(DataError) as error:
                action()
            one_line(error.value, "E302", path, os.strerror(code))
            assert "damaged NIfTI" not in str(error.value)

    @pytest.mark.parametrize("values", [(0, 1), (0, 1, 2, 4), (0, 0.5, 1, 3, 5, 7, 9)])
    def test_a_mask_under_another_name_is_refused(self, tmp_path, values):
        rng = np.random.default_rng(0)
        voxels = rng.choice(np.array(values, np.float32), (12, 20, 20))
        path = write_nifti(tmp_path / "p/T1.nii.gz", voxels)
        source, (volume,) = scan(tmp_path)
        with pytest.raises(DataError) as error:
            source.read(volume)
        one_line(error.value, "E302", path, f"{len(values)} values only", "_mask")

    def test_few_values_that_are_no_mask(self, tmp_path):
        voxels = np.zeros((12, 20, 20), np.float32)
        blank = write_nifti(tmp_path / "p/blank.nii.gz", voxels)
        voxels[5, 3:12, 7] = np.arange(9)  # nine values, all in one place
        write_nifti(tmp_path / "p/sparse.nii.gz", voxels)
        source, volumes = scan(tmp_path)
        assert volumes[0].path == str(blank)
        for volume in volumes:  # a blank volume is reported elsewhere
            assert source.read(volume).shape == (12, 20, 20)


class TestTemplate:
    def test_slabs_are_apart_and_hold_brain(self):
        source, volumes = scan("", layout="template")
        places = [range(*map(int, v.options.split(":"))) for v in volumes]
        for i, first in enumerate(places):
            for second in places[i + 1 :]:
                gap = max(second[0] - first[-1], first[0] - second[-1])
                assert gap > 4
        for volume in volumes:
            array = source.read(volume)
            assert array.shape == volume.shape
            assert len(array) >= 12
            assert ((array > 0).mean(axis=(1, 2)) > 0.1).all()
        sizes = {v.split: v.shape[0] for v in volumes}
        assert sizes["train"] > sum(sizes.values()) / 2

    def test_another_file_is_refused(self, monkeypatch):
        monkeypatch.setattr(template, "_SHA256", "0")
        with pytest.raises(DataError) as error:
            scan("", layout="template")
        one_line(error.value, "E310", "nilearn")
        monkeypatch.setattr(template, "_FILE", "nothing.nii")
        with pytest.raises(DataError, match=r"nothing\.nii"):
            scan("", layout="template")


def test_every_source_has_its_layout_name():
    for module in (fastmri, nifti, template):
        assert module.SOURCE.name == module.__name__.rsplit(".", 1)[1]
        assert isinstance(module.SOURCE, base.Source)
