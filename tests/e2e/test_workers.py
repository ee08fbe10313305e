"""Processes that read ahead: the same batches, and a report where one is killed."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from tests.data_fixtures import fastmri_root
from tests.e2e.commands import SMALL, complaint, rows, start, until_saved

pytestmark = pytest.mark.timeout(400)


def children(pid):
    """Process ids of the children that run Grain's worker."""
    threads = Path(f"/proc/{pid}/task").iterdir()
    text = " ".join((thread / "children").read_text() for thread in threads)
    kept = []
    for child in text.split():
        words = Path(f"/proc/{child}/cmdline").read_bytes().decode().split("\0")
        if "spawn_main" in " ".join(words) or "--multiprocessing-fork" in words:
            kept.append(int(child))
    return kept


@pytest.mark.full
def test_killed_worker_is_reported_with_its_cause(tmp_path):
    root = fastmri_root(tmp_path / "data", train=4, val=2)
    common = [
        *("train.py", *SMALL, f"--config.data.root={root}"),
        "--config.train.validate_every_epochs=1000",
        "--config.optimiser.schedule=constant",  # whatever the number of steps
        "--config.train.checkpoint_every=5",
    ]
    cache = tmp_path / "cache"
    alone, helped = tmp_path / "alone", tmp_path / "helped"
    short = [*common, "--config.train.steps=5"]
    # Compiled programs go to the program's own folder.
    own = {"JAX_COMPILATION_CACHE_DIR": ""}
    first = start([*short, f"--workdir={alone}"], cache, **own)
    _, said = first.communicate(timeout=200)
    assert first.returncode == 0, said
    compiled = cache / "daasr_jax/compiled"
    assert list(compiled.glob("jit_step-*-cache"))  # for the next start
    assert compiled.stat().st_mode & 0o077 == 0  # of this user alone

    more = [f"--workdir={helped}", "--config.train.workers=2"]
    process = start([*common, *more, "--config.train.steps=100000"], cache, **own)
    until_saved(process, helped, 10)
    losses = [
        [r["g/total"] for r in rows(x) if "g/total" in r][:5] for x in (alone, helped)
    ]
    assert losses[0] == losses[1]

    workers = children(process.pid)
    assert len(workers) == 2
    os.kill(workers[0], signal.SIGKILL)
    begin = time.monotonic()
    out, said = process.communicate(timeout=60)
    assert time.monotonic() - begin < 30
    result = {"code": process.returncode, "out": out, "err": said}
    # The worker's exit is part of the cause.
    wrong = complaint(result, "E609", 6, "a reader of the training data stopped", "-9")
    assert not wrong, "\n".join(wrong)
