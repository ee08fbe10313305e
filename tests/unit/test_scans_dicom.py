"""DICOM series: read by place, refused where uneven, written as a derived series."""

from __future__ import annotations

import copy
import sys

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from daasr_jax.errors import DataError
from daasr_jax.scans import (
    Grid,
    coverage_report,
    enlarged,
    grid_of,
    in_plane,
    read_scan,
    slice_axis,
    write_dicom,
    write_nifti,
)
from daasr_jax.scans.unfit import is_result
from daasr_jax.scans.write_dicom import check_source
from tests.data_fixtures import one_line

pydicom = pytest.importorskip("pydicom", reason="pydicom, the extra dicom, is absent")

MR, ENHANCED_MR = "1.2.840.10008.5.1.4.1.1.4", "1.2.840.10008.5.1.4.1.1.4.1"
SHAPE = (7, 20, 16)  # slices, rows, columns
SPACING, GAP = (1.3, 0.8), 3.3  # row and column distance, slice distance
AXES = Rotation.from_euler("xyz", (14, -9, 21), degrees=True).as_matrix()
FIRST = np.array([-71.25, 33.5, 12.125])


def pixels(seed=0, shape=SHAPE):
    return np.random.default_rng(seed).integers(0, 3000, shape).astype(np.uint16)


def one_slice(k, stored, series, place, axes=AXES, **changes):
    image = pydicom.dataset.Dataset()
    image.SOPClassUID = MR
    image.SOPInstanceUID = pydicom.uid.generate_uid()
    image.StudyInstanceUID = "1.2.3.4"
    image.FrameOfReferenceUID = "1.2.3.5"
    image.SeriesInstanceUID = series
    image.PatientName, image.PatientID = "Test^Only", "0"
    image.Modality, image.SeriesNumber, image.SeriesDescription = "MR", 3, "T2 ax"
    image.ImageType = ["ORIGINAL", "PRIMARY", "M", "ND"]
    image.SoftwareVersions = "syngo"
    image.RepetitionTime, image.EchoTime = 4200.0, 98.0
    image.InstanceNumber = 100 - 7 * k  # not in the order of the places
    image.Rows, image.Columns = stored.shape
    image.SamplesPerPixel, image.PhotometricInterpretation = 1, "MONOCHROME2"
    image.BitsAllocated = image.BitsStored = 16
    image.HighBit, image.PixelRepresentation = 15, 0
    image.PixelSpacing, image.SliceThickness = list(SPACING), 3.0
    image.ImageOrientationPatient = [f"{x:.12f}" for x in (*axes[:, 0], *axes[:, 1])]
    image.ImagePositionPatient = [f"{x:.9f}" for x in place]
    image.WindowCenter, image.WindowWidth = 600, 1200
    image.add_new(0x00290010, "LO", "SIEMENS CSA HEADER")
    image.add_new(0x00291010, "OB", b"geometry of before")
    image.PixelData = stored.astype("<u2").tobytes()
    for name, value in changes.items():
        setattr(image, name, value)
    return image


def save(image, path):
    meta = pydicom.dataset.FileMetaDataset()
    meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = image.SOPClassUID
    meta.MediaStorageSOPInstanceUID = image.SOPInstanceUID
    image.file_meta = meta
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save_as(path, enforce_file_format=True)


def series_of(voxels, **changes):
    uid = pydicom.uid.generate_uid()
    places = [FIRST + k * GAP * AXES[:, 2] for k in range(len(voxels))]
    return [
        one_slice(k, image, uid, place, **changes)
        for k, (image, place) in enumerate(zip(voxels, places, strict=True))
    ]


def write(folder, images):
    """Under names that say nothing of the order."""
    for image in images:
        name = f"I{(image.InstanceNumber * 37) % 101:03d}_{image.SeriesNumber}"
        save(image, folder / name)
    return folder


@pytest.fixture
def folder(tmp_path):
    return write(tmp_path / "series", series_of(pixels()))


def place_of(k, row, column):
    """World mm, RAS, of a voxel, from the fields that were written."""
    lps = (
        FIRST
        + k * GAP * AXES[:, 2]
        + column * SPACING[1] * AXES[:, 0]
        + row * SPACING[0] * AXES[:, 1]
    )
    return lps * [-1, -1, 1]


