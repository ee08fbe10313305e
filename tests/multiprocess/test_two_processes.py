"""Two processes with two devices each: trained, stopped, killed, resumed by one."""

from __future__ import annotations

import dataclasses
import functools
import json
import signal
import socket
import time
from pathlib import Path

import numpy as np
import pytest

from tests.data_fixtures import fastmri_root
from tests.e2e.commands import (
    SMALL,
    assert_same_state,
    last_state,
    rows,
    start,
    until_saved,
)

pytestmark = pytest.mark.timeout(600)
STEPS = 30  # few enough that rounding moves no choice of the search
LENGTH = (
    f"--config.train.steps={STEPS}",
    "--config.train.batch_size=3",  # two devices of one process, one of the other
    "--config.train.checkpoint_every=5",
    "--config.train.validate_every_epochs=5",
    "--config.optimiser.warmup_steps=0",
    "--config.optimiser.learning_rate=2e-4",
    "--config.adversarial.objective=wgan-gp",
    "--config.adversarial.start_step=3",
    "--config.adversarial.features=4",
    "--config.adversarial.stages=1",
)


def free_port():
    with socket.socket() as place:
        place.bind(("localhost", 0))
        return place.getsockname()[1]


def start_two(argv, cache):
    meeting = f"--coordinator=localhost:{free_port()}"
    return [
        start(
            [*argv, meeting, "--processes=2", f"--process={i}"],
            cache,
            JAX_NUM_CPU_DEVICES="2",
            JAX_COMPILATION_CACHE_DIR=str(cache / "compiled by two"),
        )
        for i in range(2)
    ]


def ended(process, seconds=200):
    """Exit code and standard error."""
    _, said = process.communicate(timeout=seconds)
    return process.returncode, said


@pytest.mark.parametrize("process", [0, 1])
def test_the_others_do_not_come(process, tmp_path):
    place = f"localhost:{free_port()}"
    code = (
        "from daasr_jax.runtime import hosts\nhosts.CONNECT_SECONDS = 2\n"
        f"hosts.connect({place!r}, 2, {process})"
    )
    waiting = start(["-c", code], tmp_path)
    assert ended(waiting, seconds=60) == (
        6,
        f"error E606: process {process} waited 2 s for the 2 processes of the run; see "
        f"that all were started and reach {place}.\n",
    )


@dataclasses.dataclass
class Trained:
    """A run that one process made, and what it was started with."""

    folder: Path
    cache: Path
    common: list[str]

    def train(self, folder, *more):
        return ["train.py", *self.common, f"--workdir={folder}", *more]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    root = fastmri_root(folder / "data", train=4, val=2)
    common = [*SMALL, *LENGTH, f"--config.data.root={root}"]
    made = Trained(folder / "run", folder / "cache", common)
    code, said = ended(start(made.train(made.folder), made.cache))
    assert code == 0, said
    return made


