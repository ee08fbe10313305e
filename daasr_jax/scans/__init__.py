"""A user's own scans: read, cut into slices, placed on a grid, written."""

from daasr_jax.scans import unfit
from daasr_jax.scans.grids import Grid, enlarged, grid_of, on_grid
from daasr_jax.scans.intensity import Restore, normalise, without_damaged
from daasr_jax.scans.output import check_output
from daasr_jax.scans.overlap import Coverage, coverage_report
from daasr_jax.scans.reading import read_scan
from daasr_jax.scans.scan import Scan, back, in_plane, slice_axis
from daasr_jax.scans.write_dicom import write_dicom
from daasr_jax.scans.write_nifti import qform_remark, stored_type, write_nifti

__all__ = [
    "Coverage",
    "Grid",
    "Restore",
    "Scan",
    "back",
    "check_output",
    "coverage_report",
    "enlarged",
    "grid_of",
    "in_plane",
    "normalise",
    "on_grid",
    "qform_remark",
    "read_scan",
    "slice_axis",
    "stored_type",
    "unfit",
    "without_damaged",
    "write_dicom",
    "write_nifti",
]
