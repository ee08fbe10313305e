"""Scans from files and back: NIfTI, fastMRI, npz; what is kept, what is refused."""

from __future__ import annotations

import gzip
import logging
import os

import nibabel as nib
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from daasr_jax.data.sources import fastmri, nifti
from daasr_jax.data.sources.base import Volume
from daasr_jax.errors import DataError
from daasr_jax.scans import (
    back,
    check_output,
    enlarged,
    in_plane,
    read_scan,
    slice_axis,
    write_nifti,
)
from daasr_jax.scans.unfit import is_result, software
from tests.data_fixtures import HEADER, one_line, scan_voxels, write_h5, write_rss

AFFINE = np.eye(4)
AFFINE[:3, :3] = Rotation.from_euler("xyz", (13, 20, -8), degrees=True).as_matrix()
AFFINE[:3, :3] *= (0.8, 0.9, 4.9)
AFFINE[:3, 3] = (-70, 80, -30)
SHAPE = (20, 24, 12)


def values(dtype=np.int16, shape=SHAPE, seed=0):
    return np.random.default_rng(seed).integers(0, 120, shape).astype(dtype)


def save(path, voxels, affine=AFFINE, kind=nib.Nifti1Image):
    kind(voxels, affine).to_filename(path)
    return path


def refused(path, *parts):
    with pytest.raises(DataError) as error:
        read_scan(path)
    one_line(error.value, path, *parts)


