"""Fault 23: a reader of the data that raises, is killed or hangs; a step without end.

Expected: where a reader raises or is killed, the cause comes out in one line within 30
seconds, and the last checkpoint stays whole; exit code 6, or 3 where a slice is
damaged, which is named. A reader that hangs, or a step, is ended after `train.watchdog`
seconds, half an hour by default, with the stacks of all threads; exit code 6.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from daasr_jax.errors import DataError, ResourceError
from daasr_jax.experiment import verify
from daasr_jax.runtime import failures
from daasr_jax.runtime.watchdog import Watchdog
from tests.data_fixtures import fastmri_root
from tests.e2e.commands import (
    ROOT,
    SMALL,
    complaint,
    environment,
    rows,
    start,
    until_saved,
)
from tests.unit.test_failures import Source

HANGS = """
import threading, time
from daasr_jax.runtime.watchdog import Watchdog

def a_call_that_never_returns():
    threading.Event().wait()

with Watchdog(1, notice=0.3, hint="a hint.") as watchdog:
    for step in range(4):
        watchdog.beat(f"step {step}", short=True)
        time.sleep(0.4 if step == 1 else 0.01)
    a_call_that_never_returns()
"""


@pytest.mark.timeout(60)
def test_23_a_hanging_run_ends_with_stacks_and_one_line():
    done = subprocess.run(
        [sys.executable, "-c", HANGS], capture_output=True, text=True, timeout=50
    )
    assert done.returncode == 6
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("error E607: nothing happened for 1 s in step 3; ")
    assert "a_call_that_never_returns" in done.stderr
    hints = [x for x in done.stderr.splitlines() if x.endswith(": a hint.")]
    assert [x.split(" s in ")[1].split(":")[0] for x in hints] == ["step 1", "step 3"]


READER = """
import sys, time
from pathlib import Path
from tests.unit import test_training as small

def a_reader_that_hangs(start):
    for n in range(start, 5):
        yield {"hr": small.np.float32([n])}
    time.sleep(1000)

small.numbers = lambda values: a_reader_that_hangs
small.run_loop(Path(sys.argv[1]), range(100), watchdog=6.0)
"""


@pytest.mark.full
@pytest.mark.timeout(100)
def test_23_a_reader_that_hangs_in_the_loop_of_training(tmp_path):
    begin = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", READER, str(tmp_path)],
        cwd=ROOT, env=environment(tmp_path / "cache"), capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 6, done.stderr
    assert time.monotonic() - begin < 60
    last = done.stderr.strip().splitlines()[-1]
    assert re.match(r"error E607: nothing happened for 6 s in step [4-6], ", last)
    assert "a_reader_that_hangs" in done.stderr
    assert verify.main([str(tmp_path)]) == 0
    assert (tmp_path / "manifests/4.json").exists() or "step 4" in last


@pytest.mark.parametrize("seconds", [0, 0.2])
def test_23_a_run_that_goes_on_is_left_alone(seconds, capfd):
    with Watchdog(seconds) as watchdog:
        for step in range(10):
            watchdog.beat(f"step {step}")
            time.sleep(0.05)
    time.sleep(0.3)  # and nothing after the end
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("error", "want", "said"),
    [
        (RuntimeError("exit code -9\nlook above"), ResourceError, "E609.*exit code -9"),
        (DataError("E311", "record 3 is damaged"), DataError, "E311.*record 3"),
    ],
)
def test_23_a_reader_that_raises(error, want, said):
    source = Source([1, error])
    seen = []
    with pytest.raises(want, match=said) as caught:
        seen.extend(failures.reading(source))
    assert "\n" not in str(caught.value)
    assert source.closed


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
@pytest.mark.timeout(400)
def test_23_a_killed_worker_is_reported_with_its_cause(tmp_path):
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
    assert verify.main([str(helped)]) == 0  # the checkpoints are kept, and whole


DAMAGED = """
import sys
from pathlib import Path
from absl import flags
from daasr_jax.data import prepare, training_batches
from daasr_jax.errors import UserError
from tests.data_fixtures import fastmri_root, settings
from tests.unit import test_training as small

flags.FLAGS(["a program"])  # Grain's workers read some
folder = Path(sys.argv[1])
slices = prepare(settings(fastmri_root(folder / "data"), folder / "cache")).splits
how = dict(batch_size=2, crop=4, scale=4, steps=100, seed=0, workers=1)

def numbers(values):
    def batches(start):
        for batch in training_batches(slices["train"], **how, start=start):
            yield {"hr": batch["hr"].mean(keepdims=True).reshape(1, 1)}
    return batches

small.numbers = numbers
small.run_loop(folder / "run", range(4))
for path in (folder / "cache").rglob("*.array_record*"):
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.seek(size // 8)
        file.write(b"\\xff" * (3 * size // 4))
print("damaged", flush=True)
try:
    small.run_loop(folder / "run", range(100))
except UserError as error:
    print(error, file=sys.stderr)
    sys.exit(error.exit_code)
"""


@pytest.mark.full
@pytest.mark.timeout(200)
def test_23_a_record_that_is_damaged_under_a_worker(tmp_path):
    """After it was verified, before the run goes on: the worker's error comes out."""
    (tmp_path / "run").mkdir()
    process = start(["-c", DAMAGED, str(tmp_path)], tmp_path / "cache")
    out = process.stdout.readline()
    begin = time.monotonic()
    more, said = process.communicate(timeout=100)
    assert out == "damaged\n", said
    assert time.monotonic() - begin < 30
    result = {"code": process.returncode, "out": more, "err": said}
    where = f" of {tmp_path}/cache/", "is damaged", "delete the folder"
    assert not complaint(result, "E311", 3, *where), said
    assert verify.main([str(tmp_path / "run")]) == 0
    assert (tmp_path / "run/manifests/4.json").exists()
