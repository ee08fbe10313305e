"""Prepared volumes in the cache: made once, found again, whole or absent."""

import errno
import logging
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from daasr_jax import files
from daasr_jax.data import DataSettings, locking, prepare, store
from daasr_jax.data.sources import fastmri, nifti
from daasr_jax.data.table import SliceRecord
from daasr_jax.errors import DataError, ResourceError
from tests.data_fixtures import (
    SIZE,
    fastmri_root,
    nifti_root,
    one_line,
    scan_voxels,
    settings,
    write_nifti,
)

ROOT = Path(__file__).parents[2]


@pytest.fixture
def reads(monkeypatch):
    """The keys of the volumes that were read."""
    seen = []
    for module, name in ((fastmri, "fastmri"), (nifti, "nifti")):

        def read(volume, read=module.read):
            seen.append(volume.key)
            return read(volume)

        source = type(module.SOURCE)(name, module.scan, read)
        monkeypatch.setattr(module, "SOURCE", source)
    return seen


class TestByVolume:
    def test_every_volume_is_read_once(self, root, cache, reads):
        prepare(settings(root, cache))
        assert len(reads) == len(set(reads)) == 8

    @pytest.mark.parametrize(
        "change",
        [
            {"seed": 1},
            {"val_fraction": 0.0},
            {"n_volumes": 5},
            {"train_subjects": ("train00", "train03"), "test_subjects": ("02", "05")},
            {"whole": "test"},
            {"slice_range": (0.0, 0.99)},  # of four slices the same
        ],
    )
    def test_another_split_prepares_nothing(self, root, cache, reads, change):
        first = prepare(settings(root, cache))
        reads.clear()
        assert prepare(settings(root, cache, **change)).directory == first.directory
        assert not reads

    @pytest.mark.parametrize(
        "change", [{"size": 48}, {"resize": "pad"}, {"slice_step": 2}]
    )
    def test_another_preparation_reads_again(self, root, cache, reads, change):
        prepare(settings(root, cache))
        reads.clear()
        prepare(settings(root, cache, **change))
        assert len(reads) == 8

    def test_a_new_volume_is_prepared_alone(self, root, cache, reads):
        prepare(settings(root, cache, n_volumes=0))
        reads.clear()
        fastmri_root(root.parent / "more", train=7)
        more = root.parent / "more/multicoil_train/file_006.h5"
        more.rename(root / "multicoil_train/file_006.h5")
        prepare(settings(root, cache, n_volumes=0))
        assert reads == ["multicoil_train/file_006"]

    def test_sets_of_another_version_are_named(self, root, cache, caplog):
        caplog.set_level(logging.INFO, "daasr_jax")
        (cache / "prepared").mkdir(parents=True)
        for _ in range(2):
            prepare(settings(root, cache))
        said = [r.getMessage() for r in caplog.records]
        (line,) = [text for text in said if "another version" in text]
        assert str(cache / "prepared") in line

    def test_images_travel_to_another_process(self, root, cache, monkeypatch):
        monkeypatch.setattr(store, "_OPEN_FILES", 2)
        found = prepare(settings(root, cache)).splits["train"]
        records = [
            SliceRecord(v, s, c, "", int(i), 4)
            for v, s, c, i in zip(
                found.volumes, found.subjects, found.contrasts, found.index, strict=True
            )
        ]
        stored = store.prepare_volumes(
            fastmri.SOURCE,
            [v for v in fastmri.scan(settings(root, cache)) if v.role == "train"],
            settings(root, cache),
        )
        images = store.StoredImages(records, stored, SIZE)
        again = pickle.loads(pickle.dumps(images))
        for i in (0, len(records) - 1, 5, 0):
            np.testing.assert_array_equal(again(i), found.image(i))
            np.testing.assert_array_equal(images(i), found.image(i))

    def test_only_one_process_need_compare_the_files(self, root, cache, monkeypatch):
        first = prepare(settings(root, cache))
        hashed = []
        monkeypatch.setattr(store, "file_hash", hashed.append)
        assert prepare(settings(root, cache), check=False).key == first.key
        assert not hashed


COUNTED = """
import sys
from daasr_jax.data import DataSettings, prepare
from daasr_jax.data.sources import fastmri
def counted(volume):
    print(volume.key)
    return fastmri.read(volume)
fastmri.SOURCE = fastmri.Source("fastmri", fastmri.scan, counted)
prepare(DataSettings(root={root!r}, cache_dir={cache!r}, size=32))
"""