class TestRead:
    def test_voxels_and_places(self, folder):
        scan = read_scan(folder)
        assert scan.kind == "dicom"
        assert scan.known_place
        assert scan.voxels.dtype == np.uint16
        np.testing.assert_array_equal(scan.voxels, pixels().transpose(2, 1, 0))
        assert scan.spacing == pytest.approx((0.8, 1.3, GAP))
        for k, row, column in ((0, 0, 0), (6, 19, 15), (3, 5, 11)):
            found = scan.affine @ [column, row, k, 1]
            np.testing.assert_allclose(found[:3], place_of(k, row, column), atol=1e-6)
        assert slice_axis(scan) == 2
        found = [header.InstanceNumber for header in scan.header]
        assert found == sorted(found, reverse=True)

    def test_a_file_stands_for_its_series(self, folder):
        write(folder, series_of(pixels(1)[:3], SeriesNumber=9))
        scan = read_scan(next(folder.glob("*_9")))
        np.testing.assert_array_equal(scan.voxels, pixels(1)[:3].transpose(2, 1, 0))

    def test_scaled(self, tmp_path):
        images = series_of(pixels(), RescaleSlope=0.5, RescaleIntercept=-10)
        scan = read_scan(write(tmp_path, images))
        assert scan.voxels.dtype == np.float32
        wanted = pixels().transpose(2, 1, 0) * 0.5 - 10
        np.testing.assert_allclose(scan.voxels, wanted)
        for k, image in enumerate(images):  # of each slice its own
            image.RescaleSlope = k + 1
        scan = read_scan(write(tmp_path, images))
        np.testing.assert_allclose(
            in_order(scan), pixels() * np.arange(1.0, 8)[:, None, None] - 10
        )
        whole = series_of(pixels(), RescaleSlope=1, RescaleIntercept=-1024)
        scan = read_scan(write(tmp_path / "whole", whole))
        assert scan.voxels.dtype == np.int32
        np.testing.assert_array_equal(in_order(scan), pixels().astype(int) - 1024)

    def test_without_preamble(self, folder):
        for path in folder.iterdir():
            image = pydicom.dcmread(path)
            plain = pydicom.dataset.Dataset(image)
            plain.save_as(
                path, enforce_file_format=False, implicit_vr=True, little_endian=True
            )
            assert path.read_bytes()[:2] == b"\x08\x00"
        np.testing.assert_array_equal(in_order(read_scan(folder)), pixels())

    def test_one_slice(self, tmp_path):
        scan = read_scan(write(tmp_path, series_of(pixels()[:1])))
        assert scan.voxels.shape == (16, 20, 1)
        assert scan.spacing[2] == 3.0  # its thickness

    def test_slices_aside(self, tmp_path):
        """A stack that leans keeps its places, and is said to lean."""
        images = series_of(pixels())
        for k, image in enumerate(images):
            place = FIRST + k * (GAP * AXES[:, 2] + 0.5 * AXES[:, 0])
            image.ImagePositionPatient = [f"{x:.9f}" for x in place]
        scan = read_scan(write(tmp_path, images))
        assert "move 0.5 mm aside" in scan.remarks[0]
        wanted = place_of(6, 0, 0) + 6 * 0.5 * AXES[:, 0] * [-1, -1, 1]
        np.testing.assert_allclose((scan.affine @ [0, 0, 6, 1])[:3], wanted, atol=1e-6)

    def test_another_session_is_said(self, folder, tmp_path):
        scan = read_scan(folder)
        images = series_of(pixels(1), FrameOfReferenceUID="1.2.3.99")
        other = read_scan(write(tmp_path / "other", images))
        inside = np.ones(scan.voxels.shape, bool)
        report = coverage_report(other, grid_of(scan), inside, 2, scan)
        assert "another frame of reference" in str(report)
        assert not coverage_report(scan, grid_of(scan), inside, 2, scan).apart

    def test_enhanced(self, tmp_path):
        save(enhanced(), tmp_path / "one.dcm")
        for path in (tmp_path, tmp_path / "one.dcm"):
            scan = read_scan(path)
            np.testing.assert_allclose(in_order(scan), pixels() * 2.0 + 1)
            for k, row, column in ((0, 0, 0), (6, 19, 15)):
                found = (scan.affine @ [column, row, k, 1])[:3]
                np.testing.assert_allclose(found, place_of(k, row, column), atol=1e-6)
            assert scan.header[0].RepetitionTime == 4200
            assert len(scan.header) == 7

    def test_left_out(self, folder):
        """What is no image, an index, and other files stop nothing."""
        report = pydicom.dataset.Dataset()
        report.SOPClassUID = "1.2.840.10008.5.1.4.1.1.88.11"
        report.SOPInstanceUID = pydicom.uid.generate_uid()
        report.SeriesInstanceUID = "1.2.3.9"
        save(report, folder / "report.dcm")
        (folder / "DICOMDIR").write_bytes(b"\0" * 128 + b"DICM")
        (folder / "notes.txt").write_text("of the technician")
        np.testing.assert_array_equal(in_order(read_scan(folder)), pixels())
        with pytest.raises(DataError) as error:
            read_scan(folder / "report.dcm")
        one_line(error.value, "E342", "without an image")


