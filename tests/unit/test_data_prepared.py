import json
import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
from PIL import Image

from daasr_jax.data import DataSettings, draw_pairing, prepare, training_batches
from daasr_jax.data import store as store_module
from daasr_jax.data.slices import (
    central_slices,
    normalised,
    resized,
    slice_hash,
    voxel_fault,
)
from daasr_jax.data.sources import fastmri
from daasr_jax.errors import DataError, ResourceError
from tests.data_fixtures import (
    SIZE,
    fastmri_root,
    nifti_root,
    one_line,
    scan_voxels,
    settings,
    write_h5,
    write_nifti,
    write_rss,
)

ROOT = Path(__file__).parents[2]


def store(cache):
    return cache / f"prepared-v{store_module.PREPARATION_VERSION}"


def incomplete(cache):
    return [p for p in store(cache).iterdir() if "incomplete" in p.name]


def first_volume(cache):
    """Folder of one prepared volume, and its file of records."""
    path = min(store(cache).rglob("*.array_record*"))
    return path.parents[2], path


class TestSlices:
    def test_central_slices(self):
        assert list(central_slices(10, (0.0, 1.0), 1)) == list(range(10))
        assert list(central_slices(10, (0.1, 0.7), 3)) == [1, 4]
        assert list(central_slices(36, (0.0, 0.01), 1)) == []

    def test_normalised_is_exact_under_powers_of_two(self):
        voxels = scan_voxels(0)
        scaled = voxels.astype(np.float32) * np.float32(2.0**-20)
        one, two = normalised(voxels), normalised(scaled)
        assert one.dtype == np.float32
        assert one.max() == 1.0
        np.testing.assert_array_equal(one, two)
        np.testing.assert_array_equal(one, normalised(voxels.astype(">f8")))

    def test_resized_is_pillow_bicubic(self):
        image = normalised(scan_voxels(0))[0]
        got = resized(image, SIZE, "stretch")
        wanted = np.asarray(
            Image.fromarray(image).resize((SIZE, SIZE), Image.Resampling.BICUBIC)
        )
        assert got.shape == (SIZE, SIZE, 1)
        assert got.dtype == np.float32
        np.testing.assert_array_equal(got[..., 0], np.clip(wanted, 0, 1))

    def test_resized_equals_jax_cubic(self):
        import jax

        image = normalised(scan_voxels(0, (1, 61, 47)))[0]
        wanted = jax.image.resize(image, (SIZE, SIZE), "cubic", antialias=True)
        got = resized(image, SIZE, "stretch")[..., 0]
        np.testing.assert_allclose(got, np.clip(wanted, 0, 1), atol=1e-6)

    def test_pad_keeps_the_aspect_ratio(self):
        image = np.ones((24, 17), np.float32)
        got = resized(image, 24, "pad")[..., 0]
        assert got[:, :3].max() == 0
        assert got[:, 3:20].min() == 1
        assert got[:, 20:].max() == 0

    @pytest.mark.parametrize(
        ("values", "why"),
        [
            ([1.0, np.nan, np.inf], "2 voxels are NaN or infinite, the first in slice"),
            ([3.0, 3.0, 3.0], "blank"),
            ([-5.0, 0.0, 10.0], "start at 0"),
            ([-5.0, -2.0, -1.0], "start at 0"),
        ],
    )
    def test_voxel_fault(self, values, why):
        assert why in voxel_fault(np.array(values).reshape(3, 1, 1))

    @pytest.mark.parametrize("dtype", ["<f4", ">f8", "<f2"])
    @pytest.mark.parametrize("factor", [21, 256, 2.0**100])
    def test_a_hot_voxel_does_not_set_the_range(self, dtype, factor):
        volume = scan_voxels(0).astype(dtype) / 2048
        assert voxel_fault(volume) == ""
        factor = min(factor, 60000) if dtype == "<f2" else factor
        volume[2, 12, 10] = factor * np.sort(volume[volume > 0])[-2]
        fault = voxel_fault(volume)
        assert f"slice 2 is {float(volume[2, 12, 10]):.4g}" in fault
        assert "would set the range" in fault

    def test_bright_tissue_is_no_hot_voxel(self):
        volume = scan_voxels(0).astype(np.float32)
        volume[2, 12, 10] = 15 * volume.max()
        assert voxel_fault(volume) == ""
        assert voxel_fault(np.array([0.0, 1.0, 1000.0]).reshape(3, 1, 1)) != ""
        assert voxel_fault(np.array([0.0, 0.0, 1000.0]).reshape(3, 1, 1)) == ""

    def test_slice_hash_is_of_the_pixels_up_to_a_factor(self):
        image = scan_voxels(0)[1]
        one = slice_hash(image, SIZE, "stretch")
        for other in (
            image.astype(">f8"),
            image.astype(np.float32) * np.float32(2.0**-20),
            image.astype(np.int64) * 7,
            image / 3,
        ):
            assert slice_hash(other, SIZE, "stretch") == one
        assert len(one) == 64
        assert slice_hash(image[:, ::-1], SIZE, "stretch") != one
        assert slice_hash(image + np.eye(24, 20), SIZE, "stretch") != one
        assert slice_hash(np.eye(24, 20)[:, :15], SIZE, "stretch") == ""

    def test_small_negative_values_pass(self):
        assert voxel_fault(np.array([-0.05, 0.5, 1.0]).reshape(3, 1, 1)) == ""