@pytest.mark.full
def test_two_processes_read_every_volume_once(root, cache):
    code = COUNTED.format(root=str(root), cache=str(cache))
    both = [
        subprocess.Popen(
            [sys.executable, "-c", code],
            cwd=ROOT,
            env={**os.environ, "JAX_PLATFORMS": "cpu"},
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    outputs = [process.communicate(timeout=120)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert len("".join(outputs).split()) == 8


def restored(path, write):
    """Writes and sets the time of change back, as tar and rsync do."""
    before = path.stat()
    write(path)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


class TestStamp:
    """Voxels that change under the same size and time are seen."""

    @pytest.mark.parametrize("how", ["written anew", "in place", "renamed over"])
    def test_content_decides(self, tmp_path, cache, how):
        root = tmp_path / "n"
        for i in range(4):
            write_nifti(root / f"p{i}/T1.nii", scan_voxels(i))
        before = prepare(settings(root, cache)).splits["test"]
        path = root / f"{before.volumes[0]}.nii"
        i = int(before.subjects[0][1:])
        flipped = scan_voxels(i)[..., ::-1]
        other = write_nifti(tmp_path / "other/T1.nii", flipped)
        data = other.read_bytes()
        assert len(data) == path.stat().st_size

        def in_place(path):
            with path.open("r+b") as file:
                file.write(data)

        if how == "renamed over":
            status = path.stat()
            os.utime(other, ns=(status.st_atime_ns, status.st_mtime_ns))
            other.rename(path)
        else:
            restored(path, in_place if how == "in place" else new_file(data))
        after = prepare(settings(root, cache)).splits["test"]
        for place in range(4):
            image = after.image(place)
            assert not np.array_equal(image, before.image(place))
            np.testing.assert_allclose(
                image[:, ::-1], before.image(place), atol=1e-6, rtol=0
            )

    def test_an_untouched_file_is_not_read_again(self, root, cache, reads):
        prepare(settings(root, cache))
        (root / "multicoil_val/file_000.h5").read_bytes()
        prepare(settings(root, cache))
        assert len(reads) == 8


def new_file(data):
    def write(path):
        path.unlink()
        path.write_bytes(data)

    return write


LATIN = os.fsdecode(b"\xe9t\xe9")


class TestNames:
    """Names that are not UTF-8."""

    @pytest.mark.parametrize("where", ["root", "subject", "file"])
    def test_bytes_of_another_encoding(self, tmp_path, cache, where):
        root = nifti_root(tmp_path / "n")
        if where == "root":
            root = root.rename(tmp_path / LATIN)
        elif where == "subject":
            for folder in list(root.iterdir()):
                folder.rename(root / (folder.name + LATIN))
        else:
            for path in list(root.rglob("*T1W*")):
                path.rename(path.with_name(f"{LATIN}_T1W.nii.gz"))
        found = prepare(settings(root, cache))
        names = [found.dataset, *found.subjects["train"], *found.splits["train"].keys]
        assert "".join(names).encode()
        assert r"\xe9t\xe9" in "".join(names)
        table = found.splits["train"]
        assert table.image(0).shape == (SIZE, SIZE, 1)
        found.write_split(tmp_path / "split.json")
        again = prepare(settings(root, cache, split_file=str(tmp_path / "split.json")))
        assert again.key == found.key

    def test_the_posix_locale_gives_the_same_names(self, tmp_path, cache):
        root = nifti_root(tmp_path / "n")
        for folder in list(root.iterdir()):
            folder.rename(root / (folder.name + "é"))
        key = prepare(settings(root, cache)).key
        code = (
            "from daasr_jax.data import *; print(prepare(DataSettings("
            f"root={str(root)!r}, cache_dir={str(cache)!r}, size=32)).key)"
        )
        env = {"LC_ALL": "POSIX", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
        done = subprocess.run(
            [sys.executable, "-c", code],
            cwd=ROOT,
            env={**os.environ, "JAX_PLATFORMS": "cpu", **env},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.stdout == f"{key}\n", done.stderr

    def test_such_a_cache_is_refused_in_one_line(self, root, tmp_path):
        with pytest.raises(ResourceError) as error:
            prepare(settings(root, tmp_path / LATIN))
        one_line(error.value, "E602", "not UTF-8", "--config.data.cache_dir")


class TestPlace:
    @pytest.mark.parametrize("code", [errno.EACCES, errno.EROFS])
    def test_a_complete_cache_is_only_read(self, root, cache, monkeypatch, code):
        """Another user has filled it, and here it cannot be written."""
        first = prepare(settings(root, cache))

        def refuse(*args, **kwargs):
            raise OSError(code, os.strerror(code))

        monkeypatch.setattr(store, "exclusive", refuse)
        monkeypatch.setattr(store, "write_json", refuse)
        monkeypatch.setattr(Path, "mkdir", refuse)
        assert prepare(settings(root, cache)).key == first.key
        assert prepare(settings(root, cache, seed=3)).key != first.key
        with pytest.raises(ResourceError) as error:
            prepare(settings(root, cache, size=48))
        one_line(error.value, "E602", os.strerror(code), "--config.data.cache_dir")

    @pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
    def test_a_complete_cache_without_write_permission(self, root, cache):
        first = prepare(settings(root, cache))
        for path in [*cache.rglob("*"), cache]:
            path.chmod(0o555 if path.is_dir() else 0o444)
        assert prepare(settings(root, cache)).key == first.key
        for path in [*cache.rglob("*"), cache]:
            path.chmod(0o755)

    @pytest.mark.parametrize("base", ["", "~/cache", "~nobody-here/cache"])
    def test_no_home(self, root, monkeypatch, base):
        monkeypatch.delenv("HOME", raising=False)
        monkeypatch.setenv("XDG_CACHE_HOME", base)
        monkeypatch.setattr(os.path, "expanduser", lambda path: path)
        with pytest.raises(ResourceError) as error:
            prepare(DataSettings(root=str(root)))
        one_line(error.value, "E602", "no home", "--config.data.cache_dir")

    def test_a_tilde_is_the_home_folder(self, root, cache, monkeypatch, tmp_path):
        prepare(settings(root, cache)).write_split(tmp_path / "split.json")
        monkeypatch.setenv("HOME", str(tmp_path))
        found = prepare(
            DataSettings(
                root="~/data",
                cache_dir="~/tilde",
                split_file="~/split.json",
                size=SIZE,
            )
        )
        assert found.dataset == "fastmri:data"
        assert Path(found.directory) == tmp_path / "tilde"


class TestDisk:
    """What was renamed into place is brought to the disk."""

    @pytest.fixture
    def synced(self, monkeypatch):
        seen = []

        def sync(folder):
            seen.append((Path(folder), sorted(p.name for p in Path(folder).iterdir())))

        monkeypatch.setattr(files, "sync_folder", sync)
        monkeypatch.setattr(locking, "sync_folder", sync)
        return seen

    def test_file(self, tmp_path, synced):
        files.write_atomically(tmp_path / "a/b.json", "x")
        assert synced == [(tmp_path / "a", ["b.json"])]

    def test_folder(self, tmp_path, synced):
        with locking.new_folder(tmp_path / "done") as folder:
            (folder / "deep").mkdir()
            (folder / "deep/x").write_text("x")
            locking.publish(folder, tmp_path / "done")
        assert synced[0] == (folder / "deep", ["x"])
        assert synced[-1] == (tmp_path, ["done"])

    def test_a_file_system_without_this_order(self, tmp_path, monkeypatch):
        def refuse(descriptor, code):
            raise OSError(code, os.strerror(code))

        monkeypatch.setattr(os, "fsync", lambda d: refuse(d, errno.EINVAL))
        files.sync_folder(tmp_path)
        monkeypatch.setattr(os, "fsync", lambda d: refuse(d, errno.EIO))
        with pytest.raises(OSError, match=os.strerror(errno.EIO)):
            files.sync_folder(tmp_path)


@pytest.mark.parametrize("part", ["content", "index"])
def test_a_record_of_another_slice(root, cache, part):
    scanned = [v for v in fastmri.scan(settings(root, cache)) if v.role == "val"]
    stored = store.prepare_volumes(fastmri.SOURCE, scanned, settings(root, cache))
    key = scanned[0].key
    record = SliceRecord(key, "val00", "AXT2", "", int(part == "index"), 4)
    if part == "content":
        stored[key] = store.Stored("0" * 64, stored[key].folder)
    images = store.StoredImages([record], stored, SIZE)
    with pytest.raises(DataError) as error:
        images(0)
    one_line(error.value, "E311", stored[key].folder, "record 0")
