"""Fault 14: the disk is full, or becomes so, at a checkpoint, the log or a result.

Expected: one line and exit code 6, without words of threads. Room is asked for before
the first step and before each checkpoint, and earlier checkpoints stay. The log pauses
and training goes on. An evaluation shows its table whatever becomes of its files.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import threading

import numpy as np
import pytest

from daasr_jax.errors import ResourceError
from daasr_jax.training import checkpoints, disk, writers
from daasr_jax.training.checkpoints import Checkpoints
from daasr_jax.training.writers import RunWriter
from tests.data_fixtures import fastmri_root, one_line
from tests.e2e.commands import SMALL, complaint, run_all
from tests.unit.test_checkpoints import opened, state


@pytest.fixture
def mounted(tmp_path):
    """Makes a file system of some KiB in memory, at a place of its own."""
    places = []

    def mount(size: int, name: str = "small"):
        place = tmp_path / name
        place.mkdir()
        options = ["-t", "tmpfs", "-o", f"size={size}k", "tmpfs", str(place)]
        if (
            not shutil.which("mount")
            or subprocess.run(
                ["mount", *options], capture_output=True, check=False
            ).returncode
        ):
            pytest.skip("no right to mount a file system in memory")
        places.append(place)
        return place

    yield mount
    for place in places:
        subprocess.run(["umount", "-l", str(place)], check=True)


def fill(place, leave: int = 0):
    """Takes all the room of a file system but some bytes."""
    free = shutil.disk_usage(place).free - leave
    with contextlib.suppress(OSError), (place / "ballast").open("wb") as file:
        file.write(bytes(free))


def large(step, mib=2):
    """A state whose kernel takes that much."""
    kernel = np.random.default_rng(step).random((mib, 2**18)).astype(np.float32)
    return state(step, gen={"conv": {"kernel": kernel}})


@pytest.mark.timeout(500)
@pytest.mark.parametrize(
    "room", ["full", pytest.param("read-only", marks=pytest.mark.full)]
)
def test_14_commands_on_a_full_disk(tmp_path, mounted, room):
    root, run = fastmri_root(tmp_path / "data", train=4, val=2), tmp_path / "run"
    full, small, closed = (mounted(512, name) for name in ("full", "small", "closed"))
    fill(full)
    subprocess.run(["mount", "-o", "remount,ro", str(closed)], check=True)
    train = ["train.py", *SMALL, f"--config.data.root={root}", "--config.train.steps=1"]
    place, why = (full, "No space left") if room == "full" else (closed, "Read-only")
    cases = {
        "full": [*train, f"--workdir={full}/run"],
        "small": [*train, f"--workdir={small}/run"],
        "trained": [*train, f"--workdir={run}"],
        "result": ["eval.py", f"--workdir={run}", f"--out={place}/result.json"],
    }
    found = dict(
        zip(cases, run_all([*cases.values()], tmp_path / "cache"), strict=True)
    )
    assert found["trained"]["code"] == 0, found["trained"]["err"]
    assert not complaint(found["full"], "E617", 6, str(full), "No space left", "free")
    assert not complaint(found["small"], "E616", 6, "MiB free", "free disk space")
    assert not complaint(found["result"], "E604", 6, why, "--out=FILE.json")
    for words in ("bicubic", "daasr", "checkpoint: step 1 of 1"):
        assert words in found["result"]["out"]
    assert sorted(p.name for p in full.iterdir() if p.suffix) == []


def test_14_room_is_asked_for_before_a_checkpoint(mounted):
    place = mounted(20 * 1024)
    store = Checkpoints(place)
    for step in (1, 2):
        store.save(step, large(step), {"psnr": 20.0})
    fill(place, leave=2**20)
    with pytest.raises(ResourceError) as error:
        store.save(3, large(3), {"psnr": 21.0})
    store.close()
    assert error.value.exit_code == 6
    one_line(error.value, "E616", "needs 2", place, "1.0 MiB free")
    assert opened(place) == ([1, 2], 2, 2)
    (place / "ballast").unlink()
    store = Checkpoints(place)
    store.save(3, large(3), {"psnr": 21.0})
    store.close()
    assert opened(place)[1:] == (3, 3)


def test_14_a_disk_that_fills_while_a_checkpoint_is_written(
    mounted, monkeypatch, capfd
):
    """As with a quota, which nothing tells before. Threads keep to themselves."""
    monkeypatch.setattr(checkpoints, "require", lambda *_: None)
    place = mounted(20 * 1024)
    store = Checkpoints(place)
    store.save(1, large(1), {"psnr": 20.0})
    fill(place, leave=2**19)
    with pytest.raises(ResourceError) as error:
        store.save(2, large(2), {"psnr": 21.0})
    with contextlib.suppress(Exception):
        store.close()
    assert error.value.exit_code == 6
    one_line(error.value, "E603", "checkpoint 2", "free disk space")
    for thread in threading.enumerate():
        if thread is not threading.current_thread() and not thread.daemon:
            thread.join(timeout=5)
    said = capfd.readouterr()
    assert "Traceback" not in said.out + said.err
    assert opened(place, read_only=True) == ([1], 1, 1)


def test_14_the_log_pauses_and_goes_on(mounted, caplog):
    place = mounted(256)
    log = RunWriter(place)
    log.write(1, {"g/total": 1.0})
    fill(place)
    for step in range(2, 400):  # more than the block that the file has
        log.write(step, {"g/total": 1.0, "a name that takes room": float(step)})
    assert caplog.text.count("cannot write the log") == 1
    (place / "ballast").unlink()
    log.write(400, {"g/total": 1.0})
    log.close()
    steps = [row["step"] for row in writers.read_log(place)]
    assert steps[0] == 1
    assert steps[-1] == 400
    assert steps == sorted(set(steps))


def test_14_need_is_that_of_the_arrays(tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(disk.shutil, "disk_usage", lambda _: usage._replace(free=2**22))
    disk.require(tmp_path, {"a": np.zeros(2**19, np.float32)})
    with pytest.raises(ResourceError, match=r"E616.*needs 4\.\d MiB.*4\.0 MiB free"):
        disk.require(tmp_path, {"a": np.zeros(2**20, np.float32)})
    assert os.listdir(tmp_path) == []
