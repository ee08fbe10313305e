"""Fault 09: a split is empty, has no reference, or is smaller than a batch.

Expected: one line names the split and what filtered it, exit code 3 (2 for the command
line), before anything is compiled.
"""

from __future__ import annotations

import pytest

from daasr_jax.data import prepare, steps_per_epoch
from daasr_jax.errors import ConfigError, DataError
from tests.data_fixtures import fastmri_root, nifti_root, one_line, settings


@pytest.mark.parametrize(
    ("train", "val", "given", "parts"),
    [
        (4, 1, {}, ("E307", "'test'", "val00", "reference.exclude=slice")),
        (
            4,
            2,
            {"exclude": "volume", "train_subjects": "00", "test_subjects": "train01"},
            ("E307", "'train'", "reference.exclude=slice"),
        ),
        (4, 2, {"slice_range": (0.0, 0.1)}, ("E315", "data.slice_last")),
    ],
)
def test_09_no_reference_is_possible(tmp_path, train, val, given, parts):
    root = fastmri_root(tmp_path / "data", train=train, val=val)
    if "train_subjects" in given:
        given = given | {"train_subjects": ("train00",), "test_subjects": ("val00",)}
    with pytest.raises(DataError) as error:
        prepare(settings(root, tmp_path / "cache", **given))
    assert error.value.exit_code == 3
    one_line(error.value, *parts)


def test_09_a_batch_larger_than_its_split(tmp_path):
    root = fastmri_root(tmp_path / "data", train=4, val=2)
    table = prepare(settings(root, tmp_path / "cache")).splits["train"]
    assert steps_per_epoch(table, len(table)) == 1
    with pytest.raises(DataError) as error:
        steps_per_epoch(table, len(table) + 1)
    assert error.value.exit_code == 3
    one_line(error.value, "E314", "'train'", len(table), len(table) + 1)


def test_09_an_empty_split(tmp_path):
    root = fastmri_root(tmp_path / "data", train=4, val=2)
    given = {"whole": "test"}
    table = prepare(settings(root, tmp_path / "cache", **given)).splits["train"]
    with pytest.raises(DataError) as error:
        steps_per_epoch(table, 1)
    one_line(error.value, "E314", "'train'")


def test_09_filters_that_leave_too_few(tmp_path):
    root = nifti_root(tmp_path / "n", subjects=1)
    with pytest.raises(DataError) as error:
        prepare(settings(root, tmp_path / "cache"))
    one_line(error.value, "E306", "1 subject", "data.pattern")
    root = nifti_root(tmp_path / "m")
    for given, parts in (
        ({"contrasts": "FLAIR"}, ("E204", "FLAIR", "T1W, T2W")),
        ({"train_subjects": ("patient99",)}, ("E203", "patient99", "subjects.train")),
    ):
        with pytest.raises(ConfigError) as refused:
            prepare(settings(root, tmp_path / "cache", **given))
        one_line(refused.value, *parts)


def test_09_all_files_of_a_folder_left_out(tmp_path):
    """The test split is then not drawn from the other folder in silence."""
    root, bad = fastmri_root(tmp_path / "data", train=6, val=2), []
    for path in (root / "multicoil_val").iterdir():
        path.write_bytes(b"")
    with pytest.raises(DataError) as error:
        prepare(
            settings(root, tmp_path / "cache"), on_bad=lambda path, _: bad.append(path)
        )
    assert len(bad) == 2
    one_line(error.value, "E302", "2 of 2 files", "multicoil_val", "is empty")
