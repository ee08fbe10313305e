"""The page of a visit to a GPU, and what its tests and its training write for it."""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from benchmarks.gpu import check, report, stage, step, training

TIMES = {"min_ms": 1.0, "max_ms": 9.0, "repeats": 3}
RATES = {"float32_tflops": 50.0, "tensorfloat32_tflops": 400.0}
RATES |= {"bfloat16_tflops": 700.0, "memory_gb_per_s": 3000.0}


def page(folder: Path, **results) -> tuple[str, dict[str, str]]:
    for name, result in results.items():
        stage.write(folder / f"{name}.json", result)
    return report.make(folder)


def row(**changes):
    return {"queries": 65_536, "mode": "forward", "ms": 10.0} | TIMES | changes


def match(*rows, device="H100", **more):
    return {"device": device, "features": 64, "rows": list(rows), **more}


def test_the_floor_of_every_row_is_that_of_bfloat16(tmp_path):
    text, _ = page(
        tmp_path,
        match_jax=match(row(peer="daasr_jax, chunked"), ceilings=RATES),
        match_torch=match(row(peer="torch, chunked", ms=70.0)),
    )
    assert "at the rate in bfloat16" in text
    # 2 * 65,536^2 * 9 * 64 operations at 700 TFLOP/s take 7.07 ms
    assert "daasr_jax, chunked | 10.00 [1.00, 9.00] | 7.00 | 71 % |" in text
    assert "torch, chunked | 70.00 [1.00, 9.00] | 1.00 | 10 % |" in text


def test_what_ran_on_a_cpu_beside_a_card_is_told(tmp_path):
    one = row(peer="daasr_jax, chunked")
    parts = {"match_jax": match(one, device="cpu"), "match_torch": match(one)}
    text, _ = page(tmp_path, machine={"card": "none"}, **parts)
    assert "Ran on: cpu (jax); H100 (torch)." in text
    assert "Warning" not in text
    text, _ = page(tmp_path, machine={"card": "H100, 580, 81559 MiB"}, **parts)
    assert "**Warning: jax ran on a CPU beside the card." in text


def test_rows_that_were_not_run_are_left_out(tmp_path):
    late = {"variant": ["fast", "float32", False, 1, ""], "not_run": "no time was left"}
    left = page(
        tmp_path,
        became={"step jax": "done", "match torch compiled": "done", "check": "done"},
        step_jax={"device": "cpu", "features": 8, "groups": 1, "batch": 2, "crop": 8,
                  "scale": 4, "rows": [late, late]},
        match_torch_compiled=match(row(peer="torch"), row(peer="b", not_run="17 GB")),
        check={"outcomes": {"PASSED": 3, "FAILED": 2, "SKIPPED": 1}, "not_ended": 4,
               "seconds": 9.0, "not_passed": [], "measured": [], "end": []},
    )[1]  # fmt: skip
    assert left == {
        "step jax": "2 of 2 not run: no time was left",
        "match torch compiled": "1 of 2 not run: 17 GB",
        "check": "2 failed; 4 had not ended",
    }


def test_a_visit_that_left_no_account_is_told(tmp_path):
    assert "not known" in page(tmp_path, machine={})[1]["visit"]


def test_a_step_tells_what_the_loader_must_deliver(tmp_path):
    def stepped(preset, rate, precision="tensorfloat32"):
        how = {"variant": [preset, precision, False, 1, ""], "peer": "daasr_jax"}
        return row(**how, images_per_s=rate, compile_s=1.0)

    sizes = {"features": 64, "groups": 6, "batch": 9, "crop": 40, "scale": 4}
    rows = [stepped("fast", 900.0), stepped("paper", 150.0)]
    rows.append(stepped("fast", 1.0, "float32"))
    found = {"device": "H100", "rows": rows, **sizes}
    assert "the loader makes" not in page(tmp_path, step_jax=found)[0]
    trained = {report.RATE: 200.0, "device": "H100", "row": "fast", "scale": 4}
    trained |= {"how": {"batch_size": 9, "crop": 40, "shares": {}}, "steps": 3}
    trained |= {"seed": 0, "options": {"features": "64", "groups": "6"}}
    text, _ = page(tmp_path, train_fast_x4=trained)
    assert "One process of the loader makes 200 images/s beside" in text
    assert "the images of 4.5 for `fast`, 0.8 for `paper` processes" in text


def test_a_mean_that_is_not_finite_is_told():
    none = {"psnr": {"mean": None, "ci95": None}}
    found = {"uses_reference": True}
    found |= {"methods": {"pair": none}, "minus_black": {"self": none}}
    assert report._gain(found, "self") == "not finite"
    assert report._mean(found, "pair") == "not finite"
    assert report._mean(found, "black") == "-"


