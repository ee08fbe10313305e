"""Fault 04: volumes without slices, blank volumes and slices, images too small.

Expected: a volume without an image or under 11 pixels a side is refused, exit code 3;
blank slices are left out. Images of less than half of `data.size`, such as 12x12, are
counted and named, and not refused, by decision. A slice that one method restores
exactly is left out of the means of all, and the table says so.
"""

from __future__ import annotations

import json
import logging
import math

import numpy as np
import pytest

from daasr_jax.data import draw_pairing, prepare
from daasr_jax.errors import DataError
from daasr_jax.evaluation.predict import Prediction, mean_scores
from daasr_jax.evaluation.report import make_report, make_table
from tests.data_fixtures import (
    fastmri_root,
    one_line,
    scan_voxels,
    settings,
    table,
    write_h5,
)
from tests.unit.test_evaluation import printed


@pytest.mark.parametrize(
    ("image", "why"),
    [
        (np.zeros((0, 24, 20)), "is empty: shape (0, 24, 20)"),
        (np.zeros((4, 24, 20)), "all voxels are 0.0: a blank volume"),
        (np.full((4, 24, 20), 7.0), "all voxels are 7.0: a blank volume"),
        (np.ones((4, 24, 6)), "has slices of 24x6, under 11 pixels a side"),
    ],
)
def test_04_a_volume_without_an_image_is_refused(tmp_path, image, why):
    root = fastmri_root(tmp_path / "data")
    path = root / "multicoil_val/file_001.h5"
    write_h5(path, subject="val01", reconstruction_rss=image)
    with pytest.raises(DataError) as error:
        prepare(settings(root, tmp_path / "cache"))
    assert error.value.exit_code == 3
    one_line(error.value, "E302", path, why)


@pytest.mark.parametrize("value", [0.0, 0.01])
def test_04_constant_slices_are_left_out(tmp_path, caplog, value):
    root = fastmri_root(tmp_path / "data")
    image = scan_voxels(101).astype(np.float32)
    image[[0, 3]] = value
    path = root / "multicoil_val/file_001.h5"
    write_h5(path, subject="val01", reconstruction_rss=image)
    with caplog.at_level(logging.INFO, "daasr_jax"):
        found = prepare(settings(root, tmp_path / "cache")).splits["test"]
    assert "2 slices of one constant value were dropped" in caplog.text
    mine = found.volumes == "multicoil_val/file_001"
    assert found.index[mine].tolist() == [1, 2]
    for i in range(len(found)):
        assert np.isfinite(found.image(i)).all()
        assert np.ptp(found.image(i)) > 0


def test_04_small_images_are_counted(tmp_path, caplog):
    root = fastmri_root(tmp_path / "data")
    image = scan_voxels(101, (4, 12, 12)).astype(np.float32)
    path = root / "multicoil_val/file_001.h5"
    write_h5(path, subject="val01", reconstruction_rss=image)
    prepare(settings(root, tmp_path / "cache"))
    words = "volumes have slices of less than half of data.size"
    assert f"1 of 8 {words}=32, such as 12x12" in caplog.text
    caplog.clear()
    prepare(settings(root, tmp_path / "cache", size=24))
    assert words not in caplog.text


@pytest.mark.parametrize("perfect", ["bicubic", "daasr"])
def test_04_means_are_over_the_same_slices(perfect):
    """Of ten slices one method has three exactly; both means are over seven."""
    slices = table(subjects=5, contrasts=("T1",), slices=2)
    pairing = draw_pairing(slices)
    rows = []
    for i in range(len(slices)):
        names = {"bicubic": 30.0 + i, "daasr": 32.0 + i}
        if i < 3:
            names[perfect] = math.inf
        scores = {
            name: {"psnr": psnr, "ssim": 0.9, "ssim_uniform7": 0.9, "consistency": 50.0}
            for name, psnr in names.items()
        }
        rows.append(Prediction(i, int(pairing.references[i]), 0.5, {}, scores))
    report = make_report(
        rows,
        slices,
        pairing,
        method="daasr",
        scale=4,
        border=4,
        resamples=100,
        seed=0,
        provenance={"dataset": "d"},
    )
    json.dumps(report, allow_nan=False)
    for name, mean in (("bicubic", 36.0), ("daasr", 38.0)):
        found = report["methods"][name]["psnr"]
        assert (found["mean"], found["n"]) == (mean, 7)
        assert found["n_identical"] == 3
        assert report["methods"][name]["ssim"]["n"] == 10
    assert report["daasr_minus_bicubic"]["psnr"]["mean"] == 2.0
    text = " ".join(printed(report, 90).split())
    assert "7 of 10" in text
    assert "3 slice(s) of infinite PSNR left out for all methods" in text
    assert make_table(report).row_count > 2
    logged = mean_scores(rows, "daasr")
    assert (logged["psnr"], logged["gain_over_bicubic"]) == (38.0, 2.0)