def in_order(scan):
    """(slices, rows, columns) as the files have them."""
    return scan.voxels.transpose(2, 1, 0)


def enhanced():
    """The series as one file of enhanced MR, its frames in another order."""
    Dataset = pydicom.dataset.Dataset

    def group(**fields):
        item = Dataset()
        for name, value in fields.items():
            setattr(item, name, value)
        return [item]

    image = series_of(pixels())[0]
    image.SOPClassUID = ENHANCED_MR
    axes, spacing = image.ImageOrientationPatient, image.PixelSpacing
    for name in (
        "ImageOrientationPatient", "ImagePositionPatient", "PixelSpacing",
        "SliceThickness", "RepetitionTime", "EchoTime",
    ):  # fmt: skip
        delattr(image, name)
    shared = Dataset()
    shared.PlaneOrientationSequence = group(ImageOrientationPatient=axes)
    shared.PixelMeasuresSequence = group(PixelSpacing=spacing, SliceThickness=3)
    shared.PixelValueTransformationSequence = group(RescaleSlope=2, RescaleIntercept=1)
    shared.MRTimingAndRelatedParametersSequence = group(RepetitionTime=4200.0)
    image.SharedFunctionalGroupsSequence = [shared]
    order = [4, 0, 6, 2, 5, 1, 3]
    frames = []
    for k in order:
        frame = Dataset()
        place = [f"{x:.9f}" for x in FIRST + k * GAP * AXES[:, 2]]
        frame.PlanePositionSequence = group(ImagePositionPatient=place)
        frames.append(frame)
    image.PerFrameFunctionalGroupsSequence = frames
    image.NumberOfFrames = len(order)
    image.PixelData = pixels()[order].astype("<u2").tobytes()
    return image