@pytest.mark.full
@pytest.mark.parametrize(
    ("stops", "victims"),
    [
        pytest.param([(signal.SIGTERM, [1])], [0], id="once"),
        pytest.param(
            [(signal.SIGUSR1, [0]), (signal.SIGINT, [0, 1])],
            [1, 0],
            id="often",
        ),
    ],
)
def test_stopped_killed_and_resumed_by_one_process(stops, victims, trained, tmp_path):
    whole, parts = trained.folder, tmp_path / "parts"
    train, cache = trained.train(parts), trained.cache

    # One is asked to stop, or all are: they save the same step and leave.
    at = 0
    for number, asked in stops:
        pair = start_two(train, cache)
        until_saved(pair[0], parts, at // 5 * 5 + 5)
        for i in asked:
            pair[i].send_signal(number)
        results = [ended(process) for process in pair]
        assert [code for code, _ in results] == [75, 75], results
        assert "1 OF 4 DEVICES STAY IDLE" in results[0][1]
        lines = [said.strip().splitlines()[-1] for _, said in results]
        for i, line in enumerate(lines):
            by = number.name if i in asked else "another process"
            assert f"stopped by {by}" in line
        stopped = [int(x.split("at step ")[1].split(",")[0]) for x in lines]
        assert at < stopped[0] == stopped[1] < STEPS
        at = stopped[0]

    # One is killed: the other says so and does not wait for ever.
    for number, victim in enumerate(victims, 1):
        pair, other = start_two(train, cache), 1 - victim
        until_saved(pair[0], parts, at // 5 * 5 + 5 * number)
        pair[victim].kill()
        begin = time.monotonic()
        code, said = ended(pair[other], seconds=60)
        assert code != 0
        assert time.monotonic() - begin < 60
        assert "run the same command to resume" in said or "another task died" in said
        pair[victim].communicate()
        assert max(r["step"] for r in rows(parts)) < STEPS

    # One process with another number of devices goes on.
    code, said = ended(start(train, cache))
    assert code == 0, said
    assert "resuming at step" in said
    assert_same_state(last_state(whole, STEPS), last_state(parts, STEPS))
    for kind in ("g/total", "val/psnr"):
        got, want = (
            {r["step"]: r[kind] for r in rows(x) if kind in r} for x in (parts, whole)
        )
        assert list(got) == list(want)
        np.testing.assert_allclose(list(got.values()), list(want.values()), rtol=1e-4)


@pytest.mark.full
def test_from_a_trained_generator_on_all_four_devices(trained, tmp_path):
    more = [f"--config.train.start_from={trained.folder}"]
    more += ["--config.train.steps=3", "--config.train.batch_size=4"]
    apart, joint = tmp_path / "apart", tmp_path / "joint"
    code, said = ended(start(trained.train(apart, *more), trained.cache))
    assert code == 0, said
    for process in start_two(trained.train(joint, *more), trained.cache):
        code, said = ended(process)
        assert (code, "IDLE" in said) == (0, False), said
    got, want = (
        [r["g/total"] for r in rows(x) if "g/total" in r] for x in (joint, apart)
    )
    assert len(want) == 3
    np.testing.assert_allclose(got, want, rtol=1e-5)


@pytest.mark.full
def test_a_batch_that_follows_the_devices_of_both(trained, tmp_path):
    """One process goes on with the batch of two, where its devices divide it."""
    follows = ["--config.train.batch_per_device=1"]
    follows += ["--config.optimiser.schedule=constant"]  # whose length is free
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    steps = [f"--config.train.steps={n}" for n in (3, 6)]
    for process in start_two(trained.train(parts, *follows, steps[0]), trained.cache):
        code, said = ended(process)
        assert code == 0, said
    batch = json.loads((parts / "config.json").read_text())["batch"]
    assert (batch["images"], batch["devices"], batch["rates_of"]) == (4, 4, 3)

    def alone(folder, devices):
        argv = trained.train(folder, *follows, steps[1])
        return ended(start(argv, trained.cache, JAX_NUM_CPU_DEVICES=devices))

    code, said = alone(parts, "3")
    assert code == 2, said
    assert "E247: the run began with a batch of 4" in said
    assert "over 3 devices; give --config.train.devices=2." in said
    code, said = alone(parts, "1")
    assert code == 0, said
    assert "a batch of 4 images, all on one device (it began on 4)" in said
    code, said = alone(whole, "4")
    assert code == 0, said
    for kind in ("g/total", "g/learning_rate", "d/learning_rate"):
        got, want = ([r[kind] for r in rows(x) if kind in r] for x in (parts, whole))
        assert len(want) > 3
        np.testing.assert_allclose(got, want, rtol=1e-5, err_msg=kind)


@pytest.mark.full
@pytest.mark.parametrize(
    ("more", "names"),
    [((), ("daasr",)), (("--controls",), ("pair", "shuffled", "self"))],
    ids=["scores", "controls"],
)
def test_both_evaluate(more, names, trained, tmp_path):
    """Each slice once, in the order of the split."""
    alone, together = tmp_path / "alone.json", tmp_path / "together.json"
    evaluate = ["eval.py", *trained.common, f"--workdir={trained.folder}", *more]
    code, said = ended(start([*evaluate, f"--out={alone}"], trained.cache))
    assert code == 0, said
    for process in start_two([*evaluate, f"--out={together}"], trained.cache):
        code, said = ended(process)
        assert code == 0, said
    one, two = (json.loads(p.read_text()) for p in (alone, together))
    assert [r["slice"] for r in two["per_slice"]] == [
        r["slice"] for r in one["per_slice"]
    ]
    for a, b in zip(one["per_slice"], two["per_slice"], strict=True):
        for name in names:
            assert b[name] == pytest.approx(a[name], abs=1e-4)
    if more:
        for path in (("identity", "identity", "1"), ("calibration", "rank_error")):
            a, b = (functools.reduce(dict.get, path, report) for report in (one, two))
            assert b["n"] == a["n"]
            assert b["mean"] == pytest.approx(a["mean"], abs=1e-2)
    assert together.with_suffix(".png").exists()