class TestPrepare:
    def test_fastmri(self, root, cache, caplog):
        caplog.set_level(logging.INFO, "daasr_jax")
        found = prepare(settings(root, cache))
        assert found.dataset == "fastmri:data"
        assert found.directory == str(cache)
        assert sum(path.is_dir() for path in store(cache).iterdir()) == 8
        assert {n: len(t) for n, t in found.splits.items()} == {
            "train": 16,
            "val": 8,
            "test": 8,
        }
        test = found.splits["test"]
        assert test.keys[:2] == [
            "multicoil_val/file_000#000",
            "multicoil_val/file_000#001",
        ]
        assert set(test.subjects) == {"val00", "val01"}
        assert set(test.contrasts) == {"AXT2"}
        assert test.n_slices.tolist() == [4] * 8
        volume = normalised(scan_voxels(100))
        for i in range(4):
            image = test.image(i)
            assert image.dtype == np.float32
            assert not image.flags.writeable
            np.testing.assert_array_equal(image, resized(volume[i], SIZE, "stretch"))
        assert "train 16 slices of 4 volumes of 4 subjects" in caplog.text

    def test_second_call_reads_the_first_ones_work(self, root, cache, monkeypatch):
        first = prepare(settings(root, cache))
        monkeypatch.setattr(store_module, "_prepare", None)
        monkeypatch.setattr(
            fastmri, "SOURCE", fastmri.Source("fastmri", fastmri.scan, None)
        )
        second = prepare(settings(root, cache))
        assert second.key == first.key
        np.testing.assert_array_equal(
            second.splits["val"].image(3), first.splits["val"].image(3)
        )

    def test_nifti_and_fastmri_give_the_same_slices(self, tmp_path, cache):
        for i in range(4):
            write_nifti(tmp_path / f"n/p{i}/T2.nii.gz", scan_voxels(i))
            write_rss(tmp_path / f"f/p{i}.h5", i, f"p{i}", "T2")
        one, two = (prepare(settings(tmp_path / name, cache)) for name in "nf")
        assert one.key != two.key
        for split, table in one.splits.items():
            other = two.splits[split]
            assert table.subjects.tolist() == other.subjects.tolist()
            for i in range(len(table)):
                np.testing.assert_array_equal(table.image(i), other.image(i))

    def test_nifti_records(self, tmp_path, cache):
        found = prepare(settings(nifti_root(tmp_path / "n"), cache))
        assert found.dataset == "nifti:n"
        train = found.splits["train"]
        assert set(train.studies) == {"study1"}
        assert set(train.contrasts) == {"T1W", "T2W"}

    def test_template(self, cache):
        found = prepare(
            settings(
                "", cache, layout="template", exclude="slice", size=64, resize="pad"
            )
        )
        assert found.dataset == "template:mni152"
        train = found.splits["train"]
        assert set(train.volumes) == {"mni152/train"}
        assert len(train) > len(found.splits["test"]) > 12
        image = train.image(30)
        assert image[:, :3].max() == 0
        assert image.max() > 0.5
        pairing = draw_pairing(found.splits["test"], exclude="slice")
        assert (pairing.references != np.arange(len(pairing.references))).all()

    def test_template_needs_the_loosest_rule(self, cache):
        for exclude in ("subject", "volume"):
            with pytest.raises(DataError) as error:
                prepare(settings("", cache, layout="template", exclude=exclude))
            one_line(error.value, "E307", "mni152", "--config.reference.exclude=slice")

    def test_slice_range_and_step(self, root, cache):
        found = prepare(settings(root, cache, slice_range=(0.25, 1.0), slice_step=2))
        assert found.splits["test"].index.tolist() == [1, 3, 1, 3]
        with pytest.raises(DataError) as error:
            prepare(settings(root, cache, slice_range=(0.0, 0.01)))
        one_line(error.value, "E315", "data.slice_first and data.slice_last")
        assert not incomplete(cache)

    def test_constant_slices_are_dropped_and_counted(self, root, cache, caplog):
        caplog.set_level(logging.INFO, "daasr_jax")
        image = scan_voxels(100).astype(np.float32)
        image[0] = 0
        image[3] = 7
        write_h5(
            root / "multicoil_val/file_000.h5",
            subject="val00",
            reconstruction_rss=image,
        )
        found = prepare(settings(root, cache))
        assert found.splits["test"].index[:3].tolist() == [1, 2, 0]
        assert "2 slices of one constant value were dropped" in caplog.text

    def test_no_validation_split_is_an_empty_table(self, tmp_path, cache):
        found = prepare(settings(fastmri_root(tmp_path / "d", 3, 2), cache))
        assert len(found.splits["val"]) == 0
        with pytest.raises(IndexError):
            found.splits["val"].image(0)

    def test_no_tensorflow_no_nilearn_import(self, root, cache):
        code = (
            "import sys; from daasr_jax.data import *; "
            f"prepare(DataSettings(root={str(root)!r}, cache_dir={str(cache)!r},"
            "size=32)); "
            f"prepare(DataSettings(layout='template', cache_dir={str(cache)!r},"
            "size=32, exclude='slice')); "
            "print(sorted({'tensorflow', 'nilearn', 'sklearn'} & set(sys.modules)))"
        )
        done = run_python(code)
        assert done.stdout == "[]\n", done.stderr