class TestRefused:
    def refused(self, place, *parts):
        with pytest.raises(DataError) as error:
            read_scan(place)
        one_line(error.value, *parts)

    def test_several_series(self, folder):
        write(folder, series_of(pixels(1), SeriesDescription="T1 sag", SeriesNumber=5))
        self.refused(
            folder, "E343", "2 series", "give a file", "3 'T2 ax' (", "5 'T1 sag' ("
        )

    def test_missing_slice(self, tmp_path):
        images = series_of(pixels())
        write(tmp_path, [*images[:3], *images[4:]])
        self.refused(
            tmp_path, "E344", "between slices 3 (", "and 4 (", "6.6 mm", "3.3 mm apart",
            "1 missing there",
        )  # fmt: skip

    def test_uneven(self, tmp_path):
        images = series_of(pixels())
        images[5].ImagePositionPatient = list(FIRST + (5 * GAP + 0.4) * AXES[:, 2])
        self.refused(write(tmp_path, images), "E344", "3.7 mm", "2 such places")

    def test_beside_the_line(self, tmp_path):
        images = series_of(pixels())
        images[5].ImagePositionPatient = list(
            FIRST + 5 * GAP * AXES[:, 2] + 2 * AXES[:, 1]
        )
        self.refused(write(tmp_path, images), "E344", "slice 6", "2 mm beside the line")

    def test_several_volumes(self, tmp_path):
        images = series_of(pixels())
        for image in copy.deepcopy(images):
            image.SOPInstanceUID = pydicom.uid.generate_uid()
            image.InstanceNumber += 1
            image.EchoTime = 20.0
            images.append(image)
        self.refused(
            write(tmp_path, images), "E344", "8 slices of 14", "EchoTime", "one volume"
        )

    def test_localizer(self, tmp_path):
        images = series_of(pixels())
        images[2].ImageOrientationPatient = [0, 1, 0, 0, 0, -1]
        self.refused(write(tmp_path, images), "E344", "several orientations")

    def test_sizes(self, tmp_path):
        images = series_of(pixels())
        images[2].Rows, images[2].Columns = 16, 20
        self.refused(write(tmp_path, images), "E344", "differ in Rows (16, 20)")

    @pytest.mark.parametrize(
        ("changes", "says"),
        [
            (
                {"SamplesPerPixel": 3, "PhotometricInterpretation": "RGB"},
                "colours (RGB",
            ),
            ({"PixelSpacing": None}, "has no PixelSpacing"),
            ({"ImagePositionPatient": None}, "has no ImagePositionPatient"),
            ({"ImageOrientationPatient": [1, 0, 0, 1, 0, 0]}, "that no slice can have"),
            ({"ImagePositionPatient": [0, 0, 1e300]}, "that no slice can have"),
            ({"PixelSpacing": [0, 1]}, "that no slice can have"),
            ({"ImageType": ["ORIGINAL", "PRIMARY", "M", "MOSAIC"]}, "is a mosaic"),
            ({"ModalityLUTSequence": []}, "values by a table"),
            ({"NumberOfFrames": 3}, "3 frames without their places"),
            ({"PixelData": b"\0" * 100}, "damaged DICOM file"),
        ],
    )
    def test_files(self, tmp_path, changes, says):
        self.refused(write(tmp_path, series_of(pixels(), **changes)), "E342", says)

    def test_truncated(self, folder):
        path = sorted(folder.iterdir())[0]
        path.write_bytes(path.read_bytes()[:-300])
        self.refused(folder, "E342", path.name, "damaged DICOM file")
        path.write_bytes(path.read_bytes()[:200])
        self.refused(folder, "E342", path.name, "DICOM file")

    @pytest.mark.parametrize(
        ("syntax", "parts"),
        [
            ("JPEGLSLossless", ("is compressed (JPEG-LS", "pip install 'pylibjpeg")),
            ("MPEG2MPML", ("is compressed (MPEG2", "no decoder for it")),
            ("RLELossless", ("damaged DICOM file (Unable to decode",)),
        ],
    )
    def test_compressed(self, folder, syntax, parts):
        """No decoder is there for the first two; the last one is damaged."""
        for path in folder.iterdir():
            image = pydicom.dcmread(path)
            image.PixelData = pydicom.encaps.encapsulate([b"\xff\x4f\xff\x51" * 8])
            image["PixelData"].VR = "OB"
            image.file_meta.TransferSyntaxUID = getattr(pydicom.uid, syntax)
            image.save_as(path)
        self.refused(folder, "E342", *parts)

    def test_compressed_with_a_decoder(self, folder):
        for path in folder.iterdir():
            image = pydicom.dcmread(path)
            image.compress(pydicom.uid.RLELossless)
            image.save_as(path)
        np.testing.assert_array_equal(in_order(read_scan(folder)), pixels())

    def test_nothing_there(self, tmp_path):
        (tmp_path / "inner").mkdir()
        (tmp_path / "a.txt").write_text("a")
        self.refused(tmp_path, "E342", "without DICOM files", "inner")
        self.refused(tmp_path / "absent", "E342", "no such file or folder")

    def test_pydicom_is_absent(self, folder, monkeypatch):
        monkeypatch.setitem(sys.modules, "pydicom", None)
        self.refused(folder, "E345", "pip install 'pydicom>=3'")