def test_a_trace_that_fails_is_a_line(tmp_path):
    def fails():
        raise RuntimeError("no\n profiler")

    sizes = {"features": 8, "groups": 1, "batch": 2, "crop": 8, "scale": 4}
    found = {"device": "cpu", "rows": [], "trace": step.traced(fails), **sizes}
    assert "The trace failed: no profiler." in page(tmp_path, step_jax=found)[0]


def test_outcomes_are_read_as_they_come():
    text = """
tests/gpu/a.py::test_x[1-b c] PASSED                 [ 50%]
[gw1] [ 10%] FAILED tests/gpu/a.py::test_y[kernel-2]
tests/gpu/a.py::test_z SKIPPED (needs a gpu, and JAX finds a cpu)
tests/gpu/a.py::test_not_yet
"""
    assert list(check.outcomes(text).values()) == ["PASSED", "FAILED", "SKIPPED"]


def test_tests_that_were_not_asked_for_are_not_missing():
    text = "collected 77 items / 9 deselected / 68 selected\n"
    text += "JAX finds: 1 x H100\ntests/gpu/a.py::test_x PASSED [ 1%]\n"
    found = check.result_of(text, None, 3.0)
    assert found["not_ended"] == 67
    assert found["exit"] == "stopped at its limit"
    assert found["devices"] == "1 x H100"
    assert (
        check.result_of(text.replace(" / 68 selected", ""), 1, 3.0)["not_ended"] == 76
    )
    assert check.result_of(text, 0, 3.0)["not_ended"] == 0


SAYS = "import os, sys; print(os.environ.get('DAASR_GPU_TESTS_ON')); sys.exit({code})"


@pytest.mark.parametrize(
    ("card", "tiny", "code", "said"),
    [("H100", False, 3, "gpu"), ("", False, 0, "None"), ("H100", True, 1, "None")],
)
def test_the_tests_run_on_the_card_that_is_there(
    tmp_path, monkeypatch, card, tiny, code, said
):
    monkeypatch.delenv("DAASR_GPU_TESTS_ON", raising=False)
    monkeypatch.setattr(stage, "card", lambda: card)
    monkeypatch.setattr(check, "PYTEST", ("-c", SAYS.format(code=code)))
    stage.write(tmp_path / "machine.json", {"card": card})
    given = ["check", "--out", str(tmp_path), *(["--tiny"] if tiny else [])]
    monkeypatch.setattr(sys, "argv", given)
    before = signal.getsignal(signal.SIGTERM)
    try:
        with pytest.raises(SystemExit) as caught:
            check.main()
    finally:
        signal.signal(signal.SIGTERM, before)
    assert caught.value.code == code
    found = json.loads((tmp_path / "check.json").read_text())
    assert (found["exit"], found["end"]) == (code, [said])
    assert json.loads((tmp_path / "machine.json").read_text())["jax_devices"]
    assert f"none ended: {said}" in report.make(tmp_path)[0]


def test_a_check_that_is_stopped_leaves_what_it_found(tmp_path):
    code = "from benchmarks.gpu import check; import sys; check.PYTEST = ('-c', "
    code += '\'import time; print("b.py::test_a PASSED", flush=True); '
    code += "time.sleep(600)'); check.main()"
    process = subprocess.Popen(
        [sys.executable, "-c", code, "--out", str(tmp_path)], env=os.environ
    )
    log, end = tmp_path / "check.txt", time.monotonic() + 60
    while not log.exists() or "PASSED" not in log.read_text():
        assert time.monotonic() < end
        time.sleep(0.05)
    process.terminate()
    assert process.wait(30) == 143
    found = json.loads((tmp_path / "check.json").read_text())
    assert found["outcomes"] == {"PASSED": 1}


def test_several_cards_are_one_line(monkeypatch):
    monkeypatch.setattr(stage, "_said", lambda command: "A, 1\nB, 1")
    assert stage.card() == "A, 1; B, 1"


def test_rows_of_a_training_have_names():
    assert report.NAMES.keys() == training.ROWS.keys()


def test_a_training_begins_without_jax():
    """So do the processes of its loader, which import it."""
    code = (
        "import sys; from benchmarks.gpu import train; sys.exit('jax' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_the_controls_that_run_have_their_time(monkeypatch):
    own, same = SimpleNamespace(same_as=""), SimpleNamespace(same_as="pair")
    predict = SimpleNamespace(at_once=2)
    programs = SimpleNamespace(predict=predict, predict_s=10.0)
    args = argparse.Namespace(slices=4)

    def seconds(*controls):
        found = dict(enumerate(controls))
        monkeypatch.setattr(training, "drawn", lambda table, args: (None, found, {}))
        return training.reserve(programs, range(8), args)  # pyright: ignore

    assert seconds(own, own) - seconds(own, same) == pytest.approx(1.3 * 3 * 10)
    assert seconds(own, same) == seconds(own)
