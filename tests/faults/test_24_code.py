"""Fault 24: a file that would run code when it is read.

Expected: nothing is unpickled and no plugin of HDF5 is loaded: arrays of objects,
PyTorch files and unknown filters are refused. PyTorch weights are read by the importer
alone, with `weights_only=True`. Configuration files are Python and are trusted.
"""

from __future__ import annotations

import ast
import os
import pickle
from pathlib import Path

import h5py
import numpy as np
import pytest

import daasr_jax
from daasr_jax import released
from daasr_jax.data import DataSettings, load_pairing
from daasr_jax.data.sources import choose_source
from daasr_jax.errors import DataError, UserError
from daasr_jax.scans import read_scan
from daasr_jax.weights.vgg import read_vgg19
from tests.data_fixtures import one_line, table

PACKAGE = Path(daasr_jax.__file__).parent
FORBIDDEN = {
    "pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "torch",
    "marshal", "shelve", "yaml", "ruamel", "jsonpickle",
}  # fmt: skip


def imports(node: ast.AST) -> set[str]:
    if isinstance(node, ast.Import):
        return {alias.name.split(".")[0] for alias in node.names}
    if isinstance(node, ast.ImportFrom) and not node.level:
        return {(node.module or "").split(".")[0]}
    return set()


@pytest.mark.parametrize(
    "path", sorted(PACKAGE.rglob("*.py")), ids=lambda p: str(p.relative_to(PACKAGE))
)
def test_24_nothing_is_unpickled(path):
    """No module imports what runs code, but a function of `weights/torch.py` torch."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found = set().union(*(imports(node) for node in ast.walk(tree))) & FORBIDDEN
    at_top = set().union(*(imports(node) for node in tree.body)) & FORBIDDEN
    assert found == ({"torch"} if path.name == "torch.py" else set())
    assert not at_top
    for node in ast.walk(tree):
        if isinstance(node, ast.keyword) and node.arg == "allow_pickle":
            assert isinstance(node.value, ast.Constant)
            assert node.value.value is False
        if isinstance(node, ast.keyword) and node.arg == "weights_only":
            assert isinstance(node.value, ast.Constant)
            assert node.value.value is True


class Bomb:
    """Makes a folder where it is unpickled."""

    def __init__(self, place):
        self.place = str(place)

    def __reduce__(self):
        return os.mkdir, (self.place,)


@pytest.mark.parametrize("name", ["a.npz", "a.npy", "a.pkl", "a.nii", "a.safetensors"])
def test_24_no_reader_unpickles(tmp_path, name):
    place, path = tmp_path / "was_run", tmp_path / name
    if name == "a.npz":
        np.savez(path, voxels=np.array([[[Bomb(place)]]]))
    elif name == "a.npy":
        np.save(path, np.array([[[Bomb(place)]]]), allow_pickle=True)
    else:
        path.write_bytes(pickle.dumps(Bomb(place)))
    for read in (
        read_scan,
        read_vgg19,
        released.load,
        lambda path: load_pairing(path, table()),
    ):
        with pytest.raises(UserError) as error:
            read(path)
        one_line(error.value)
    assert not place.exists()
    pickle.loads(path.read_bytes()) if name == "a.pkl" else None
    assert place.exists() == (name == "a.pkl")  # it would have been run


def test_24_a_filter_of_hdf5_that_is_a_plugin(tmp_path):
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        file.attrs["patient_id"] = "p"
        file.create_dataset(
            "reconstruction_rss", (4, 16, 16), "f4", chunks=(1, 16, 16),
            compression=None, fletcher32=True,
        )  # fmt: skip
    data = path.read_bytes()
    with h5py.File(path) as file:
        plist = file["reconstruction_rss"].id.get_create_plist()
        assert plist.get_filter(0)[0] == h5py.h5z.FILTER_FLETCHER32
    # the filter's message: its number 3 becomes that of a plugin, 32015 (zstd)
    at = data.index(b"\x03\x00", data.index(b"fletcher32") - 12)
    path.write_bytes(data[:at] + (32015).to_bytes(2, "little") + data[at + 2 :])
    settings = DataSettings(root=str(tmp_path))
    with pytest.raises(DataError) as error:
        choose_source(settings).scan(settings)
    one_line(error.value, "E302", path, "HDF5 filter 32015, which is refused")