def test_unreadable_folder(root, cache, monkeypatch):
    def scan(wanted, on_bad=None):
        raise PermissionError(13, "Permission denied", str(root / "multicoil_val"))

    monkeypatch.setattr(fastmri, "SOURCE", fastmri.Source("fastmri", scan, None))
    with pytest.raises(DataError) as error:
        prepare(settings(root, cache))
    one_line(error.value, "E301", root / "multicoil_val", "Permission denied")


class TestBadVoxels:
    def test_all_volumes_are_named(self, root, cache):
        image = scan_voxels(1).astype(np.float32)
        for name, place, value in (("000", 2, np.nan), ("001", 1, np.inf)):
            bad = image.copy()
            bad[place, 5:7, 5] = value
            write_h5(
                root / f"multicoil_val/file_{name}.h5",
                subject=f"val{name}",
                reconstruction_rss=bad,
            )
        with pytest.raises(DataError) as error:
            prepare(settings(root, cache))
        one_line(
            error.value,
            "E302",
            "2 of 8",
            "file_000.h5: 2 voxels are NaN or infinite, the first in slice 2",
            "file_001.h5: 2 voxels",
        )

    def test_blank_volume(self, root, cache):
        path = write_h5(
            root / "multicoil_val/file_000.h5",
            subject="val00",
            reconstruction_rss=np.zeros((4, 24, 20), np.float32),
        )
        with pytest.raises(DataError) as error:
            prepare(settings(root, cache))
        one_line(error.value, path, "blank")

    @pytest.mark.parametrize("where", ["multicoil_val/copy.h5", "multicoil_train/c.h5"])
    def test_copy_under_another_subject(self, root, cache, where):
        write_rss(root / where, 0, "someone")
        with pytest.raises(DataError) as error:
            prepare(settings(root, cache, val_fraction=0.0))
        one_line(error.value, "E304", "train00", "someone", "same voxels")

    def test_copy_under_the_same_subject_is_said(self, root, cache, caplog):
        write_rss(root / "multicoil_val/copy.h5", 100, "val00")
        prepare(settings(root, cache))
        assert "hold the same voxels" in caplog.text

    @pytest.mark.parametrize(
        "copy",
        [
            lambda image: image * 2,
            lambda image: image.astype(np.float64),
            lambda image: image[:-1],
            lambda image: image[1:],
            lambda image: (image[1:3] * 2**20).astype(np.int16),
        ],
    )
    def test_copy_in_another_form(self, tmp_path, cache, copy):
        root = fastmri_root(tmp_path / "d", train=2)
        image = scan_voxels(0).astype(np.float32) * np.float32(2.0**-20)
        path = root / "multicoil_val/again.h5"
        write_h5(path, subject="someone", reconstruction_rss=copy(image))
        with pytest.raises(DataError) as error:
            prepare(settings(root, cache))
        one_line(
            error.value,
            "E332",
            "multicoil_train/file_000 (subject train00, split 'train')",
            "multicoil_val/again (subject someone, split 'test')",
            "equal slices",
        )

    def test_copy_in_another_form_within_a_split(self, tmp_path, cache):
        root = fastmri_root(tmp_path / "d", train=2)
        image = scan_voxels(0).astype(np.float64)
        path = root / "multicoil_train/again.h5"
        write_h5(path, subject="someone", reconstruction_rss=image)
        with pytest.raises(DataError) as error:
            prepare(settings(root, cache, val_fraction=0.0))
        one_line(
            error.value, "E332", "train00, split 'train'", "someone, split 'train'"
        )

    def test_nearly_empty_slices_are_no_copies(self, tmp_path, cache):
        root = fastmri_root(tmp_path / "d", train=2)
        for i, name in enumerate(("multicoil_train/new", "multicoil_val/new")):
            image = scan_voxels(50 + i).astype(np.float32)
            image[1] = 0
            image[1, 3, 4] = 100 + i
            write_h5(root / f"{name}.h5", subject=f"new{i}", reconstruction_rss=image)
        prepare(settings(root, cache))

    def test_volume_that_is_read_otherwise_than_before(self, root, cache):
        prepare(settings(root, cache))
        path = cache / "content-v2.json"
        memory = json.loads(path.read_text())
        path.write_text(json.dumps(dict.fromkeys(memory, "0" * 64)))
        with pytest.raises(DataError) as error:
            prepare(settings(root, cache))
        one_line(error.value, "E316", root / "multicoil_train/file_000.h5")


