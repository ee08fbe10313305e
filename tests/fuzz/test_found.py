"""Inputs that fuzzing found to end in a traceback, in no end or in a silent loss."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
import zipfile

import numpy as np
import pytest

from daasr_jax import released
from daasr_jax.data import draw_pairing, load_pairing
from daasr_jax.data.settings import DataSettings
from daasr_jax.data.sources import fastmri, fastmri_probe
from daasr_jax.data.splits import assign_splits
from daasr_jax.errors import CheckpointError, ConfigError, DataError, UserError
from daasr_jax.experiment import record, saved_run, subjects
from daasr_jax.experiment.begun import check_new
from daasr_jax.experiment.configuration import load
from daasr_jax.files import read_json
from daasr_jax.scans import read_scan
from daasr_jax.training.checkpoints import Checkpoints
from daasr_jax.training.manifest import seal
from daasr_jax.training.writers import read_log
from daasr_jax.weights import vgg
from tests.data_fixtures import fastmri_root, one_line, settings, write_rss
from tests.fuzz.mutations import Deep
from tests.fuzz.readers import (
    _LAYERS,
    READERS,
    _record,
    _resealed,
    _state,
    _table,
    _vgg_zipped,
    _volumes,
    check_line,
)
from tests.unit.test_checkpoints import kept, write  # noqa: F401

NESTED = Deep(100_000)(b"")
# The heap of a file's texts begins with this; its first text's length follows.
HEAP, LENGTH_AT = b"GCOL", 24


def loops(path):
    """A file whose first text is so long that its end comes before its beginning."""
    data = path.read_bytes()
    at = data.index(HEAP) + LENGTH_AT
    path.write_bytes(data[:at] + (2**64 - 16).to_bytes(8, "little") + data[at + 8 :])
    return path


class TestHDF5:
    @pytest.fixture(autouse=True)
    def _quick(self, monkeypatch):
        monkeypatch.setattr(fastmri_probe, "_LIMIT_SECONDS", 1)
        fastmri_probe._started.cache_clear()
        yield
        fastmri_probe._started.cache_clear()

    def test_a_loop_of_the_library_is_a_bad_file_among_others(self, tmp_path):
        root = fastmri_root(tmp_path / "data", train=3, val=2)
        bad = [loops(root / f"multicoil_train/file_00{i}.h5") for i in (0, 2)]
        with pytest.raises(DataError) as caught:
            fastmri.scan(settings(root, tmp_path / "cache"))
        one_line(caught.value, "E302", "2 of 5 files", *bad, "loops without end")

    def test_a_scan_to_enhance(self, tmp_path):
        path = loops(write_rss(tmp_path / "f.h5", 1, "s"))
        with pytest.raises(DataError) as caught:
            read_scan(path)
        one_line(caught.value, "E342", path, "loops without end")

    def test_where_no_other_process_starts_the_file_is_read(
        self, tmp_path, monkeypatch
    ):
        monkeypatch.setattr(fastmri_probe, "_READER", "raise SystemExit(1)")
        path = write_rss(tmp_path / "f.h5", 1, "s")
        assert read_scan(path).voxels.any()


class TestNested:
    """JSON nested deeper than Python reads."""

    def test_every_reader_of_json(self, tmp_path):
        path = tmp_path / "config.json"
        path.write_bytes(NESTED)
        for name in ("subjects.json", "metrics.jsonl", "index.json"):
            shutil.copy(path, tmp_path / name)
        shutil.copy(released.FOLDER / "x2.safetensors", tmp_path)
        with pytest.raises(ValueError, match="nested"):
            read_json(path)
        data = DataSettings(layout="template", split_file=str(path))
        refusals = {
            "E330": lambda: assign_splits(_volumes(), data),
            "E313": lambda: load_pairing(path, _table()),
            "E225": lambda: load(str(path)),
            "E404": lambda: saved_run.open_record(tmp_path),
            "E416": lambda: subjects.read_seen(tmp_path),
            "E421": lambda: released.load(tmp_path / "x2.safetensors"),
        }
        for code, read in refusals.items():
            with pytest.raises(UserError) as caught:
                read()
            assert caught.value.code == code
            one_line(caught.value)
        assert read_log(tmp_path) == []


class TestPairs:
    def pairing(self, folder, change):
        path = folder / "pairs.json"
        draw_pairing(_table(), seed=0, count=2).save(path)
        content = json.loads(path.read_text())
        change(content["pairs"])
        path.write_bytes(_resealed(json.dumps(content).encode()))
        with pytest.raises(DataError) as caught:
            load_pairing(path, _table())
        one_line(caught.value, "E313")

    def test_a_list_for_a_name(self, tmp_path):
        self.pairing(tmp_path, lambda pairs: pairs[0].__setitem__(1, []))

    def test_a_slice_twice(self, tmp_path):
        self.pairing(tmp_path, lambda pairs: pairs.append(pairs[0]))


class TestDicom:
    @pytest.fixture
    def dicom(self):
        pytest.importorskip("pydicom", reason="pydicom, the extra dicom, is absent")
        from tests.unit import test_scans_dicom

        return test_scans_dicom

    def refusal(self, folder):
        with pytest.raises(DataError) as caught:
            read_scan(folder)
        check_line(caught.value)
        return str(caught.value)

    def test_texts_that_cannot_be_printed(self, tmp_path, dicom):
        folder = dicom.write(tmp_path / "s", dicom.series_of(dicom.pixels()))
        for path in folder.iterdir():
            data = path.read_bytes().replace(b"MONOCHROME2 ", b"\x01\x1b[2JHROME2 ")
            path.write_bytes(data)
        assert r"colours (\x01\x1b[2JHROME2" in self.refusal(folder)

    def test_a_length_beyond_the_memory(self, tmp_path, dicom, monkeypatch):
        def refuse(*_, **__):
            raise MemoryError

        folder = dicom.write(tmp_path / "s", dicom.series_of(dicom.pixels()))
        monkeypatch.setattr(dicom.pydicom, "dcmread", refuse)
        assert "MemoryError" in self.refusal(folder)

    def test_a_slice_that_is_no_dicom_any_more_is_told(self, tmp_path, dicom):
        folder = dicom.write(tmp_path / "s", dicom.series_of(dicom.pixels()))
        places = {
            dicom.pydicom.dcmread(path).ImagePositionPatient[2]: path
            for path in folder.iterdir()
        }
        last = places[max(places)]
        data = bytearray(last.read_bytes())
        data[128] ^= 1  # DICM
        last.write_bytes(data)
        scan = read_scan(folder)
        assert scan.voxels.shape[2] == dicom.SHAPE[0] - 1
        assert any("holds 1 files beside the images" in r for r in scan.remarks)


def test_npz_that_quotes_its_content(tmp_path):
    header = io.BytesIO()
    np.save(header, np.zeros((4, 12, 12), np.float32))
    data = header.getvalue().replace(b"'descr'", b"'de\\xr'").replace(b" \n", b"\x01\n")
    path = tmp_path / "a.npz"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("voxels.npy", data)
    with pytest.raises(DataError) as caught:
        read_scan(path)
    check_line(caught.value)


def test_vgg_whose_array_has_a_header_that_is_no_python(tmp_path, monkeypatch):
    monkeypatch.setattr(vgg, "LAYERS", _LAYERS)
    READERS["vgg"].make(tmp_path)
    kernel = (tmp_path / "inside/w").read_bytes()
    path = tmp_path / "w.npz"
    for damaged in (b"(3, (3,", b"{3: 3,"):  # ends within a bracket, or is none
        path.write_bytes(_vgg_zipped(kernel.replace(b"(3, 3,", damaged)))
        with pytest.raises(ConfigError) as caught:
            vgg.read_vgg19(path)
        one_line(caught.value, "E232", path, "cannot be read")
        check_line(caught.value)


def test_vgg_whose_member_has_another_name_of_any_length(tmp_path, monkeypatch):
    """The library quotes the name that the damaged archive has for it."""
    monkeypatch.setattr(vgg, "LAYERS", _LAYERS)
    READERS["vgg"].make(tmp_path)
    path = tmp_path / "deflated/w"
    data = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as file:
        at = file.getinfo("block2_conv1.kernel.npy").header_offset
    data[at + 26 : at + 28] = (3000).to_bytes(2, "little")  # of the name
    path.write_bytes(data)
    with pytest.raises(ConfigError) as caught:
        vgg.read_vgg19(path)
    one_line(caught.value, "E232", "File name in directory")
    check_line(caught.value)


class TestRecord:
    """A record whose values are of other kinds."""

    @pytest.mark.parametrize(
        ("key", "value", "said"),
        [
            ("losses", [], "losses is []"),
            ("losses.rec.weight", "x", "losses.rec.weight is 'x'"),
            ("evaluate", 0.5, "evaluate is 0.5"),
            ("data.size", "64", "data.size is '64'"),
            ("train.augment", 1, "train.augment is 1"),
            ("model.name", None, "model.name is None"),
            ("adversarial.optimiser", None, "adversarial.optimiser is None"),
        ],
    )
    def test_run_is_refused(self, key, value, said, tmp_path):
        content = json.loads(json.dumps(_record()))
        *path, name = key.split(".")
        inner = content["config"]
        for part in path:
            inner = inner[part]
        inner[name] = value
        (tmp_path / "config.json").write_text(json.dumps(content))
        with pytest.raises(CheckpointError) as caught:
            saved_run.open_record(tmp_path)
        one_line(caught.value, "E405", said)

    @pytest.mark.parametrize("model", [{}, [], {"name": None}, "daasr"])
    def test_list_of_runs(self, model, tmp_path):
        content = json.loads(json.dumps(_record()))
        for name, own in (("good", content["config"]["model"]), ("bad", model)):
            content["config"]["model"] = own
            (tmp_path / name).mkdir()
            (tmp_path / name / "config.json").write_text(json.dumps(content))
        listed = saved_run.list_runs(tmp_path)
        assert "good: " in listed
        assert "bad: " not in listed

    @pytest.mark.parametrize(
        "text",
        [
            *("null", "[]", "3", '{"config": 1}', '{"config": {}, "batch": [0]}'),
            '{"config": {}, "commit": "c", "batch": 1}',
        ],
    )
    def test_no_record(self, text, tmp_path):
        (tmp_path / "config.json").write_text(text)
        assert record.read_record(tmp_path) == {}
        config = _record()["config"]
        with pytest.raises(ConfigError) as caught:
            record.record_config(config, tmp_path, {}, begun=True)
        one_line(caught.value, "E208", "config.json cannot be read")

    @pytest.mark.parametrize("value", [0.5, [["x"]], [1], None, {"x": "y"}])
    def test_subjects(self, value, tmp_path):
        seen = {"salt": "s", "subjects": {"train": value}, "volumes": {}}
        (tmp_path / "subjects.json").write_text(json.dumps(seen))
        with pytest.raises(CheckpointError) as caught:
            subjects.read_seen(tmp_path)
        one_line(caught.value, "E416")

    def test_log(self, tmp_path):
        steps = [1, None, "x", [], float("inf"), 2]
        lines = [json.dumps({"step": step}) for step in steps]
        (tmp_path / "metrics.jsonl").write_text("\n".join(lines))
        assert [row["step"] for row in read_log(tmp_path)] == [1, 2]
        check_new(tmp_path, 5)


# Orbax leaves tasks and files behind where a damaged array stops it.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
class TestCheckpoints:
    def test_evaluation_passes_over_damaged_metrics(self, kept):  # noqa: F811
        (kept / "checkpoints/2/metrics/metrics").write_text("{")  # of the best
        store = Checkpoints(kept, read_only=True)
        assert store.steps() == [3, 4]
        assert store.best() == 3
        store.close()

    @pytest.mark.parametrize("name", ["state/_METADATA", "metrics/metrics", "state/d"])
    def test_no_checkpoint_though_its_manifest_agrees(self, name, tmp_path):
        store = Checkpoints(tmp_path)
        store.save(1, _state(1), {"psnr": 30.0})
        store.close()
        step = tmp_path / "checkpoints/1"
        paths = [step / name] if (step / name).is_file() else (step / name).rglob("*")
        for path in [p for p in paths if p.is_file()]:
            path.write_bytes(b"[" + path.read_bytes()[7:])
        seal(step, tmp_path / "manifests/1.json")

        def read():
            with contextlib.closing(Checkpoints(tmp_path, read_only=True)) as store:
                store.best()
                store.restore(1, _state(0))

        with pytest.raises(CheckpointError) as caught:
            read()
        one_line(caught.value, "E419", tmp_path)

    @pytest.mark.parametrize("content", ["[]", "3", "{}"])
    def test_manifest_of_nothing(self, content, kept):  # noqa: F811
        (kept / "manifests/4.json").write_text(content)
        store = Checkpoints(kept, read_only=True)
        assert store.steps() == [2, 3]
        store.close()


def test_every_reader_is_fuzzed_in_the_short_form():
    from tests.fuzz.test_fuzz import SHORT

    assert SHORT.keys() == READERS.keys()
