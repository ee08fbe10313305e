"""From voxels and their grid to a derived DICOM series of the same study."""

import contextlib
import copy
import datetime
import os
import secrets
import shutil
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

import daasr_jax
from daasr_jax.data.pseudonyms import Names
from daasr_jax.data.sources.base import system_words
from daasr_jax.errors import DataError, first_line
from daasr_jax.files import sync_folder
from daasr_jax.scans.dicom import errors_of, library
from daasr_jax.scans.grids import Grid
from daasr_jax.scans.output import cannot_write, check_output
from daasr_jax.scans.scan import Scan
from daasr_jax.scans.unfit import software

_MR = "1.2.840.10008.5.1.4.1.1.4"
# Enhanced and legacy converted MR, whose slices become files of the plain kind.
_ENHANCED = {"1.2.840.10008.5.1.4.1.1.4.1", "1.2.840.10008.5.1.4.1.1.4.4"}
# They describe pixels, files or a display that are no longer so.
_DROPPED = (
    "PixelData", "FloatPixelData", "DoubleFloatPixelData", "PixelAspectRatio",
    "SmallestImagePixelValue", "LargestImagePixelValue", "PixelPaddingValue",
    "PixelPaddingRangeLimit", "IconImageSequence", "RescaleType", "NumberOfFrames",
    "RedPaletteColorLookupTableDescriptor", "VOILUTSequence", "DataSetTrailingPadding",
    "SliceLocation", "RealWorldValueMappingSequence", "ReferencedImageSequence",
)  # fmt: skip
# What is kept of a header without names: how the images were acquired and look. None of
# it is free text. The position and the orientation of each slice are set anew.
_KEPT = (
    "SOPClassUID", "Modality", "BodyPartExamined", "PatientPosition", "ImageType",
    "ScanningSequence", "SequenceVariant", "ScanOptions", "MRAcquisitionType",
    "SliceThickness", "RepetitionTime", "EchoTime", "InversionTime", "EchoNumbers",
    "NumberOfAverages", "ImagingFrequency", "MagneticFieldStrength", "EchoTrainLength",
    "PercentSampling", "PercentPhaseFieldOfView", "PixelBandwidth", "FlipAngle",
    "InPlanePhaseEncodingDirection", "VariableFlipAngleFlag", "SAR", "Laterality",
    "PhotometricInterpretation", "WindowCenter", "WindowWidth", "SeriesNumber",
)  # fmt: skip
# These must be there, and may be empty.
_EMPTY = (
    "StudyDate", "StudyTime", "AccessionNumber", "ReferringPhysicianName", "StudyID",
    "PatientBirthDate", "PatientSex", "PositionReferenceIndicator", "Manufacturer",
)  # fmt: skip
_TOP = 2**16 - 1
_TEXT, _LONG_TEXT = 64, 1024  # characters of LO and ST


def write_dicom(
    folder: str | os.PathLike[str],
    voxels: np.ndarray,
    grid: Grid,
    like: Scan,
    description: str = "",
    force: bool = False,
    inputs: Sequence[str | os.PathLike[str]] = (),
    names: bool = False,
) -> None:
    """Writes a volume as a new series, one file a slice, derived from a DICOM scan.

    Nobody is named: of the header only what an allow-list has is kept. The patient has
    a salted hash for name and ID, and the UIDs are made of salted hashes of the old
    ones. Each call has a salt of its own, which is not kept. The pixels stay: those of
    a head show a face, and text may be burned into them.

    With `names` patient, study and frame of reference stay, and only private elements,
    which may tell of the old grid, are left out.

    The series and its images have new UIDs, the type DERIVED\\SECONDARY and the sources
    they are made from. Values are 16 bits with one slope for the series: `value = slope
    stored + intercept`, right to a half of a 65535th of the range.

    A folder under a temporary name becomes `folder` when it is whole.

    Args:
        folder: The folder of the series.
        voxels: (X, Y, Z) real in the unit of the scan; a file holds one of Z.
        grid: Where they lie.
        like: The scan, of kind `dicom`.
        description: How the images were made, up to 1,024 characters.
        force: Replace a folder that is there and holds one DICOM series.
        inputs: Other places that must not be written to, such as references.
        names: Keep what the header says of patient, study and hospital.

    Raises:
        DataError: If the scan is not DICOM (E353), the axes of the grid are not at
            right angles in the slice (E355), or as `output.check_output` (E350, E351,
            E352).
    """
    folder = Path(folder)
    check_source(like, grid)
    check_output(folder, [like.source, *inputs], force)
    pydicom = library()
    # a scan's headers may be in a set of characters without those of a description
    description = description.encode("ascii", "replace").decode()[:_LONG_TEXT]
    temporary = folder.with_name(f".{os.getpid()}.{folder.name}")
    old = folder.with_name(f".{os.getpid()}.old.{folder.name}")
    try:
        temporary.mkdir(parents=True)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of values that the scanner wrote
            for image in _series(pydicom, voxels, grid, like, description, names):
                path = temporary / f"IM{image.InstanceNumber:04d}.dcm"
                image.save_as(path, enforce_file_format=True)
        sync_folder(temporary)
        if folder.exists():
            folder.rename(old)
        temporary.rename(folder)
        sync_folder(folder.parent)
    except errors_of(pydicom) as error:
        if old.exists() and not folder.exists():
            old.rename(folder)
        # else a value of the scan's header that is none of its kind
        why = system_words(error) if isinstance(error, OSError) else first_line(error)
        raise cannot_write(folder, why) from None
    finally:
        for place in (temporary, old):
            with contextlib.suppress(OSError):
                shutil.rmtree(place)