class TestKey:
    def test_what_changes_it(self, root, cache):
        base = prepare(settings(root, cache)).key
        assert prepare(settings(root, cache, exclude="volume")).key == base
        assert prepare(settings(root, cache, track="aligned")).key == base
        keys = {base}
        for change in (
            {"size": 48},
            {"resize": "pad"},
            {"slice_step": 2},
            {"slice_range": (0.0, 0.8)},
            {"val_fraction": 0.0},
            {"seed": 1},
        ):
            keys.add(prepare(settings(root, cache, **change)).key)
        assert len(keys) == 7

    def test_contents_and_attributes_change_it(self, root, cache, monkeypatch):
        keys = {prepare(settings(root, cache)).key}
        path = root / "multicoil_val/file_000.h5"
        write_rss(path, 555, "val00")
        keys.add(prepare(settings(root, cache)).key)
        with h5py.File(path, "a") as file:
            file.attrs["acquisition"] = "AXT1"
        keys.add(prepare(settings(root, cache)).key)
        monkeypatch.setattr(store_module, "PREPARATION_VERSION", 99)
        keys.add(prepare(settings(root, cache)).key)
        assert len(keys) == 4

    def test_what_lies_beside_the_image_does_not(self, root, cache):
        first = prepare(settings(root, cache)).key
        with h5py.File(root / "multicoil_val/file_000.h5", "a") as file:
            file["kspace"] = np.ones((4, 24, 20), np.complex64)
            file.attrs["norm"] = 1.0
        assert prepare(settings(root, cache)).key == first

    def test_damaged_memory_is_rebuilt(self, root, cache, caplog):
        first = prepare(settings(root, cache)).key
        (cache / "content-v2.json").write_text("{")
        assert prepare(settings(root, cache)).key == first
        assert "every volume is read again" in caplog.text


class TestOverlap:
    """What a run records of its data, so that an overlap with others is seen."""

    def test_subjects_volumes_and_slices(self, root, cache):
        found = prepare(settings(root, cache))
        assert found.subjects["test"] == ["val00", "val01"]
        assert found.split["test"] == ["val00", "val01"]
        salted = found.subject_hashes("a")
        assert {s: len(x) for s, x in salted.items()} == {
            "train": 4,
            "val": 2,
            "test": 2,
        }
        assert salted != found.subject_hashes("b")
        everything = prepare(settings(root, cache, whole="test"))
        for split in ("train", "val", "test"):
            for hashes, others in (
                (salted, everything.subject_hashes("a")),
                (found.volume_hashes, everything.volume_hashes),
                (found.slice_hashes, everything.slice_hashes),
            ):
                assert hashes[split]
                assert set(hashes[split]) < set(others["test"])

    def test_another_form_of_the_scans_has_their_slices(self, tmp_path, cache):
        for i in range(4):
            write_nifti(tmp_path / f"n/p{i}/T2.nii.gz", scan_voxels(i))
            write_rss(tmp_path / f"f/p{i}.h5", i, f"p{i}", "T2")
        one, two = (prepare(settings(tmp_path / name, cache)) for name in "nf")
        assert one.slice_hashes == two.slice_hashes
        assert one.volume_hashes != two.volume_hashes
        assert one.subject_hashes("x") == two.subject_hashes("x")