class TestNifti:
    @pytest.mark.parametrize(
        "dtype", ["u1", "i1", "i2", "u2", "i4", "u4", ">i2", "f4", ">f4", "f8"]
    )
    @pytest.mark.parametrize("name", ["a.nii", "a.nii.gz", "no_ending"])
    def test_types(self, tmp_path, dtype, name):
        voxels = values(np.dtype(dtype))
        path = save(tmp_path / "a.nii.gz", voxels)
        if name != path.name:  # what it holds counts, not its name
            (tmp_path / name).write_bytes(gzip.decompress(path.read_bytes()))
        scan = read_scan(tmp_path / name)
        native = np.dtype(dtype).newbyteorder("=")
        assert scan.voxels.dtype == (native if native.kind in "iu" else np.float32)
        np.testing.assert_array_equal(scan.voxels, voxels)
        np.testing.assert_allclose(scan.affine, AFFINE, atol=1e-6)
        assert (scan.kind, scan.known_place, scan.remarks) == ("nifti", True, ())
        sides = np.linalg.norm(AFFINE[:3, :3], axis=0)
        assert scan.spacing == pytest.approx(tuple(sides))
        assert slice_axis(scan) == 2

    def test_scaled(self, tmp_path):
        image = nib.Nifti1Image(values(), AFFINE)
        path = tmp_path / "a.nii"
        image.to_filename(path)
        with path.open("r+b") as file:  # as a scanner's converter writes it
            file.seek(112)
            file.write(np.array([0.25, -3], "<f4").tobytes())
        scan = read_scan(path)
        assert scan.voxels.dtype == np.float32
        np.testing.assert_array_equal(scan.voxels, values() * 0.25 - 3)

    @pytest.mark.parametrize(("unit", "mm"), [("micron", 1e-3), ("meter", 1e3)])
    def test_units(self, tmp_path, unit, mm):
        """The affine in memory is in mm, the file keeps its unit."""
        image = nib.Nifti1Image(values(), np.diag([1 / mm] * 3 + [1]) @ AFFINE)
        image.header.set_xyzt_units(unit, "msec")
        image.to_filename(tmp_path / "a.nii")
        scan = read_scan(tmp_path / "a.nii")
        np.testing.assert_allclose(scan.affine, AFFINE, rtol=1e-5)
        grid = enlarged(scan, 2, 2)
        write_nifti(tmp_path / "b.nii", np.zeros(grid.shape), grid, scan)
        assert nib.load(tmp_path / "b.nii").header.get_xyzt_units() == (unit, "msec")
        again = read_scan(tmp_path / "b.nii")
        np.testing.assert_allclose(again.affine, grid.affine, rtol=1e-5, atol=1e-4)

    def test_unknown_units(self, tmp_path):
        path = save(tmp_path / "a.nii", values())
        with path.open("r+b") as file:
            file.seek(123)
            file.write(bytes([80]))  # no unit of time has this code
        np.testing.assert_allclose(read_scan(path).affine, AFFINE, atol=1e-5)

    def test_a_series_of_one_volume(self, tmp_path, caplog):
        path = save(tmp_path / "a.nii", values(shape=(*SHAPE, 1)))
        scan = read_scan(path)
        assert scan.voxels.shape == SHAPE
        assert "(20, 24, 12, 1), taken as the one volume it holds" in caplog.text
        grid = enlarged(scan, 2, 2)
        write_nifti(tmp_path / "b.nii", np.zeros(grid.shape), grid, scan)
        assert nib.load(tmp_path / "b.nii").shape == (40, 48, 12)

    def test_not_finite(self, tmp_path, caplog):
        voxels = values(np.float32)
        voxels[3, :5, 2], voxels[0, 0, 0] = np.nan, np.inf
        scan = read_scan(save(tmp_path / "a.nii", voxels))
        assert "6 voxels that are NaN or infinite, taken as 0" in caplog.text
        assert not scan.voxels[3, :5, 2].any()
        assert scan.voxels.sum() == voxels[np.isfinite(voxels)].sum()
        refused(save(tmp_path / "b.nii", voxels * np.nan), "E342", "no finite value")

    def test_no_place(self, tmp_path, caplog):
        image = nib.Nifti1Image(values(), None)
        image.header.set_zooms((0.5, 0.6, 4))
        nib.Nifti1Image(image.dataobj, None, image.header).to_filename(
            tmp_path / "a.nii"
        )
        scan = read_scan(tmp_path / "a.nii")
        assert not scan.known_place
        assert "give no orientation" in caplog.text
        grid = enlarged(scan, 2, 2)
        write_nifti(tmp_path / "b.nii", np.zeros(grid.shape), grid, scan)
        found = nib.load(tmp_path / "b.nii")
        assert (found.header["sform_code"], found.header["qform_code"]) == (0, 0)
        # what a reader takes for it is the enlarged grid of what was taken before
        np.testing.assert_allclose(found.affine, grid.affine, atol=1e-5)

    def test_a_mask_and_any_size_are_taken(self, tmp_path):
        """A user's own file is not judged as one of a training set."""
        scan = read_scan(save(tmp_path / "a.nii", values(shape=(11, 300, 1)) // 60))
        assert scan.voxels.shape == (11, 300, 1)


class TestRefused:
    def test_four_dimensions(self, tmp_path):
        path = save(tmp_path / "a.nii", values(shape=(*SHAPE, 3)))
        refused(path, "E342", "(20, 24, 12, 3), so 3 volumes", "three axes are wanted")

    def test_two_dimensions(self, tmp_path):
        path = save(tmp_path / "a.nii", values(shape=(20, 24)))
        refused(path, "E342", "three axes are wanted")

    def test_colours(self, tmp_path):
        rgb = np.zeros(SHAPE, [("R", "u1"), ("G", "u1"), ("B", "u1")])
        refused(save(tmp_path / "a.nii", rgb), "E342", "colours (RGB)", "magnitude")

    def test_complex(self, tmp_path):
        refused(save(tmp_path / "a.nii", values(np.complex64)), "E342", "complex64")

    @pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
    @pytest.mark.parametrize("keep", [0, 100, 400, 3000])
    def test_truncated(self, tmp_path, name, keep):
        path = save(tmp_path / name, values())
        path.write_bytes(path.read_bytes()[:keep])
        refused(path, "E342")

    def test_damaged(self, tmp_path):
        path = save(tmp_path / "a.nii.gz", values())
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 255
        path.write_bytes(data)
        refused(path, "E342", "damaged NIfTI file")

    @pytest.mark.parametrize(
        ("content", "says"),
        [
            (b"<!DOCTYPE html><html>", "is a web page"),
            (b"version https://git-lfs.github.com/spec/v1", "Git LFS"),
            (b"a few words\n" * 100, "is no scan (NIfTI, DICOM, fastMRI .h5 or .npz)"),
            (b"\x89PNG\r\n" + bytes(500), "is a PNG picture: convert it to NIfTI"),
            (b"NRRD0004\n" + bytes(500), "is an NRRD file"),
            (b"PK\x03\x04" + bytes(500), "damaged npz file"),
            (b"\x89HDF\r\n\x1a\n" + bytes(500), "HDF5 file"),
        ],
    )
    @pytest.mark.parametrize("name", ["a.nii", "a.bin"])
    def test_no_scan(self, tmp_path, content, says, name):
        (tmp_path / name).write_bytes(content)
        refused(tmp_path / name, "E342", says)

    def test_absent(self, tmp_path):
        refused(tmp_path / "a.nii", "E342", "there is no such file or folder")

    def test_not_allowed(self, tmp_path, monkeypatch):
        path = save(tmp_path / "a.nii", values())

        def shut(self, mode):  # also for root, who reads every file
            raise PermissionError(13, "Permission denied")

        with monkeypatch.context() as patch:
            patch.setattr(type(path), "open", shut)
            refused(path, "E342", "cannot be read (Permission denied)")


class TestArrays:
    def test_fastmri(self, tmp_path):
        path = write_rss(tmp_path / "a.h5", 3, "p")
        scan = read_scan(path)
        slices = fastmri.read(
            Volume(
                "a", "p", "", "", str(path), (4, 24, 20), options="reconstruction_rss"
            )
        )
        assert (scan.kind, scan.known_place) == ("fastmri", False)
        assert np.isnan(scan.spacing).all()
        assert slice_axis(scan) == 2
        np.testing.assert_array_equal(in_plane(scan, 2), slices)
        np.testing.assert_array_equal(back(slices, scan, 2), scan.voxels)

    def test_fastmri_sides(self, tmp_path):
        told = "<fieldOfView_mm><x>12</x><y>30.0</y><z>5.5</z></fieldOfView_mm>"
        header = HEADER.format(ex=48, ey=20, x=24, y=20)
        header = header.replace("<reconSpace>", f"<reconSpace>{told}")
        path = write_h5(
            tmp_path / "a.h5", subject=None, header=header,
            reconstruction_rss=scan_voxels(0).astype(np.float32),
        )  # fmt: skip
        scan = read_scan(path)
        assert scan.spacing == pytest.approx((1.5, 0.5, 5.5))  # columns, rows, slices

    def test_fastmri_refused(self, tmp_path):
        path = write_h5(tmp_path / "a.h5", subject="p", other=scan_voxels(0))
        refused(path, "E342", "has no image", "other")

    def test_npz(self, tmp_path):
        slices = values(np.float64, (4, 24, 20))
        np.savez(tmp_path / "a.npz", image=slices, spacing=(5.0, 0.5, 0.7))
        scan = read_scan(tmp_path / "a.npz")
        assert scan.voxels.dtype == np.float32
        assert scan.spacing == pytest.approx((0.7, 0.5, 5))
        np.testing.assert_array_equal(in_plane(scan, slice_axis(scan)), slices)
        np.savez_compressed(tmp_path / "b.npz", voxels=slices, other=slices, x=1)
        assert np.isnan(read_scan(tmp_path / "b.npz").spacing).all()

    def test_written_as_nifti(self, tmp_path):
        """Without a place; upright for a viewer that takes the default."""
        slices = values(np.float32, (4, 24, 20))
        np.savez(tmp_path / "a.npz", image=slices, spacing=(5.0, 0.5, 0.7))
        scan = read_scan(tmp_path / "a.npz")
        grid = enlarged(scan, 2, 2)
        sr = slices.repeat(2, axis=1).repeat(2, axis=2)
        write_nifti(tmp_path / "b.nii", back(sr, scan, 2), grid, scan)
        image = nib.load(tmp_path / "b.nii")
        assert (image.header["sform_code"], image.header["qform_code"]) == (0, 0)
        np.testing.assert_allclose(image.header.get_zooms(), (0.35, 0.25, 5))
        np.testing.assert_array_equal(nifti.slices_of(image, "axial"), sr)

    @pytest.mark.parametrize(
        ("arrays", "says"),
        [
            ({}, "holds no array"),
            ({"a": np.ones((3, 4))}, "a (3, 4); one array"),
            ({"a": np.ones((3, 4, 5)), "b": np.ones((3, 4, 5))}, "b (3, 4, 5)"),
            ({"a": np.ones((3, 4, 5), complex)}, "complex128"),
            ({"a": np.ones((3, 4, 5)), "spacing": np.ones(2)}, "spacing"),
            ({"a": np.ones((3, 4, 5)), "spacing": np.zeros(3)}, "spacing"),
            ({"a": np.array([[[None]]])}, "object"),
            ({"a": np.ones((0, 4, 5))}, "is empty"),
        ],
    )
    def test_npz_refused(self, tmp_path, arrays, says):
        np.savez(tmp_path / "a.npz", **arrays)
        refused(tmp_path / "a.npz", "E342", says)


class TestWritten:
    @pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
    @pytest.mark.parametrize("name", ["b.nii", "b.nii.gz"])
    def test_what_is_kept(self, tmp_path, kind, name):
        path = tmp_path / "a.nii"
        image = kind(values(), None)
        header = image.header
        header.set_sform(AFFINE, 4)
        header.set_qform(AFFINE, 2)
        header.set_xyzt_units("mm", "msec")
        header["pixdim"][4], header["descrip"] = 4200, b"TE=98;scanner"
        header["cal_max"], header["intent_name"] = 700, b"T2"
        header.set_dim_info(freq=0, phase=1, slice=2)
        header.extensions.append(nib.nifti1.Nifti1Extension("afni", b"<old grid/>"))
        header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"a note"))
        kind(image.dataobj, None, header).to_filename(path)
        before = path.read_bytes()
        scan = read_scan(path)
        grid = enlarged(scan, 2, 4)
        voxels = np.random.default_rng(0).normal(size=grid.shape).astype(np.float32)
        write_nifti(tmp_path / name, voxels, grid, scan, "x4 by 1a2b", texts=True)
        assert path.read_bytes() == before
        assert {p.name for p in tmp_path.iterdir()} == {"a.nii", name}
        found = nib.load(tmp_path / name)
        assert type(found) is kind
        assert found.get_data_dtype() == np.float32
        np.testing.assert_array_equal(found.get_fdata(dtype=np.float32), voxels)
        header = found.header
        assert (header["sform_code"], header["qform_code"]) == (4, 2)
        assert header.get_xyzt_units() == ("mm", "msec")
        assert header["pixdim"][4] == 4200
        assert header["descrip"].item() == b"TE=98;scanner"
        assert (header["cal_max"], header.get_dim_info()) == (700, (0, 1, 2))
        texts = [e.get_content() for e in header.extensions]
        assert texts == [b"a note", f"{software()} x4 by 1a2b".encode()]
        assert scan.header.extensions[0].get_code() == 4  # the scan's is as it was

    def test_a_map_of_other_values(self, tmp_path):
        """Whole numbers stay whole; what tells of the scan's unit goes."""
        image = nib.Nifti1Image(values(np.float32), AFFINE)
        image.header["descrip"], image.header["cal_max"] = b"TE=98", 700
        image.header.set_intent("estimate", name="T2")
        image.to_filename(tmp_path / "a.nii")
        scan = read_scan(tmp_path / "a.nii")
        places = values(np.int64) * 10_000_019
        write_nifti(
            tmp_path / "b.nii", places, enlarged(scan, 2, 1), scan, "places",
            dtype=np.int32, same_unit=False,
        )  # fmt: skip
        found = nib.load(tmp_path / "b.nii")
        assert found.get_data_dtype() == np.int32
        np.testing.assert_array_equal(np.asarray(found.dataobj), places)
        assert found.header["descrip"].item() == f"{software()} places".encode()
        assert found.header["cal_max"] == 0
        assert found.header.get_intent() == ("none", (), "")

    def test_forms_that_disagree_each_go_their_way(self, tmp_path, caplog):
        other = AFFINE.copy()
        other[:3, 3] += (10, -5, 3)
        image = nib.Nifti1Image(values(), None)
        image.header.set_sform(AFFINE, 2)
        image.header.set_qform(other, 1, strip_shears=True)
        nib.Nifti1Image(image.dataobj, None, image.header).to_filename(
            tmp_path / "a.nii"
        )
        scan = read_scan(tmp_path / "a.nii")
        assert "disagree" in caplog.text
        grid = enlarged(scan, 2, 2)
        write_nifti(tmp_path / "b.nii", np.zeros(grid.shape), grid, scan)
        header = nib.load(tmp_path / "b.nii").header
        old = nib.load(tmp_path / "a.nii").header
        for form in ("get_sform", "get_qform"):
            for i, j, k in ((0, 0, 0), (20, 0, 0), (20, 24, 12), (0, 24, 12)):
                place = getattr(old, form)() @ [i - 0.5, j - 0.5, k - 0.5, 1]
                there = [2 * i - 0.5, 2 * j - 0.5, k - 0.5, 1]
                found = getattr(header, form)() @ there
                np.testing.assert_allclose(found, place, atol=1e-4)

    @pytest.mark.parametrize("codes", [(2, 0), (0, 1), (1, 1), (0, 0)])
    def test_codes(self, tmp_path, codes):
        """Both forms are right whatever their codes say."""
        affine = np.diag([-0.5, -0.5, 3.0, 1.0])
        affine[:3, 3] = (60, 70, -20)
        image = nib.Nifti1Image(values(), affine)
        image.header.set_sform(affine, codes[0])
        image.header.set_qform(affine, codes[1])
        nib.Nifti1Image(image.dataobj, None, image.header).to_filename(
            tmp_path / "a.nii"
        )
        scan = read_scan(tmp_path / "a.nii")
        grid = enlarged(scan, 2, 2)
        write_nifti(tmp_path / "b.nii", np.zeros(grid.shape), grid, scan)
        header = nib.load(tmp_path / "b.nii").header
        assert (header["sform_code"], header["qform_code"]) == codes
        for form in (header.get_sform(), header.get_qform()):
            np.testing.assert_allclose(form, grid.affine, atol=1e-4)

    def test_shear(self, tmp_path, caplog):
        caplog.set_level(logging.INFO, "daasr_jax")
        affine = AFFINE.copy()
        affine[0, 2] += 1.5
        path = save(tmp_path / "a.nii", values(), affine)
        scan = read_scan(path)
        grid = enlarged(scan, 2, 2)
        write_nifti(tmp_path / "b.nii", np.zeros(grid.shape), grid, scan)
        found = nib.load(tmp_path / "b.nii")
        np.testing.assert_allclose(found.affine, grid.affine, atol=1e-5)
        assert "held by its sform" in caplog.text

    def test_description_where_there_was_none(self, tmp_path):
        scan = read_scan(save(tmp_path / "a.nii", values()))
        write_nifti(
            tmp_path / "b.nii", scan.voxels, enlarged(scan, 2, 1), scan, "é" * 60
        )
        header = nib.load(tmp_path / "b.nii").header
        wanted = f"{software()} {'é' * 60}"
        assert header["descrip"].item() == wanted.encode()[:80]
        assert header.extensions[0].get_content().decode() == wanted

    def test_what_is_written_is_known_again(self, tmp_path):
        """Where the scan's description is cleared, and where it stays."""
        image = nib.Nifti1Image(values(), AFFINE)
        image.header["descrip"] = b"TE=98; for daasr_jax"
        image.to_filename(tmp_path / "a.nii")
        scan = read_scan(tmp_path / "a.nii")
        assert not is_result(scan)
        for texts in (True, False):
            out = tmp_path / f"{texts}.nii"
            write_nifti(out, scan.voxels, enlarged(scan, 2, 1), scan, texts=texts)
            assert is_result(read_scan(out))

    def test_integers(self, tmp_path):
        scan = read_scan(save(tmp_path / "a.nii", values()))
        grid = enlarged(scan, 2, 1)
        voxels = values(np.float32) * np.float32(1.37) - 20
        write_nifti(tmp_path / "b.nii", voxels, grid, scan, dtype=np.uint8)
        found = nib.load(tmp_path / "b.nii")
        assert found.get_data_dtype() == np.uint8
        np.testing.assert_array_equal(
            found.get_fdata(), np.clip(np.rint(voxels), 0, 255)
        )
        small = read_scan(save(tmp_path / "c.nii", values(np.float32) / 120))
        write_nifti(
            tmp_path / "d.nii", small.voxels, enlarged(small, 2, 1), small,
            dtype=np.int16,
        )  # fmt: skip
        found = nib.load(tmp_path / "d.nii")
        assert found.get_data_dtype() == np.int16
        np.testing.assert_allclose(found.get_fdata(), small.voxels, atol=2e-5)

    def test_read_only_folder(self, tmp_path, monkeypatch):
        (tmp_path / "shut").mkdir(mode=0o555)
        monkeypatch.setattr(os, "access", lambda *_: False)  # also for root
        with pytest.raises(DataError) as error:
            check_output(tmp_path / "shut/b.nii", [], force=False)
        one_line(error.value, "E352", "shut cannot be written to")