def check_source(like: Scan, grid: Grid) -> None:
    """Refuses what cannot become a derived series, before anything is computed.

    Args:
        like: The scan that it is derived from.
        grid: Of the series.

    Raises:
        DataError: If the scan names no patient and no study (E353), or the axes of the
            grid are not at right angles in the slice (E355).
    """
    if like.kind != "dicom":
        raise DataError(
            "E353",
            f"{like.source} is not DICOM, so a derived series would have no patient "
            "and no study: write NIfTI",
        )
    row, column = (grid.affine[:3, i] for i in (0, 1))
    cosine = row @ column / np.linalg.norm(row) / np.linalg.norm(column)
    if abs(cosine) > 1e-3:
        raise DataError(
            "E355", "the axes of a slice are not at right angles: write NIfTI"
        )


def _series(
    pydicom: Any,
    voxels: np.ndarray,
    grid: Grid,
    like: Scan,
    description: str,
    names: bool,
):
    """One dataset after another, along the third axis."""
    salt = secrets.token_hex(16)
    slope, intercept = _scale(voxels)
    uid = pydicom.uid.generate_uid
    series, now = uid(), datetime.datetime.now()
    source = np.linalg.inv(like.affine) @ grid.affine
    middle = (np.array(grid.shape[:2]) - 1) / 2
    for k in range(grid.shape[2]):
        near = round(float((source @ [*middle, k, 1])[2]))
        near = min(max(near, 0), len(like.header) - 1)
        header = like.header[near]
        if not names:
            header = _nameless(header, pydicom, salt)
        image = _derived(header, pydicom, description, now)
        image.SeriesInstanceUID = series
        image.SOPInstanceUID = uid()
        image.InstanceNumber = k + 1
        _place(image, grid, k)
        if image.get("SliceThickness", None):
            thinner = np.linalg.norm(grid.affine[:3, 2]) / like.spacing[2]
            image.SliceThickness = _decimal(float(image.SliceThickness * thinner))
        stored = (voxels[..., k].T.astype(np.float64) - intercept) / slope
        _fill(image, stored, slope, intercept)
        meta = pydicom.dataset.FileMetaDataset()
        meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
        meta.MediaStorageSOPClassUID = image.SOPClassUID
        meta.MediaStorageSOPInstanceUID = image.SOPInstanceUID
        image.file_meta = meta
        yield image


def _scale(voxels: np.ndarray) -> tuple[float, float]:
    """Slope and intercept with 16 bits for the range, as decimals of 16 characters."""
    low, high = float(voxels.min()), float(voxels.max())
    intercept = float(_decimal(min(low, 0.0)))
    slope = float(_decimal((max(high, intercept) - intercept) / _TOP))
    return slope or 1.0, intercept


def _decimal(value: float) -> str:
    """The nearest number of at most 16 characters, a DICOM decimal string."""
    for digits in range(16, 0, -1):
        text = f"{value + 0.0:.{digits}g}"
        if len(text) <= 16:
            return text
    raise ValueError(f"{value} has no decimal of 16 characters.")


def _place(image: Any, grid: Grid, k: int) -> None:
    """Position, axes and sides of slice k, in DICOM's space (left, back, top)."""
    affine = np.diag([-1.0, -1.0, 1.0, 1.0]) @ grid.affine
    sides = np.linalg.norm(affine[:3, :3], axis=0)
    row, column = (affine[:3, i] / sides[i] for i in (0, 1))
    normal = np.cross(row, column)
    place = affine[:3, 3] + k * affine[:3, 2]
    image.ImagePositionPatient = [_decimal(x) for x in place]
    image.ImageOrientationPatient = [_decimal(x) for x in (*row, *column)]
    image.PixelSpacing = [_decimal(sides[1]), _decimal(sides[0])]
    image.SpacingBetweenSlices = _decimal(abs(float(affine[:3, 2] @ normal)))
    image.SliceLocation = _decimal(float(place @ normal))
    image.Columns, image.Rows = grid.shape[0], grid.shape[1]


