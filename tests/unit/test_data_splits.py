import itertools

import pytest

from daasr_jax.data import DataSettings
from daasr_jax.data.sources.base import Volume
from daasr_jax.data.splits import assign_splits, check_references
from daasr_jax.errors import ConfigError, DataError
from tests.data_fixtures import one_line


def volume(subject, n=0, folder="", role="", contrast="T1", slices=10):
    key = f"{folder or 'root'}/{subject}_{n}"
    return Volume(
        key=key,
        subject=subject,
        contrast=contrast,
        study="",
        path=key,
        shape=(slices, 16, 16),
        folder=folder,
        role=role,
    )


def cohort(count, per_subject=2, prefix="s", **kwargs):
    return [
        volume(f"{prefix}{i:02d}", n, **kwargs)
        for i in range(count)
        for n in range(per_subject)
    ]


def official(train, val):
    return cohort(train, prefix="a", folder="multicoil_train", role="train") + cohort(
        val, prefix="b", folder="multicoil_val", role="val"
    )


def subjects(splits):
    return {name: {v.subject for v in members} for name, members in splits.items()}


def counts(splits):
    return tuple(len(members) for members in subjects(splits).values())


@pytest.mark.parametrize(
    ("n", "wanted"),
    [
        (4, (2, 0, 2)),
        (5, (3, 0, 2)),
        (6, (2, 2, 2)),
        (20, (14, 2, 4)),
        (50, (35, 5, 10)),
    ],
)
def test_fractions(n, wanted, caplog):
    splits = assign_splits(cohort(n), DataSettings())
    assert counts(splits) == wanted
    assert ("no validation split" in caplog.text) == (wanted[1] == 0)
    for first, second in itertools.combinations(subjects(splits).values(), 2):
        assert not first & second
    assert sum(map(len, splits.values())) == 2 * n


def test_fractions_repeat_by_seed_and_ignore_the_order():
    first = assign_splits(cohort(20), DataSettings(seed=3))
    assert assign_splits(cohort(20)[::-1], DataSettings(seed=3)) == first
    assert assign_splits(cohort(20), DataSettings(seed=4)) != first


def test_no_validation_asked_for(caplog):
    assert counts(assign_splits(cohort(6), DataSettings(val_fraction=0.0))) == (4, 0, 2)
    assert not caplog.text


def test_few_subjects():
    with pytest.raises(DataError) as error:
        assign_splits(cohort(1), DataSettings(root="/data", exclude="slice"))
    one_line(error.value, "E306", "/data", "data.pattern")
    for n, wanted in ((2, (1, 0, 1)), (3, (2, 0, 1))):
        assert (
            counts(assign_splits(cohort(n), DataSettings(exclude="volume"))) == wanted
        )
        with pytest.raises(DataError) as error:
            assign_splits(cohort(n), DataSettings())
        one_line(error.value, "E307", "one subject")


def test_official_folders():
    splits = assign_splits(official(20, 3), DataSettings())
    assert counts(splits) == (18, 2, 3)
    assert {v.role for v in splits["test"]} == {"val"}
    assert {v.role for v in splits["train"] + splits["val"]} == {"train"}


def test_official_folders_with_few_subjects(caplog):
    assert counts(assign_splits(official(3, 2), DataSettings())) == (3, 0, 2)
    assert "no validation split" in caplog.text
    assert "best state is the latest" in caplog.text


def test_subject_in_both_official_folders():
    shared = volume("a01", 7, "multicoil_val", "val")
    with pytest.raises(DataError) as error:
        assign_splits([*official(4, 2), shared], DataSettings())
    one_line(error.value, "E305", "a01", "data.subjects.train")
    lists = {"train_subjects": ("a00", "a02"), "test_subjects": ("b00", "b01")}
    assert counts(assign_splits([*official(4, 2), shared], DataSettings(**lists))) == (
        2,
        0,
        2,
    )


