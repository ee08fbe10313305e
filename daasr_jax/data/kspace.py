"""Magnitude images from k-space: centred inverse FFT, root sum of squares, crop."""

import math
import re

import numpy as np

MAX_HEADER_BYTES = 2**20
# fastMRI reads out twice the field of view: 640 rows for 320 to 400 columns.
_OVERSAMPLED = 1.6


def ifft2c(kspace: np.ndarray) -> np.ndarray:
    """Centred orthonormal inverse FFT over the last two axes.

    Args:
        kspace: (..., H, W) complex; the zero frequency lies at `H // 2, W // 2`.

    Returns:
        The image, same shape, complex; energy is kept (Parseval).
    """
    shifted = np.fft.ifftshift(kspace, axes=(-2, -1))
    image = np.fft.ifft2(shifted, axes=(-2, -1), norm="ortho")
    return np.fft.fftshift(image, axes=(-2, -1))


def center_crop(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """The central `height` x `width` of the last two axes; a longer side is kept."""
    height, width = min(height, image.shape[-2]), min(width, image.shape[-1])
    top = (image.shape[-2] - height) // 2
    left = (image.shape[-1] - width) // 2
    return image[..., top : top + height, left : left + width]


def rss_from_kspace(
    kspace: np.ndarray, crop: tuple[int, int] | None = None
) -> np.ndarray:
    """Root-sum-of-squares magnitude image of multi- or single-coil k-space.

    Args:
        kspace: (S, coils, H, W) or (S, H, W) complex64, zero frequency centred.
        crop: Height and width to cut from the centre; None keeps the whole image.

    Returns:
        (S, h, w) float32, in the unit of `kspace`.

    Raises:
        ValueError: If `kspace` is not complex or has another number of axes.
    """
    if kspace.ndim not in (3, 4) or not np.iscomplexobj(kspace):
        raise ValueError(
            "kspace must be complex, (S, coils, H, W) or (S, H, W), "
            f"got {kspace.dtype} {kspace.shape}."
        )
    slices = []
    # a damaged value gives an infinite or NaN voxel, which the caller finds
    with np.errstate(over="ignore", invalid="ignore"):
        for coils in kspace:
            image = ifft2c(coils)
            if crop is not None:
                image = center_crop(image, *crop)
            power = np.square(np.real(image)) + np.square(np.imag(image))
            if kspace.ndim == 4:
                power = power.sum(axis=0)
            slices.append(np.sqrt(power).astype(np.float32))
    return np.stack(slices)


def recon_size(header: bytes | str, height: int, width: int) -> tuple[int, int]:
    """Height and width of the image that an ISMRMRD header asks for.

    The header counts x along the readout, which fastMRI stores as rows. A writer that
    takes x for columns is recognised by its encoded matrix.

    Args:
        header: The XML of `ismrmrd_header`.
        height: Rows of the k-space.
        width: Columns of the k-space.

    Returns:
        Rows and columns to keep, each at most that of the k-space.

    Raises:
        ValueError: If the header is too long, declares a document type or an entity,
            or has no reconSpace matrix size.
    """
    rows, columns = _asked(header, height, width)
    return min(rows, height), min(columns, width)


def check_axes(shape: tuple[int, ...], header: bytes | str | None) -> None:
    """Refuses a k-space whose axes are in another order than fastMRI's.

    Args:
        shape: (slices, coils, readout, phase) or (slices, readout, phase).
        header: The XML of `ismrmrd_header`, where there is one.

    Raises:
        ValueError: If the sizes, or the header's numbers of coils and slices, say so.
    """
    order = "the order is (slices, coils, readout, phase)"
    slices, coils, (height, width) = shape[0], 1, shape[-2:]
    if len(shape) == 3:
        order = "the order is (slices, readout, phase) where there are no coils"
    else:
        coils = shape[1]
    plane = f"cannot be {{}} beside planes of {height}x{width}: {order}"
    if coils > min(height, width):
        fault = plane.format("coils")
        raise ValueError(f"kspace is {shape}, and its axis 1 ({coils}) {fault}")
    if slices > max(height, width) and slices > 4 * min(height, width):
        fault = plane.format("slices")
        raise ValueError(f"kspace is {shape}, and its axis 0 ({slices}) {fault}")
    if header is None or coils == slices:
        return
    text = _text(header)
    counts = [
        int(found[1]) if (found := re.search(form, text)) else -1
        for form in (
            r"<receiverChannels>\s*(\d{1,6})\s*</receiverChannels>",
            r"<slice>\s*<minimum>0</minimum>\s*<maximum>(\d{1,6})</maximum>",
        )
    ]
    if (counts[0], counts[1] + 1) == (slices, coils):
        raise ValueError(
            f"kspace is {shape}, and ismrmrd_header has {slices} coils and {coils} "
            f"slices: {order}"
        )


def plane_remark(
    height: int, width: int, header: bytes | str | None
) -> tuple[str, str] | None:
    """What is odd in a plane of k-space that is used all the same.

    Args:
        height: Rows, the readout.
        width: Columns, the phase encoding.
        header: The XML of `ismrmrd_header`, where there is one.

    Returns:
        The kind of oddity, as what is said of the file, and its sizes; None without.
    """
    if header is not None:
        rows, columns = _asked(header, height, width)
        if rows <= height and columns <= width:
            return None
        kept = f"{min(rows, height)}x{min(columns, width)}"
        return (
            "hold less than their ismrmrd_header asks for",
            f"{height} rows (readout) and {width} columns (phase) where it asks for "
            f"{rows} and {columns}, so its images are {kept}",
        )
    if height >= _OVERSAMPLED * width:
        return (
            "have no ismrmrd_header and seem oversampled along the readout",
            f"{height} rows (readout) and {width} columns (phase), all kept",
        )
    if width >= _OVERSAMPLED * height:
        return (
            "have no ismrmrd_header and seem to hold the readout as their last axis, "
            "where the order is (slices, coils, readout, phase)",
            f"{height} rows and {width} columns, all kept",
        )
    return None


def slice_thickness(header: bytes | str) -> float:
    """Thickness of a slice in mm: the extent along z of the image; NaN if not told.

    Args:
        header: The XML of `ismrmrd_header`. It does not tell the gap between slices.
    """
    return _extent(header, "z")


def voxel_sides(
    header: bytes | str, height: int, width: int
) -> tuple[float, float, float]:
    """Sides of a voxel in mm along slices, rows and columns; NaN where not told.

    Args:
        header: The XML of `ismrmrd_header`.
        height: Rows of the image, along x of the header.
        width: Its columns, along y. Of another size than the header's matrix, the sides
            in the plane are not known.
    """
    plane = (math.nan, math.nan)
    if _matrix_size(_text(header), "reconSpace") == (height, width):
        plane = _extent(header, "x") / height, _extent(header, "y") / width
    return slice_thickness(header), *plane


def _extent(header: bytes | str, axis: str) -> float:
    block = re.search(r"<reconSpace>(.*?)</reconSpace>", _text(header), re.DOTALL)
    found = block and re.search(
        rf"<fieldOfView_mm>.*?<{axis}>\s*([\d.]{{1,30}})\s*</{axis}>.*?"
        r"</fieldOfView_mm>",
        block[1],
        re.DOTALL,
    )
    try:
        extent = float(found[1]) if found else math.nan
    except ValueError:
        return math.nan
    return extent if extent > 0 else math.nan


def _asked(header: bytes | str, height: int, width: int) -> tuple[int, int]:
    """Rows and columns that the header asks for, within the k-space or not."""
    text = _text(header)
    if len(text) > MAX_HEADER_BYTES:
        raise ValueError(f"ismrmrd_header is longer than {MAX_HEADER_BYTES} bytes")
    if re.search(r"<!\s*(DOCTYPE|ENTITY)", text, re.IGNORECASE):
        raise ValueError("ismrmrd_header declares a document type or an entity")
    recon = _matrix_size(text, "reconSpace")
    if recon is None:
        raise ValueError("ismrmrd_header has no reconSpace matrix size")
    rows, columns = recon
    encoded = _matrix_size(text, "encodedSpace")
    if encoded == (width, height) and height != width:
        rows, columns = columns, rows
    return rows, columns


def _text(header: bytes | str) -> str:
    return header.decode("utf-8", "replace") if isinstance(header, bytes) else header


def _matrix_size(text: str, space: str) -> tuple[int, int] | None:
    block = re.search(rf"<{space}>(.*?)</{space}>", text, re.DOTALL)
    if block is None:
        return None
    size = re.search(
        r"<matrixSize>\s*<x>\s*(\d{1,6})\s*</x>\s*<y>\s*(\d{1,6})\s*</y>", block[1]
    )
    if size is None or int(size[1]) < 1 or int(size[2]) < 1:
        return None
    return int(size[1]), int(size[2])
