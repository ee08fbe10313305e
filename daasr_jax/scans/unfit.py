"""Volumes that are no evidence: results of this program, masks and maps of labels."""

from __future__ import annotations

from typing import Any

import numpy as np

import daasr_jax
from daasr_jax.scans.scan import Scan

COMMENT = 6  # code of a header extension of plain text
# A map of labels has at most so many values, and over this share of the neighbours in
# it are equal. In scans of 8 bits, which have as few values, a sixth is.
_VALUES, _EQUAL = 256, 0.5
_FEW = 2**16  # voxels that are looked at first


def software() -> str:
    """How the program names itself in what it writes."""
    return f"daasr_jax {daasr_jax.__version__}"


def marked(description: str) -> str:
    """A description that begins with the name of the program."""
    if description.startswith("daasr_jax "):
        return description
    return f"{software()} {description}".strip()


def is_result(scan: Scan) -> bool:
    """Whether this program made a scan, by what it writes into every header.

    That is the beginning of the description or of a comment in a NIfTI file, and the
    contributing equipment of a DICOM series.
    """
    if scan.kind == "nifti":
        texts = [bytes(scan.header["descrip"])]
        texts += [_bytes(e.get_content()) for e in scan.header.extensions
                  if e.get_code() == COMMENT]  # fmt: skip
        return any(text.startswith(b"daasr_jax ") for text in texts)
    if scan.kind == "dicom":
        steps = scan.header[0].get("ContributingEquipmentSequence", None) or ()
        return any(s.get("ManufacturerModelName", "") == "daasr_jax" for s in steps)
    return False


def label_count(scan: Scan) -> int:
    """How many values a mask or a map of labels holds; 0 of a scan or a blank volume.

    It has few values, and lies in patches of one value. The most frequent value, that
    of the background, does not count.
    """
    voxels = scan.voxels
    if len(np.unique(voxels.ravel("K")[:: max(1, voxels.size // _FEW)])) > _VALUES:
        return 0
    values, counts = np.unique(voxels, return_counts=True)
    if not 1 < len(values) <= _VALUES:
        return 0
    inside = voxels != values[counts.argmax()]
    pairs = inside[1:] & inside[:-1]
    equal = np.count_nonzero(pairs & (voxels[1:] == voxels[:-1]))
    labels = len(values) <= 2 or equal > _EQUAL * np.count_nonzero(pairs)
    return len(values) if labels else 0


def _bytes(content: Any) -> bytes:
    return content.encode() if isinstance(content, str) else bytes(content)
