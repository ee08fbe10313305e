"""Every wrong input: one line on standard error, its code, no traceback."""

from __future__ import annotations

import shutil

import h5py
import numpy as np
import pytest

from tests.data_fixtures import fastmri_root, scan_voxels, write_h5
from tests.e2e.commands import SMALL, check_refusals, run_all

pytestmark = pytest.mark.timeout(500)


def check(cases, cache):
    """`cases`: name -> (argv, code, exit code, parts of the line)."""
    results = run_all([case[0] for case in cases.values()], cache)
    check_refusals(
        dict(zip(cases, results, strict=True)),
        {name: expected for name, (_, *expected) in cases.items()},
    )


def test_command_line_and_configuration(tmp_path):
    root = fastmri_root(tmp_path / "data", train=4, val=2)
    broken = tmp_path / "broken.py"
    broken.write_text("def get_config(:\n")
    raising = tmp_path / "raising.py"
    raising.write_text("def get_config():\n    return {}['x']\n")
    file = tmp_path / "file"
    file.write_text("")
    run = f"--workdir={tmp_path / 'run é 1'}"
    data = f"--config.data.root={root}"
    ok = ["train.py", *SMALL, run, data]

    def config(path):
        return ["train.py", f"--config={path}", run, data]

    check(
        {
            "no config": (["train.py", run], "E223", 2, "--config=configs"),
            "eval of no run": (["eval.py", run], "E404", 4, "run é 1 is no run"),
            "mistyped flag": ([*ok, "--wrkdir=x"], "E225", 2, "wrkdir"),
            "no flag file": (
                ["train.py", "--flagfile=none.txt"], "E225", 2, "none.txt",
            ),
            "configuration is a folder": (config("configs"), "E225", 2, "nearest"),
            "configuration without get_config": (
                config("configs/protocol.py"), "E225", 2, "has no get_config",
            ),
            "too large a network": (
                [*ok, "--config.model.kwargs.features=65536"], "E612", 6, "GiB",
            ),
            "no VGG-19": (
                [*ok, "--config.perceptual.network=vgg19",
                 "--config.perceptual.strict=true"], "E244", 2, "STAND IN",
            ),
            "stray word": ([*ok, "config.seed=3"], "E225", 2, "config.seed=3"),
            "mistyped key": (
                [*ok, "--config.train.batchsize=4"], "E225", 2,
                "'batchsize'", "'batch_size'",
            ),
            "mistyped group": (
                [*ok, "--config.trian.batch_size=4"], "E225", 2, "trian",
            ),
            "wrong preset": (
                config("configs/fastmri_x4.py:fats"), "E225", 2,
                "'fast', 'paper'", "'fats'",
            ),
            "wrong preset of a derived file": (
                config("configs/brain_x2_small.py:fats"), "E225", 2, "'fast', 'paper'",
            ),
            "wrong type": (
                [*ok, "--config.train.batch_size=many"], "E225", 2, "many",
            ),
            "no such file": (config("configs/none.py"), "E225", 2, "configs/none.py"),
            "syntax error": (config(broken), "E225", 2, "invalid syntax"),
            "file that raises": (config(raising), "E225", 2, "x"),
            "model name": ([*ok, "--config.model.name=dasr"], "E227", 2, "daasr"),
            "loss name": (
                [*ok, "--config.losses.rec.name=pixel.rek"], "E227", 2, "pixel.rec",
            ),
            "model keyword": (
                [*ok, "--config.model.kwargs.align.name=half"], "E227", 2, "half",
            ),
            "model heads": (
                [*ok, "--config.model.kwargs.structure.heads=3"], "E210", 2, "heads",
            ),
            "no features": ([*ok, "--config.model.kwargs.features=0"], "E210", 2),
            "precision": (
                [*ok, "--config.matmul_precision=float31"], "E210", 2, "float31",
            ),
            "schedule": (
                [*ok, "--config.optimiser.schedule=linear"], "E210", 2, "'halving'",
            ),
            "perceptual network": (
                [*ok, "--config.perceptual.network=vgg20"], "E210", 2, "'vgg20'",
            ),
            "no such weights": (
                [*ok, "--config.perceptual.network=vgg19",
                 "--config.perceptual.weights=none.h5"], "E232", 2, "none.h5",
            ),
            "adversarial objective": (
                [*ok, "--config.adversarial.objective=hinge"], "E210", 2,
                "'hinge'", "wgan-gp",
            ),
            "discriminator": (
                [*ok, "--config.adversarial.objective=bce",
                 "--config.adversarial.stages=0"], "E210", 2, "stages",
            ),
            "start from nothing": (
                [*ok, f"--config.train.start_from={tmp_path}"], "E404", 4,
                "config.json",
            ),
            "interval": ([*ok, "--config.train.log_every=0"], "E210", 2, "log_every"),
            "devices": ([*ok, "--config.train.devices=64"], "E221", 2, "devices=64"),
            "large crop": ([*ok, "--config.train.crop=99"], "E205", 2, "lower"),
            "workdir is a file": (
                ["train.py", *SMALL, data, f"--workdir={file}"], "E209", 2, "file",
            ),
            "eval of nothing": (
                ["eval.py", *SMALL, data, f"--workdir={tmp_path / 'none'}"],
                "E404", 4, "none is no run",
            ),
        },
        tmp_path / "cache",
    )  # fmt: skip


def test_data(tmp_path):
    (tmp_path / "empty").mkdir()
    run = f"--workdir={tmp_path / 'run é 1'}"

    def train(root, *more):
        return ["train.py", *SMALL, run, f"--config.data.root={root}", *more]

    def broken(name):
        return fastmri_root(tmp_path / name, train=4, val=2)

    good = broken("good")
    cut = broken("cut") / "multicoil_train/file_001.h5"
    cut.write_bytes(cut.read_bytes()[:1500])
    lacking = broken("lacking") / "multicoil_train/file_001.h5"
    write_h5(lacking, subject="x", image=scan_voxels(1).astype(np.float32))
    nan = broken("nan") / "multicoil_train/file_001.h5"
    with h5py.File(nan, "a") as file:
        file["reconstruction_rss"][2, 3, 4] = np.nan
    leak = broken("leak")
    shutil.copy(leak / "multicoil_val/file_000.h5", leak / "multicoil_train/copy.h5")
    lone = fastmri_root(tmp_path / "lone", train=4, val=1)
    names = "--config.data.subjects."
    check(
        {
            "no root": (
                ["train.py", *SMALL, run], "E201", 2,
                "--config.data.root=DIR", "DAASR_DATA", "data/brain",
            ),
            "missing root": (train(tmp_path / "none"), "E301", 3, "none"),
            "empty root": (train(tmp_path / "empty"), "E301", 3, "empty", ".h5"),
            "truncated": (train(tmp_path / "cut"), "E302", 3, "file_001.h5"),
            "missing key": (
                train(tmp_path / "lacking"), "E302", 3, "file_001.h5", "image",
            ),
            "NaN": (train(tmp_path / "nan"), "E302", 3, "file_001.h5", "NaN"),
            "subject in two folders": (train(leak), "E305", 3, "val00"),
            "subject in two lists": (
                train(good, f"{names}train=train00,train01", f"{names}test=train01"),
                "E206", 2, "train01",
            ),
            "one subject": (train(lone), "E307", 3, "reference.exclude"),
            "batch over split": (
                train(good, "--config.train.batch_size=50"), "E314", 3, "50", "'train'",
            ),
        },
        tmp_path / "cache",
    )  # fmt: skip
