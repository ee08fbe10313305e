"""Runs `train.py` and `eval.py` many times from one start of the interpreter.

`python -m tests.e2e.launcher CASES.json`: a list of `[script, argument, ...]`. Each
runs in a forked child as `__main__`; its exit code and streams are printed as JSON.
"""

from __future__ import annotations

import json
import os
import runpy
import sys
import tempfile
import traceback
from pathlib import Path

import daasr_jax.experiment.evaluate
import daasr_jax.experiment.train  # noqa: F401  the slow import, shared by all children


def run(argv: list[str]) -> dict[str, object]:
    with tempfile.TemporaryDirectory() as folder:
        streams = [Path(folder, name) for name in ("out", "err")]
        child = os.fork()
        if child == 0:
            code = 99
            try:
                for number, path in enumerate(streams, 1):
                    os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), number)
                sys.argv = list(argv)
                runpy.run_path(argv[0], run_name="__main__")
                code = 0
            except SystemExit as stop:
                code = stop.code if isinstance(stop.code, int) else int(bool(stop.code))
            except BaseException:
                traceback.print_exc()
                code = 1
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)
        _, status = os.waitpid(child, 0)
        out, err = (p.read_text("utf-8") if p.exists() else "" for p in streams)
        return {"code": os.waitstatus_to_exitcode(status), "out": out, "err": err}


if __name__ == "__main__":
    cases = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    results = [run(argv) for argv in cases]
    print(json.dumps(results))