class TestWrite:
    @pytest.mark.parametrize(("axis", "scale"), [(2, 3), (0, 2)])
    def test_derived_series(self, folder, tmp_path, axis, scale):
        scan = read_scan(folder)
        grid = enlarged(scan, axis, scale)
        rng = np.random.default_rng(5)
        voxels = rng.uniform(0, 2500, grid.shape).astype(np.float32)
        out = tmp_path / "out"
        write_dicom(out, voxels, grid, scan, "x3 by weights 1a2b", names=True)
        assert {p.name for p in tmp_path.iterdir()} == {"series", "out"}
        found = read_scan(out)
        assert is_result(found)
        step = 2500 / 65535
        assert np.abs(found.voxels - voxels).max() < 0.51 * step
        np.testing.assert_allclose(found.affine, grid.affine, atol=1e-7)
        files = [pydicom.dcmread(path) for path in sorted(out.iterdir())]
        assert len(files) == grid.shape[2]
        before = [header.SOPInstanceUID for header in scan.header]
        assert len({f.SOPInstanceUID for f in files} | set(before)) == len(files) + 7
        (series,) = {f.SeriesInstanceUID for f in files}
        assert series != scan.header[0].SeriesInstanceUID
        for k, image in enumerate(files):
            assert (image.StudyInstanceUID, image.FrameOfReferenceUID) == (
                "1.2.3.4",
                "1.2.3.5",
            )
            assert image.ImageType == ["DERIVED", "SECONDARY", "M", "ND"]
            assert image.SOPClassUID == MR
            assert image.file_meta.MediaStorageSOPInstanceUID == image.SOPInstanceUID
            assert (image.Columns, image.Rows) == grid.shape[:2]
            sides = np.linalg.norm(grid.affine[:3, :3], axis=0)
            np.testing.assert_allclose(image.PixelSpacing, sides[[1, 0]], rtol=1e-9)
            place = (grid.affine @ [0, 0, k, 1])[:3] * [-1, -1, 1]
            np.testing.assert_allclose(image.ImagePositionPatient, place, atol=1e-8)
            np.testing.assert_allclose(
                image.ImageOrientationPatient, [*AXES[:, 0], *AXES[:, 1]], atol=1e-9
            )
            near = k if axis == 2 else (k // scale)
            source = image.SourceImageSequence[0].ReferencedSOPInstanceUID
            assert source == before[near]
            assert image.InstanceNumber == k + 1
            assert image.DerivationDescription == "x3 by weights 1a2b"
            assert image.SoftwareVersions[0] == "syngo"
            assert "daasr_jax" in image.SoftwareVersions[1]
            assert image.SeriesDescription == "T2 ax daasr_jax"
            assert image.PatientName == "Test^Only"
            assert (image.WindowCenter, image.RepetitionTime) == (600, 4200)
            assert not any(element.tag.is_private for element in image)
            thick = 3.0 if axis == 2 else 3.0 / scale
            assert float(image.SliceThickness) == pytest.approx(thick)
            equipment = image.ContributingEquipmentSequence[-1]
            assert equipment.Manufacturer == "daasr_jax"
        assert "PixelData" not in scan.header[0]  # and the scan's own are as they were
        assert scan.header[0].ImageType[0] == "ORIGINAL"

    def test_odd_headers(self, tmp_path):
        """Values that are none of their kind, other letters, and an overlay."""
        images = series_of(pixels())
        for image in images:
            image.SpecificCharacterSet = "ISO_IR 100"
            image.PatientName = "Müller^Zoë"
            image.add_new(0x60000010, "US", 20)
            image.add_new(0x00180091, "LO", "many")  # an integer by the dictionary
        scan = read_scan(write(tmp_path / "in", images))
        grid = enlarged(scan, 2, 2)
        voxels = np.ones(grid.shape, np.float32)
        out = tmp_path / "out"
        write_dicom(out, voxels, grid, scan, "×2 by weights 1a2b", names=True)
        image = pydicom.dcmread(out / "IM0001.dcm")
        assert image.PatientName == "Müller^Zoë"
        assert image.DerivationDescription == "?2 by weights 1a2b"
        assert (0x6000, 0x0010) not in image

    def test_negative_and_constant(self, folder, tmp_path):
        scan = read_scan(folder)
        grid = enlarged(scan, 2, 2)
        for low, high in ((-300.0, 0.001), (7.0, 7.0), (0.0, 0.0), (1e-7, 3e-6)):
            voxels = np.linspace(low, high, int(np.prod(grid.shape))).astype(np.float32)
            voxels = voxels.reshape(grid.shape)
            write_dicom(tmp_path / "out", voxels, grid, scan, force=True)
            found = read_scan(tmp_path / "out").voxels
            range_ = max(high, 0) - min(low, 0)
            np.testing.assert_allclose(
                found, voxels, atol=range_ / 65535 * 0.51 + 1e-12
            )

    def test_of_an_enhanced_file(self, tmp_path):
        save(enhanced(), tmp_path / "in/one.dcm")
        scan = read_scan(tmp_path / "in")
        grid = enlarged(scan, 2, 2)
        voxels = scan.voxels.repeat(2, axis=0).repeat(2, axis=1)
        write_dicom(tmp_path / "out", voxels, grid, scan)
        found = read_scan(tmp_path / "out")
        assert (is_result(scan), is_result(found)) == (False, True)  # without names
        np.testing.assert_allclose(found.voxels, voxels, atol=0.06)
        np.testing.assert_allclose(found.affine, grid.affine, atol=1e-7)
        image = pydicom.dcmread(tmp_path / "out/IM0001.dcm")
        assert image.SOPClassUID == MR
        assert "SharedFunctionalGroupsSequence" not in image
        assert image.SourceImageSequence[0].ReferencedSOPClassUID == ENHANCED_MR

    def test_force(self, folder, tmp_path):
        scan = read_scan(folder)
        grid, voxels = enlarged(scan, 2, 1), scan.voxels.astype(np.float32)
        out = tmp_path / "out"
        write_dicom(out, voxels, grid, scan)
        first = read_scan(out).header[0].SOPInstanceUID
        with pytest.raises(DataError) as error:
            write_dicom(out, voxels, grid, scan)
        one_line(error.value, "E350", out, "--force")
        write_dicom(out, voxels, grid, scan, force=True)
        assert read_scan(out).header[0].SOPInstanceUID != first
        (out / "thesis.txt").write_text("of years")
        with pytest.raises(DataError) as error:
            write_dicom(out, voxels, grid, scan, force=True)
        one_line(error.value, "E350", "more than one DICOM series")
        assert (out / "thesis.txt").exists()

    def test_never_the_input(self, folder):
        scan = read_scan(folder)
        grid, voxels = enlarged(scan, 2, 1), scan.voxels
        before = {p: p.read_bytes() for p in folder.iterdir()}
        one = read_scan(next(folder.iterdir()))  # a file, which stands for them all
        for place, like in ((folder, scan), (folder / "out", scan), (folder, one)):
            with pytest.raises(DataError) as error:
                write_dicom(place, voxels, grid, like, force=True)
            one_line(error.value, "E351", "never written to")
        assert {p: p.read_bytes() for p in folder.iterdir()} == before

    def test_a_failed_write_leaves_the_old_series(self, folder, tmp_path, monkeypatch):
        scan = read_scan(folder)
        grid, voxels = enlarged(scan, 2, 1), scan.voxels
        out = tmp_path / "out"
        write_dicom(out, voxels, grid, scan)
        before = {p.name: p.read_bytes() for p in out.iterdir()}
        saved = pydicom.dataset.Dataset.save_as

        def full(self, path, **kwargs):
            if self.InstanceNumber == 4:
                raise OSError(28, "No space left on device")
            saved(self, path, **kwargs)

        monkeypatch.setattr(pydicom.dataset.Dataset, "save_as", full)
        with pytest.raises(DataError) as error:
            write_dicom(out, voxels, grid, scan, force=True)
        one_line(error.value, "E352", "No space left")
        assert {p.name: p.read_bytes() for p in out.iterdir()} == before
        assert {p.name for p in tmp_path.iterdir()} == {"series", "out"}

    def test_to_nifti_and_not_from_it(self, folder, tmp_path):
        scan = read_scan(folder)
        grid = enlarged(scan, 2, 2)
        path = tmp_path / "out.nii.gz"
        write_nifti(path, np.ones(grid.shape, np.float32), grid, scan)
        again = read_scan(path)
        np.testing.assert_allclose(again.affine, grid.affine, atol=1e-5)
        assert again.header["pixdim"][4] == pytest.approx(4.2)
        assert again.header.get_xyzt_units() == ("mm", "sec")
        assert again.header["sform_code"] == 1
        assert in_plane(again, 2).shape == (7, 40, 32)
        with pytest.raises(DataError) as error:
            write_dicom(tmp_path / "out", again.voxels, grid, again)
        one_line(error.value, "E353", "write NIfTI")
        with pytest.raises(DataError) as error:
            check_source(again, grid)
        one_line(error.value, "E353", "write NIfTI")

    def test_oblique_axes_are_refused_before_the_work(self, folder):
        """`check_source` is what a command asks before it enhances."""
        scan = read_scan(folder)
        check_source(scan, enlarged(scan, 2, 2))
        sheared = scan.affine.copy()
        sheared[:3, 1] += 0.01 * sheared[:3, 0]
        with pytest.raises(DataError) as error:
            check_source(scan, Grid((32, 40, 7), sheared))
        one_line(error.value, "E355", "write NIfTI")