class TestPartners:
    """Volumes without a reference on the track `aligned` are left out and counted."""

    CONTRAST = {"track": "aligned", "aligned": "contrast"}  # noqa: RUF012

    def test_one_volume_without_another_contrast(self, tmp_path, cache, caplog):
        root = nifti_root(tmp_path / "n")
        whole = prepare(settings(root, cache, **self.CONTRAST))
        subject = whole.subjects["train"][0]
        (root / subject / "study1_T2W.nii.gz").unlink()
        found = prepare(settings(root, cache, **self.CONTRAST))
        train = found.splits["train"]
        assert len(train) == len(whole.splits["train"]) - 8
        assert subject not in train.subjects
        assert "1 of 3 volumes (4 of 12 slices)" in caplog.text
        assert f"{subject}/study1_T1W" in caplog.text
        pairing = draw_pairing(train, **self.CONTRAST)
        assert len(pairing.references) == len(train) == 8
        assert (train.contrasts[pairing.references] != train.contrasts).all()
        np.testing.assert_array_equal(train.image(0), whole.splits["train"].image(8))

    def test_one_volume_of_one_slice(self, tmp_path, cache, caplog):
        root = nifti_root(tmp_path / "n", contrasts="T1W")
        write_nifti(root / "patient09/study1_T1W.nii.gz", scan_voxels(9)[:1])
        found = prepare(settings(root, cache, whole="test", track="aligned"))
        assert len(found.splits["test"]) == 24
        assert "1 of 7 volumes (1 of 25 slices) have one slice only" in caplog.text

    @pytest.mark.parametrize(
        "change", [CONTRAST, {"track": "aligned", "slice_step": 4}]
    )
    def test_none_is_left(self, tmp_path, cache, change):
        root = nifti_root(tmp_path / "n", contrasts="T1W")
        with pytest.raises(DataError) as error:
            prepare(settings(root, cache, **change))
        one_line(error.value, "E312", "such volumes)")

    def test_the_key_is_of_all_slices(self, tmp_path, cache):
        root = nifti_root(tmp_path / "n")
        (root / "patient00/study1_T2W.nii.gz").unlink()
        keys = {
            prepare(settings(root, cache, **change)).key
            for change in ({}, self.CONTRAST, {"track": "aligned"})
        }
        assert len(keys) == 1


