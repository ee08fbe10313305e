"""Fault 11: the data or the settings change, and a cache of before lies there.

Expected: prepared slices are named by the content of their volume, the preparation and
its version. So a change is seen, also under the same size and time of a file. A build
that was interrupted is never read.
"""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest

from daasr_jax.data import prepare, store
from tests.data_fixtures import nifti_root, scan_voxels, settings, write_nifti
from tests.e2e.commands import ROOT

KILLED = """
import os
from daasr_jax.data import DataSettings, prepare, store
files, n = store.file_hash, 0
def killed(path):
    global n
    n += 1
    return files(path) if n < {at} else os.kill(os.getpid(), 9)
store.file_hash = killed
prepare(DataSettings(root={root!r}, cache_dir={cache!r}, size=32))
"""


def images(found):
    return {
        key: table.image(i)
        for table in found.splits.values()
        for i, key in enumerate(table.keys)
    }


def test_11_other_voxels_under_the_same_size_and_time(tmp_path):
    root, cache = nifti_root(tmp_path / "n", contrasts="T1W"), tmp_path / "cache"
    for i in range(6):
        (root / f"patient{i:02d}/study1_T1W.nii.gz").unlink()
        write_nifti(root / f"patient{i:02d}/study1_T1W.nii", scan_voxels(i))
    before = prepare(settings(root, cache))
    path = root / "patient02/study1_T1W.nii"
    status = path.stat()
    write_nifti(path, scan_voxels(2)[..., ::-1])
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert path.stat().st_size == status.st_size
    after = prepare(settings(root, cache))
    assert after.key != before.key
    old, new = images(before), images(after)
    for key, image in new.items():
        if key.startswith("patient02"):
            np.testing.assert_allclose(image, old[key][:, ::-1], atol=1e-5)
        else:
            np.testing.assert_array_equal(image, old[key])


def test_11_other_settings_and_another_version(tmp_path, monkeypatch):
    root, cache = nifti_root(tmp_path / "n", contrasts="T1W"), tmp_path / "cache"
    seen = {}
    for name, given in {
        "plain": {},
        "again": {},
        "size": {"size": 48},
        "pad": {"resize": "pad"},
        "step": {"slice_step": 2},
        "part": {"slice_range": (0.0, 0.5)},
    }.items():
        found = prepare(settings(root, cache, **given))
        size = given.get("size", 32)
        assert {x.shape for x in images(found).values()} == {(size, size, 1)}
        seen[name] = found.key
    assert seen["plain"] == seen.pop("again")
    monkeypatch.setattr(store, "PREPARATION_VERSION", store.PREPARATION_VERSION + 1)
    seen["version"] = prepare(settings(root, cache)).key
    assert len(set(seen.values())) == len(seen)


@pytest.mark.parametrize("at", [2, 9])
def test_11_a_killed_build_is_never_read(tmp_path, at):
    root, cache = nifti_root(tmp_path / "n", contrasts="T1W"), tmp_path / "cache"
    code = KILLED.format(root=str(root), cache=str(cache), at=at)
    killed = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
        timeout=200,
        capture_output=True,
        check=False,
    )
    assert killed.returncode == -9, killed.stderr
    found = prepare(settings(root, cache))
    fresh = prepare(settings(root, tmp_path / "fresh"))
    assert found.key == fresh.key
    whole = images(fresh)
    for key, image in images(found).items():
        np.testing.assert_array_equal(image, whole[key])
