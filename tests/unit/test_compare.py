"""The table that compares result files."""

from __future__ import annotations

import json
import sys

import pytest

from benchmarks import compare


def result(path, offset, *, subjects=7, changes=()):
    """A result file of three slices for each subject; `changes`: slice -> PSNR."""
    rows = [
        {
            "slice": f"s{i}#{k}",
            "subject": f"s{i}",
            "bicubic": {"psnr": 30.0 + i, "ssim": 0.9},
            "daasr": {"psnr": 30.0 + i + offset, "ssim": 0.9},
        }
        for i in range(subjects)
        for k in range(3)
    ]
    identical = bad = 0
    for k, value in dict(changes).items():
        rows[k]["daasr"]["psnr"] = None if value in ("nan", "inf") else value
        identical += value == "inf"
        bad += value == "nan"
    scores = {"mean": 33.0, "ci95": None, "n_identical": identical, "n_nonfinite": 0}
    own = scores | {"n_nonfinite": bad}
    report = {
        "dataset": "d", "split": "test", "scale": 4, "pairing_sha256": "p" * 64,
        "n_slices": len(rows), "n_subjects": subjects, "per_slice": rows,
        "protocol": {"degradation": "bicubic", "intensity": "i", "track": "random"},
        "methods": {
            "bicubic": {"psnr": scores, "ssim": scores},
            "daasr": {"psnr": own, "ssim": scores},
        },
        "checkpoint_step": 7, "config": "c", "preset": "fast", "parameters": 1,
        "config_sha256": "c" * 64, "commit": "x", "device": "cpu",
    }  # fmt: skip
    path.write_text(json.dumps(report))
    return path


@pytest.fixture
def table(tmp_path, monkeypatch, capsys):
    def make(*arguments):
        out = tmp_path / "out.md"
        command = ["compare", f"--out={out}", "--title=T", "--base=a", *arguments]
        monkeypatch.setattr(sys, "argv", command)
        compare.main()
        capsys.readouterr()
        lines = out.read_text(encoding="utf-8").splitlines()
        return [line for line in lines if line.startswith("| 4 |")]

    return make


def test_seeds_of_one_label_are_resampled(tmp_path, table):
    a, b, c = (result(tmp_path / f"{i}.json", i) for i in (1, 2, 4))
    _, base, seeds = table(f"a={a}", f"b={b},{c}")
    assert "| 34.00 [" in base
    assert "+1.00 [+1.00, +1.00]" in base
    assert "+3.00 [+2.00, +4.00] | +2.00 [+1.00, +3.00]" in seeds


@pytest.mark.parametrize(("value", "said"), [("nan", "not finite"), ("inf", "+2.00 [")])
def test_a_missing_value_is_survived(tmp_path, table, value, said):
    a = result(tmp_path / "a.json", 1)
    b = result(tmp_path / "b.json", 2, changes={4: value})
    _, _, line = table(f"a={a}", f"b={b}")
    assert said in line


def test_a_nan_is_not_hidden_by_an_identical_slice(tmp_path, table):
    a = result(tmp_path / "a.json", 1)
    b = result(tmp_path / "b.json", 2, changes={4: "nan", 9: "inf"})
    _, _, line = table(f"a={a}", f"b={b}")
    assert "not finite" in line
    assert "+2.00" not in line


def test_few_subjects_have_no_interval(tmp_path, table):
    line = table(f"a={result(tmp_path / 'a.json', 1, subjects=5)}")[1]
    assert "| +1.00 |" in line
    assert "[" not in line
