"""The tests marked `gpu` on this device: what they found, in `check.json`.

python -m benchmarks.gpu.check --out DIR [--seconds 120]
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.gpu import stage

# Without the options and fixtures of the other tests, whose packages may be absent.
PYTEST = (
    *("-m", "pytest", "tests/gpu", "--confcutdir=tests/gpu", "-o", "addopts="),
    *("-p", "no:cacheprovider", "-rA", "-v", "--durations=8", "--color=no"),
    *("-m", "not full"),
)
# Plugins that happen to be installed take no part.
ALONE = {
    "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
    "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
}
OUTCOMES = "PASSED|FAILED|ERROR|SKIPPED|XFAIL|XPASS"


def outcomes(text: str) -> dict[str, str]:
    """Test -> outcome, from the lines that pytest writes as the tests end."""
    found = {}
    for line in text.splitlines():
        beside = re.match(rf"\[gw\d+\] \[ *\d+%\] ({OUTCOMES}) (\S+)", line)
        alone = re.match(rf"(\S+::.+?) ({OUTCOMES})( .*)?$", line)
        if beside:
            found[beside[2]] = beside[1]
        elif alone:
            found[alone[1]] = alone[2]
    return found


def run(command: list[str], log: Path, seconds: float, **variables: str) -> int | None:
    """Runs a command for so long at most; what it started ends with it.

    Returns:
        Its exit code; None where it was stopped.
    """
    with log.open("w", encoding="utf-8") as file:
        process = subprocess.Popen(
            command,
            stdout=file,
            stderr=subprocess.STDOUT,
            env=os.environ | ALONE | variables,
            start_new_session=True,
        )
        try:
            return process.wait(seconds)
        except subprocess.TimeoutExpired:
            return None
        finally:
            stage.end(process)


def result_of(text: str, code: int | None, seconds: float) -> dict[str, Any]:
    """What pytest's output says.

    Args:
        text: The output, perhaps of a process that was stopped.
        code: Its exit code; None where it was stopped.
        seconds: That it took.
    """
    lines = text.splitlines()
    ended = list(outcomes(text).values())
    asked = re.search(r"\b(\d+) selected\b", text)  # of more items
    asked = asked or re.search(r"\b(\d+) items?\b", text)
    found = re.search(r"^JAX finds: (.*)$", text, re.MULTILINE)
    return {
        "exit": "stopped at its limit" if code is None else code,
        "seconds": seconds,
        "devices": found[1] if found else "not known",
        "not_ended": int(asked[1]) - len(ended) if asked and code != 0 else 0,
        "outcomes": {name: ended.count(name) for name in sorted(set(ended))},
        "not_passed": [
            x[:300] for x in lines if re.match("(FAILED|ERROR|SKIPPED|XFAIL|XPASS) ", x)
        ],
        "measured": sorted(
            {x[x.index("MEASURED") :] for x in lines if "MEASURED" in x}
        ),
        "end": [x for x in lines if x.strip()][-1:],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=120.0)
    parser.add_argument("--tiny", action="store_true", help="only collect them")
    args = parser.parse_args()
    stage.needs("pytest")
    args.out.mkdir(parents=True, exist_ok=True)
    log = args.out / "check.txt"
    command = [sys.executable, *PYTEST, *(["--collect-only"] if args.tiny else [])]
    if importlib.util.find_spec("xdist"):
        command += ["-p", "xdist", "-n", "3", "--dist", "loadfile"]
    variables = {}
    if not args.tiny and "DAASR_GPU_TESTS_ON" not in os.environ and stage.card():
        variables["DAASR_GPU_TESTS_ON"] = "gpu"  # a CPU in its place is a failure
    begin, code = time.monotonic(), None
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # the visit is over
    try:
        code = run(command, log, args.seconds, **variables)
    finally:
        text = log.read_text(encoding="utf-8", errors="replace") if log.exists() else ""
        result = result_of(text, code, time.monotonic() - begin)
        stage.write(args.out / "check.json", result)
        machine = args.out / "machine.json"
        if machine.is_file():
            about = json.loads(machine.read_text(encoding="utf-8"))
            stage.write(machine, about | {"jax_devices": result["devices"]})
    print(f"{result['outcomes']} {' '.join(result['end'])}", flush=True)
    if code is None:
        stage.leave("stopped at its limit")
    sys.exit(code)


if __name__ == "__main__":
    main()
