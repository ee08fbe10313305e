"""Fault 10: a person or a scan is in two splits, or a target is its own reference.

Expected: a hard error, exit code 3. Splits are by subject. Copies are found by the
content of their slices, also in another type, unit or number of slices; references come
from the target's own split and never have its pixels.
"""

from __future__ import annotations

import shutil

import numpy as np
import pytest

from daasr_jax.data import draw_pairing, prepare, training_batches
from daasr_jax.data.references import ReferenceRule
from daasr_jax.errors import ConfigError, DataError
from tests.data_fixtures import (
    fastmri_root,
    nifti_root,
    one_line,
    scan_voxels,
    settings,
    write_h5,
    write_nifti,
)


def refused(kind, root, cache, *parts, **given):
    with pytest.raises(kind) as error:
        prepare(settings(root, cache, **given))
    one_line(error.value, *parts)
    return error.value


def test_10_a_subject_in_both_folders(tmp_path):
    root = fastmri_root(tmp_path / "data")
    shutil.copy(
        root / "multicoil_val/file_000.h5", root / "multicoil_train/other_name.h5"
    )
    error = refused(DataError, root, tmp_path / "cache", "E305", "val00")
    assert error.exit_code == 3


def test_10_a_subject_in_two_lists(tmp_path):
    root = nifti_root(tmp_path / "n")
    lists = {"train_subjects": ("00", "01"), "test_subjects": ("01", "02")}
    refused(ConfigError, root, tmp_path / "cache", "E206", "patient01", **lists)


@pytest.mark.parametrize("split", ["multicoil_train", "multicoil_val"])
@pytest.mark.parametrize(
    ("code", "copy"),
    [
        ("E304", lambda image: image),
        ("E332", lambda image: image * 2),
        ("E332", lambda image: image.astype(np.float64)),
        ("E332", lambda image: image[:-1]),
        ("E332", lambda image: image[1:]),
        ("E332", lambda image: (image[1:3] * 2**20).astype(np.int16)),
    ],
)
def test_10_a_copy_under_another_name(tmp_path, split, code, copy):
    """Of train00, in the other split or in its own."""
    root = fastmri_root(tmp_path / "data", train=2)
    image = scan_voxels(0).astype(np.float32) * np.float32(2.0**-20)
    write_h5(root / split / "again.h5", subject="else", reconstruction_rss=copy(image))
    error = refused(
        DataError, root, tmp_path / "cache", code, "train00", "else", val_fraction=0.0
    )
    assert error.exit_code == 3


@pytest.mark.parametrize("copy", [lambda x: x, lambda x: x.astype(np.float32) / 4])
def test_10_a_reference_that_is_its_target(tmp_path, copy):
    """One contrast of a person is a copy of the other."""
    root = nifti_root(tmp_path / "n")
    image = scan_voxels(30)
    write_nifti(root / "patient03/study1_T1W.nii.gz", image)
    write_nifti(root / "patient03/study1_T2W.nii.gz", copy(image))
    given = {"whole": "train", "track": "aligned", "aligned": "contrast"}
    table = prepare(settings(root, tmp_path / "cache", **given)).splits["train"]
    rule = {"track": "aligned", "aligned": "contrast"}
    run = {"batch_size": 4, "crop": 4, "scale": 2, "steps": 50, "seed": 0}
    for use in (
        lambda: draw_pairing(table, **rule),
        lambda: list(training_batches(table, **run, **rule)),
    ):
        with pytest.raises(DataError) as error:
            use()
        assert error.value.exit_code == 3
        one_line(error.value, "E333", "patient03/study1_T1W", "same pixels")
    # a random reference is another slice
    strangers = ReferenceRule(table, exclude="slice")
    for i in np.flatnonzero(table.subjects == "patient03"):
        drawn = [strangers.draw(int(i), seed=0, epoch=e) for e in range(100)]
        assert not (table.hashes[drawn] == table.hashes[i]).any()


@pytest.mark.parametrize("seed", range(3))
def test_10_splits_share_nobody_and_references_stay_inside(tmp_path, seed):
    root = nifti_root(tmp_path / "n", subjects=9)
    found = prepare(settings(root, tmp_path / "cache", seed=seed, val_fraction=0.25))
    people = [set(names) for names in found.subjects.values()]
    assert all(people)
    assert sum(map(len, people)) == len(set().union(*people)) == 9
    assert not set.intersection(*(set(x) for x in found.slice_hashes.values()))
    for table in found.splits.values():
        pairing = draw_pairing(table)
        assert (table.subjects[pairing.references] != table.subjects).all()