def test_lists_are_exact_and_match_endings(caplog):
    caplog.set_level("INFO", "daasr_jax")
    lists = {
        "train_subjects": ("s00", "s01"),
        "val_subjects": ("02", "s03"),
        "test_subjects": ("04", "05"),
    }
    splits = assign_splits(cohort(8), DataSettings(**lists))
    assert subjects(splits) == {
        "train": {"s00", "s01"},
        "val": {"s02", "s03"},
        "test": {"s04", "s05"},
    }
    assert "2 subjects are in no list" in caplog.text


@pytest.mark.parametrize(
    ("lists", "code", "parts"),
    [
        ({"train_subjects": ("s99",)}, "E203", ("s99", "data.subjects.train")),
        ({"train_subjects": ("x01",)}, "E203", ("x01", "s01")),
        ({"train_subjects": ("0",)}, "E203", ("fits", "s00", "s10")),
        (
            {"train_subjects": ("s01",), "test_subjects": ("01",)},
            "E206",
            ("s01", "data.subjects.train", "data.subjects.test"),
        ),
    ],
)
def test_bad_lists(lists, code, parts):
    with pytest.raises(ConfigError) as error:
        assign_splits(cohort(12), DataSettings(**lists))
    one_line(error.value, code, *parts)


def test_contrasts():
    volumes = cohort(6) + cohort(6, per_subject=1, folder="x", contrast="T2")
    splits = assign_splits(volumes, DataSettings(contrasts=("T2",)))
    assert {v.contrast for members in splits.values() for v in members} == {"T2"}
    with pytest.raises(ConfigError) as error:
        assign_splits(volumes, DataSettings(contrasts=("FLAIR",)))
    one_line(error.value, "E204", "FLAIR", "T1, T2")


def test_n_volumes_counts_each_folder():
    splits = assign_splits(official(30, 20), DataSettings(n_volumes=20))
    assert len(splits["train"]) + len(splits["val"]) == 20
    assert len(splits["test"]) == 20
    assert splits == assign_splits(official(30, 20), DataSettings(n_volumes=20))
    everything = assign_splits(official(30, 20), DataSettings(n_volumes=0))
    assert sum(map(len, everything.values())) == 100


def test_n_volumes_of_a_tree_and_of_lists():
    splits = assign_splits(cohort(20), DataSettings(n_volumes=30))
    assert sum(map(len, splits.values())) == 30
    lists = {
        "train_subjects": tuple(f"s{i:02d}" for i in range(10)),
        "test_subjects": ("s10", "s11"),
    }
    splits = assign_splits(cohort(20), DataSettings(n_volumes=8, **lists))
    assert [len(members) for members in splits.values()] == [8, 0, 4]


class TestReferences:
    def test_one_subject(self):
        members = [volume("s1", 0), volume("s1", 1)]
        with pytest.raises(DataError) as error:
            check_references("val", members, "subject")
        one_line(
            error.value,
            "E307",
            "split 'val' holds one subject (s1)",
            "--config.reference.exclude=volume",
            "data.subjects.val",
        )
        check_references("val", members, "volume")

    def test_one_volume(self):
        for exclude in ("subject", "volume"):
            with pytest.raises(DataError) as error:
                check_references("test", [volume("s1")], exclude)
            one_line(error.value, "E307", "exclude=slice", "data.subjects.test")
        check_references("test", [volume("s1")], "slice")

    def test_one_slice(self):
        with pytest.raises(DataError) as error:
            check_references("test", [volume("s1", slices=1)], "slice")
        one_line(error.value, "E307", "one slice")

    def test_empty_split_passes(self):
        check_references("val", [], "subject")

    def test_lists_with_one_subject(self):
        lists = {"train_subjects": ("s00", "s01"), "val_subjects": ("s02",)}
        with pytest.raises(DataError, match="split 'val' holds one subject"):
            assign_splits(cohort(4), DataSettings(**lists))
        assign_splits(cohort(4), DataSettings(**lists, exclude="volume"))
        assign_splits(cohort(4), DataSettings(**lists, track="aligned"))
