import dataclasses
import itertools
import json

import pytest

from daasr_jax.data import DataSettings
from daasr_jax.data.sources.base import Volume
from daasr_jax.data.splits import assign_splits, check_references, split_of
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


class TestFile:
    """`data.split_file` takes a split as it was written down."""

    def read(self, tmp_path, content, volumes=None, **changes):
        path = tmp_path / "split.json"
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        changes = {"split_file": str(path), **changes}
        return assign_splits(
            cohort(8) if volumes is None else volumes, DataSettings(**changes)
        )

    def test_subjects_and_endings(self, tmp_path, caplog):
        caplog.set_level("INFO", "daasr_jax")
        lists = {"train": ["s00", "01"], "val": [], "test": ["s04", "s05"]}
        splits = self.read(tmp_path, lists)
        assert subjects(splits) == {
            "train": {"s00", "s01"},
            "val": set(),
            "test": {"s04", "s05"},
        }
        assert "4 subjects are in no list" in caplog.text

    @pytest.mark.parametrize(
        "changes", [{}, {"n_volumes": 11}, {"seed": 5}, {"contrasts": ("T1",)}]
    )
    @pytest.mark.parametrize("kind", ["fractions", "folders"])
    def test_written_and_read_again(self, tmp_path, kind, changes):
        volumes = cohort(9) if kind == "fractions" else official(9, 5)
        volumes += cohort(9, 1, folder="x", role=volumes[0].role, contrast="T2")
        splits = assign_splits(volumes, DataSettings(**changes))
        wanted = changes.get("contrasts") or ("T1", "T2")
        used = [v for v in volumes if v.contrast in wanted]
        lists = split_of(splits, used)
        assert (
            self.read(tmp_path, lists, volumes, contrasts=changes.get("contrasts", ()))
            == splits
        )
        if "n_volumes" not in changes:
            assert not any("/" in name for names in lists.values() for name in names)

    def test_a_source_that_decides_itself(self, tmp_path):
        volumes = [
            dataclasses.replace(volume("head", n), split=split)
            for n, split in enumerate(("train", "val", "test"))
        ]
        plain = {"exclude": "slice"}
        splits = assign_splits(volumes, DataSettings(**plain))
        lists = split_of(splits, volumes)
        assert lists == {
            "train": ["root/head_0"],
            "val": ["root/head_1"],
            "test": ["root/head_2"],
        }
        assert self.read(tmp_path, lists, volumes, **plain) == splits

    @pytest.mark.parametrize(
        ("lists", "code", "parts"),
        [
            ({"train": ["s99"]}, "E203", ("'s99'", "train of data.split_file", "s0")),
            ({"test": ["x01"]}, "E203", ("'x01'", "s01")),
            ({"val": ["root/s09_1"]}, "E203", ("root/s0",)),
            (
                {"train": ["s01"], "test": ["s01"]},
                "E206",
                ("s01", "train of", "test of"),
            ),
            ({"train": ["s01", "s02", "s01"]}, "E206", ("s01", "twice in train")),
            (
                {"train": ["root/s01_0"], "test": ["root/s01_1"]},
                "E206",
                ("s01", "train of", "test of"),
            ),
            (
                {"train": ["s01"], "tset": []},
                "E330",
                ("train, tset", "train, val and test"),
            ),
            ({}, "E330", ("none",)),
            ({"train": "s01"}, "E330", ("train is no list",)),
            ({"train": [1, 2]}, "E330", ("train is no list",)),
            (["s01"], "E330", ("a list",)),
            ("null", "E330", ("a NoneType",)),
            ("{'train': []}", "E330", ("cannot be read",)),
        ],
    )
    def test_bad_files(self, tmp_path, lists, code, parts):
        with pytest.raises((ConfigError, DataError)) as error:
            self.read(tmp_path, lists)
        one_line(error.value, code, tmp_path / "split.json", *parts)

    def test_bytes_that_are_no_text(self, tmp_path):
        path = tmp_path / "split.json"
        path.write_bytes(b"\x80")
        with pytest.raises((ConfigError, DataError)) as error:
            assign_splits(cohort(8), DataSettings(split_file=str(path)))
        one_line(error.value, "E330", path, "cannot be read")

    def test_no_file(self, tmp_path):
        for path in (tmp_path / "none.json", tmp_path):
            with pytest.raises((ConfigError, DataError)) as error:
                assign_splits(cohort(8), DataSettings(split_file=str(path)))
            one_line(error.value, "E330", path, "cannot be read")

    def test_only_one_way_is_taken(self):
        for changes in (
            {"split_file": "f", "train_subjects": ("s01",)},
            {"split_file": "f", "whole": "test"},
            {"whole": "test", "train_subjects": ("s01",)},
        ):
            with pytest.raises(ConfigError) as error:
                DataSettings(**changes)
            one_line(error.value, "E210", "2 ways")


class TestWhole:
    """All volumes in one split, to evaluate another data set."""

    @pytest.mark.parametrize("split", ["train", "val", "test"])
    def test_all(self, split):
        for volumes in (cohort(5), official(6, 3)):
            splits = assign_splits(volumes, DataSettings(whole=split, n_volumes=3))
            assert splits[split] == sorted(volumes, key=lambda v: v.key)
            assert sum(map(len, splits.values())) == len(volumes)
            assert list(splits) == ["train", "val", "test"]

    def test_some(self):
        lists = {"whole": "test", "test_subjects": ("s01", "03")}
        splits = assign_splits(cohort(5), DataSettings(**lists))
        assert subjects(splits) == {
            "train": set(),
            "val": set(),
            "test": {"s01", "s03"},
        }
        with pytest.raises(ConfigError) as error:
            assign_splits(cohort(5), DataSettings(whole="test", test_subjects=("x",)))
        one_line(error.value, "E203", "data.subjects.test")

    def test_unknown_split(self):
        with pytest.raises(ConfigError) as error:
            DataSettings(whole="all")
        one_line(error.value, "E211", "'all'", "train, val, test")


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