def _fill(image: Any, stored: np.ndarray, slope: float, intercept: float) -> None:
    pixels = np.clip(np.rint(stored), 0, _TOP).astype("<u2")
    image.SamplesPerPixel = 1
    image.setdefault("PhotometricInterpretation", "MONOCHROME2")
    image.BitsAllocated = image.BitsStored = 16
    image.HighBit = 15
    image.PixelRepresentation = 0
    image.RescaleSlope, image.RescaleIntercept = _decimal(slope), _decimal(intercept)
    image.RescaleType = "US"  # unspecified
    image.PixelData = pixels.tobytes()


def _nameless(header: Any, pydicom: Any, salt: str) -> Any:
    """What a header says of the images alone, with a patient and a study of no name."""
    image = pydicom.dataset.Dataset()
    for name in _KEPT:  # a text in the place of a number could be anything
        if name in header and pydicom.datadict.dictionary_VR(name) == header[name].VR:
            image[name] = header[name]
    for name in _EMPTY:
        setattr(image, name, "")
    for name in ("StudyInstanceUID", "SOPInstanceUID", "FrameOfReferenceUID"):
        entropy = [salt, str(header.get(name, ""))]
        setattr(image, name, pydicom.uid.generate_uid(entropy_srcs=entropy))
    image.PatientName = image.PatientID = Names(salt).subject(
        str(header.get("PatientID", ""))
    )
    image.PatientIdentityRemoved = "YES"
    image.DeidentificationMethod = "daasr_jax: an allow-list of attributes"
    return image


def _derived(
    header: Any, pydicom: Any, description: str, now: datetime.datetime
) -> Any:
    """A copy of a header as that of a derived image, without its pixels."""
    dataset, item = pydicom.dataset.Dataset, pydicom.dataset.Dataset()
    item.ReferencedSOPClassUID = header.SOPClassUID
    item.ReferencedSOPInstanceUID = header.SOPInstanceUID
    image = dataset(copy.deepcopy(header))
    for tag in list(image.keys()):
        if tag.is_private or 0x6000 <= tag.group <= 0x60FF:  # these are overlays
            del image[tag]
    for name in _DROPPED:
        if name in image:
            delattr(image, name)
    if header.SOPClassUID in _ENHANCED:
        image.SOPClassUID = _MR
        image.setdefault("ScanningSequence", "RM")  # research mode
        image.setdefault("SequenceVariant", "NONE")
    old = [str(part) for part in header.get("ImageType", None) or ()]
    image.ImageType = ["DERIVED", "SECONDARY", *(old[2:] or ["OTHER"])]
    image.SourceImageSequence = [item]
    image.DerivationDescription = description or f"enlarged by {software()}"
    name, ours = str(header.get("SeriesDescription", None) or ""), " daasr_jax"
    image.SeriesDescription = (name[: _TEXT - len(ours)] + ours).strip()
    number = header.get("SeriesNumber", None)
    image.SeriesNumber = 1000 + (int(number) if number is not None else 0)
    for attribute in ("SeriesDate", "InstanceCreationDate", "ContentDate"):
        setattr(image, attribute, now.strftime("%Y%m%d"))
    for attribute in ("SeriesTime", "InstanceCreationTime", "ContentTime"):
        setattr(image, attribute, now.strftime("%H%M%S"))
    versions = header.get("SoftwareVersions", None) or []
    versions = [versions] if isinstance(versions, str) else list(versions)
    image.SoftwareVersions = [*versions, software()]
    image.ContributingEquipmentSequence = [
        *(header.get("ContributingEquipmentSequence", None) or ()),
        _equipment(dataset, description, now),
    ]
    return image


def _equipment(dataset: Any, description: str, now: datetime.datetime) -> Any:
    """This software, in the words of the standard (PS3.3 C.12.1, CID 7005).

    By it `unfit.is_result` knows the series.
    """
    purpose, out = dataset(), dataset()
    purpose.CodeValue, purpose.CodingSchemeDesignator = "109102", "DCM"
    purpose.CodeMeaning = "Processing Equipment"
    out.PurposeOfReferenceCodeSequence = [purpose]
    out.Manufacturer = out.ManufacturerModelName = "daasr_jax"
    out.SoftwareVersions = daasr_jax.__version__
    out.ContributionDateTime = now.strftime("%Y%m%d%H%M%S")
    if description:
        out.ContributionDescription = description
    return out