class TestDamage:
    def test_interrupted_build_is_never_read(self, root, cache, monkeypatch):
        reads = []

        def failing(volume):
            reads.append(volume)
            if len(reads) == 5:
                raise KeyboardInterrupt
            return fastmri.read(volume)

        monkeypatch.setattr(
            fastmri, "SOURCE", fastmri.Source("fastmri", fastmri.scan, failing)
        )
        with pytest.raises(KeyboardInterrupt):
            prepare(settings(root, cache))
        assert not incomplete(cache)
        assert len(prepare(settings(root, cache)).splits["train"]) == 16

    def test_read_error_while_building_is_one_line(self, root, cache, monkeypatch):
        reads = []

        def failing(volume):
            reads.append(volume)
            if len(reads) == 5:
                raise DataError("E302", f"{volume.path}: gone; fetch the file again")
            return fastmri.read(volume)

        monkeypatch.setattr(
            fastmri, "SOURCE", fastmri.Source("fastmri", fastmri.scan, failing)
        )
        with pytest.raises(DataError) as error:
            prepare(settings(root, cache))
        one_line(error.value, "E302", "gone")

    def test_killed_build(self, root, cache):
        code = KILLED.format(root=str(root), cache=str(cache))
        assert run_python(code).returncode == 9
        assert len(incomplete(cache)) == 1
        found = prepare(settings(root, cache))
        assert len(found.splits["train"]) == 16
        assert not incomplete(cache)

    def test_two_processes_at_once(self, root, cache):
        code = (
            "from daasr_jax.data import *; "
            f"found = prepare(DataSettings(root={str(root)!r}, size=32, "
            f"cache_dir={str(cache)!r})); "
            "print(found.key, sum(float(t.image(i).sum()) "
            "for t in found.splits.values() for i in range(len(t))))"
        )
        both = [start_python(code) for _ in range(2)]
        outputs = [process.communicate(timeout=120) for process in both]
        assert [process.returncode for process in both] == [0, 0], outputs
        assert outputs[0][0] == outputs[1][0]

    @pytest.mark.parametrize("what", ["flip", "truncate", "remove", "add", "index"])
    def test_changed_set_is_refused(self, root, cache, what):
        prepare(settings(root, cache))
        directory, path = first_volume(cache)
        data = bytearray(path.read_bytes())
        if what == "flip":
            data[len(data) // 2] ^= 1
            path.write_bytes(data)
        elif what == "truncate":
            path.write_bytes(data[:-1])
        elif what == "remove":
            path.unlink()
        elif what == "add":
            path = directory / "more"
            path.write_bytes(b"x")
        else:
            path = directory / "index.json"
            path.write_text(path.read_text().replace("0,", "1,"))
        with pytest.raises(DataError) as error:
            prepare(settings(root, cache))
        one_line(error.value, "E311", path.name, f"delete the folder {directory}")
        shutil.rmtree(directory)
        assert len(prepare(settings(root, cache)).splits["train"]) == 16

    def test_lost_manifest(self, root, cache):
        prepare(settings(root, cache))
        directory, _ = first_volume(cache)
        (directory / "manifest.json").unlink()
        with pytest.raises(DataError) as error:
            prepare(settings(root, cache))
        one_line(error.value, "E311", "manifest.json", directory)

    def test_record_damaged_after_opening(self, root, cache):
        tables = prepare(settings(root, cache)).splits.values()
        _, path = first_volume(cache)
        data = bytearray(path.read_bytes())
        for place in range(0, len(data), 64):
            data[place] ^= 255
        path.write_bytes(data)
        with pytest.raises(DataError) as error:
            [table.image(i) for table in tables for i in range(len(table))]
        one_line(error.value, "E311", "delete the folder")


class TestPlace:
    def test_full_disk_is_seen_before_the_build(self, root, cache, monkeypatch):
        usage = shutil.disk_usage(root)._replace(free=1000)
        monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
        with pytest.raises(ResourceError) as error:
            prepare(settings(root, cache))
        one_line(error.value, "E601", cache, "--config.data.cache_dir")

    def test_cache_that_cannot_be_written(self, root, tmp_path):
        (tmp_path / "file").write_text("x")
        with pytest.raises(ResourceError) as error:
            prepare(settings(root, tmp_path / "file/cache"))
        one_line(error.value, "E602", tmp_path / "file/cache")

    def test_default_place(self, monkeypatch, tmp_path):
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
        assert DataSettings().cache_path == tmp_path / "daasr_jax"
        monkeypatch.delenv("XDG_CACHE_HOME")
        assert DataSettings().cache_path == Path("~/.cache/daasr_jax").expanduser()

    def test_the_data_folder_is_not_touched(self, root, cache):
        before = {p: p.stat().st_mtime_ns for p in root.rglob("*")}
        prepare(settings(root, cache))
        assert {p: p.stat().st_mtime_ns for p in root.rglob("*")} == before


def test_training_on_a_prepared_set(root, cache):
    train = prepare(settings(root, cache)).splits["train"]
    run = {"batch_size": 4, "crop": 4, "scale": 4, "steps": 5, "seed": 0}
    batches = list(training_batches(train, **run))
    assert len(batches) == 5
    assert all(0 <= b["hr"].min() <= b["hr"].max() <= 1 for b in batches)


KILLED = """
import os
from daasr_jax.data import DataSettings, prepare, store
from daasr_jax.data.sources import fastmri
reads = []
def dying(volume):
    reads.append(volume)
    if len(reads) == 5:
        store._files = lambda folder: os._exit(9)
    return fastmri.read(volume)
fastmri.SOURCE = fastmri.Source("fastmri", fastmri.scan, dying)
prepare(DataSettings(root={root!r}, cache_dir={cache!r}, size=32))
"""


def start_python(code):
    return subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run_python(code):
    process = start_python(code)
    out, err = process.communicate(timeout=120)
    return subprocess.CompletedProcess(code, process.returncode, out, err)
