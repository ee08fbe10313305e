"""Real scans, stored as NIfTI and in the fastMRI layout: `DAASR_TEST_DATA` names them.

The folder holds `nifti/` and `fastmri_layout/` with the same images in both.
"""

import os
import re
from pathlib import Path

import numpy as np
import pytest

from daasr_jax import scans
from daasr_jax.data import prepare
from daasr_jax.data.slices import normalised, voxel_fault
from daasr_jax.data.sources import fastmri
from tests.data_fixtures import settings

DATA = os.environ.get("DAASR_TEST_DATA", "")
pytestmark = [
    pytest.mark.realdata,
    pytest.mark.skipif(not DATA, reason="DAASR_TEST_DATA does not name a folder"),
]
CONTRASTS = {"T1": "T1W", "T2": "T2W", "FLAIR": "FLAIR"}


def common_name(key: str) -> str:
    """`file_brain_AXT2_011#003` is patient 01, study 1: patient01/study1_T2W#003."""
    match = re.search(r"file_brain_AX(\w+)_(\d\d)(\d)#(\d+)$", key)
    if match is None:
        return key
    contrast, patient, study, number = match.groups()
    return f"patient{patient}/study{study}_{CONTRASTS[contrast]}#{number}"


def test_both_forms_give_the_same_slices(tmp_path):
    lists = {
        "train_subjects": ("01", "03", "19"),
        "test_subjects": ("09", "20"),
        "size": 256,
        "slice_step": 6,
    }
    images = []
    for folder in ("nifti", "fastmri_layout"):
        found = prepare(settings(Path(DATA) / folder, tmp_path, **lists))
        images.append(
            {
                (split, common_name(key)): table.image(i)
                for split, table in found.splits.items()
                for i, key in enumerate(table.keys)
            }
        )
    nifti, h5 = images
    common = set(nifti) & set(h5)
    assert len(common) == len(h5) > 100
    for name in common:
        np.testing.assert_array_equal(nifti[name], h5[name])


def test_kspace_only_file(tmp_path):
    folder = Path(DATA) / "fastmri_layout/multicoil_challenge"
    (tmp_path / "multicoil_val").symlink_to(folder)
    source = fastmri.SOURCE
    (volume,) = source.scan(settings(tmp_path, tmp_path, links_out=True))
    assert volume.options.startswith("kspace:")
    image = source.read(volume)
    assert image.shape == volume.shape == (2, 256, 256)
    assert voxel_fault(image) == ""
    # patient 20, second visit: these are two of its slices, simulated over two coils
    whole = fastmri_volume("file_brain_AXFLAIR_202.h5")
    for made in normalised(image):
        likeness = [np.corrcoef(made.ravel(), s.ravel())[0, 1] for s in whole]
        assert max(likeness) > 0.99


def fastmri_volume(name):
    root = Path(DATA) / "fastmri_layout"
    volumes = fastmri.scan(settings(root, root))
    return fastmri.read(next(v for v in volumes if v.path.endswith(name)))


def test_a_reference_lies_where_the_headers_say():
    """T1w on the grid of FLAIR: shifted by three pixels it tells less of it."""
    folder = Path(DATA) / "nifti/patient20"
    scan = scans.read_scan(folder / "study2_FLAIR.nii.gz")
    axis = scans.slice_axis(scan)
    reference = scans.read_scan(folder / "study2_T1W.nii.gz")
    on_it, inside = scans.on_grid(reference, scans.grid_of(scan))
    images, _ = scans.normalise(scans.in_plane(scan, axis))
    ref, _ = scans.normalise(scans.in_plane(scan, axis, on_it))
    assert inside.mean() > 0.99
    head = images > 0.1

    def shared(other):
        """Mutual information of the two within the head, in nats."""
        both, _, _ = np.histogram2d(images[head], other[head], 48)
        p = both / both.sum()
        alone = p.sum(axis=1, keepdims=True) * p.sum(axis=0, keepdims=True)
        return (p[p > 0] * np.log(p[p > 0] / alone[p > 0])).sum()

    there = shared(ref)
    for shift in ((0, 3, 0), (0, 0, 3), (0, -3, 0), (0, 0, -3), (1, 0, 0), (-1, 0, 0)):
        assert shared(np.roll(ref, shift, axis=(0, 1, 2))) < 0.9 * there, shift
