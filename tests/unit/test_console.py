"""Terminals and files that know plain characters only."""

from __future__ import annotations

import io
import logging
import subprocess
import sys
from pathlib import Path

import pytest
from rich.logging import RichHandler
from rich.table import Table

from daasr_jax.experiment import dry_run
from daasr_jax.runtime.console import console, make_printable

ROOT = Path(__file__).parents[2]


ENCODINGS = pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])


def streams(monkeypatch, encoding):
    """Both standard streams with an encoding; what was written, once asked for."""
    made = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    monkeypatch.setattr(sys, "stdout", made)
    monkeypatch.setattr(sys, "stderr", made)

    def written():
        made.flush()
        return made.buffer.getvalue().decode(encoding)

    return written


@ENCODINGS
def test_a_table_keeps_its_columns(monkeypatch, encoding):
    stream = streams(monkeypatch, encoding)
    table = Table("method", "PSNR", title="x – y", caption="mean ± deviation …")
    table.add_row("bicubic", "17.32 ± 0.21 × 2")
    table.add_row("é ☃", "17")
    console(width=40).print(table)
    lines = stream().splitlines()
    rows = [x.rstrip() for x in lines if x.strip().startswith(("|", "│", "┃"))]
    assert len(rows) >= 3
    assert len({len(row) for row in rows}) == 1
    if encoding == "ascii":
        assert "17.32 +- 0.21 x 2" in stream()
        assert "e ?" in stream()
        assert "mean +- deviation ..." in stream()
    elif encoding == "utf-8":
        assert "17.32 ± 0.21 × 2" in stream()


@ENCODINGS
def test_a_log_line_and_a_print(monkeypatch, encoding):
    stream = streams(monkeypatch, encoding)
    handler = RichHandler(console=console(stderr=True, width=80), show_path=False)
    record = logging.LogRecord("x", 20, "", 0, "Straße ☃ ± 1", None, None)
    handler.emit(record)
    print("daß ±")
    if encoding == "ascii":
        assert "Stra?e ? +- 1" in stream()
        assert "da? +-" in stream()
    assert "1" in stream()


def test_streams_of_others_are_left_alone(monkeypatch):
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    make_printable()
    console(width=20).print("±")
    assert sys.stdout.getvalue() == "±\n"


def test_a_dry_run_does_not_claim_that_nothing_was_written():
    text = Path(dry_run.__file__).read_text(encoding="utf-8")
    assert "nothing was trained, no run was written" in text
    assert "trained or written" not in text


def test_a_command_in_ascii():
    """Its own line has an umlaut, which such a terminal has not."""
    done = subprocess.run(
        [sys.executable, "train.py", "--config=configs/fastmri_ü4.py"],
        cwd=ROOT,
        env={"PYTHONIOENCODING": "ascii", "PATH": ""},
        capture_output=True,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    assert b"'configs/fastmri_u4.py'; nearest: fastmri_x4" in done.stderr
