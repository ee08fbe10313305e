"""A process that reads damaged files, one after another: `python -m tests.fuzz.worker`.

A line on standard input asks for one case, as JSON: reader, folder, folder of the
undamaged case. The answer is a line of JSON. A library that ends the process, or never
comes back, is seen by whoever asked.
"""

from __future__ import annotations

import json
import os
import resource
import select
import subprocess
import sys
import traceback
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
# Nothing here needs more; what a damaged header asks for must not be taken.
_SPARE_BYTES = 3 * 2**30
_LIMIT_SECONDS = 20.0


class Worker:
    """The process, started where it is needed and anew where it has ended."""

    def __init__(self, limit: float = _LIMIT_SECONDS) -> None:
        self._process: subprocess.Popen[str] | None = None
        self._limit = limit

    def ask(self, reader: str, folder: Path, original: Path) -> tuple[str, str]:
        """What comes of reading a case.

        Returns:
            `read`, `refused`, `wrong`, `traceback`, `hang` or `crash`; and words.
        """
        process = self._started()
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            print(json.dumps([reader, str(folder), str(original)]), file=process.stdin)
            process.stdin.flush()
            if not select.select([process.stdout], [], [], self._limit)[0]:
                self.close()
                return "hang", f"no answer after {self._limit:.0f} s"
            line = process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            code = process.wait()
            self.close()
            return "crash", f"the process ended with {code}"
        return tuple(json.loads(line))

    def close(self) -> None:
        """Ends the process."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
        self._process = None

    def _started(self) -> subprocess.Popen[str]:
        if self._process is None:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.fuzz.worker"],
                cwd=ROOT,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
                env=os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)},
            )
            assert self._process.stdout is not None
            self._process.stdout.readline()  # it is ready
        return self._process


def _limit_memory() -> None:
    taken = int(Path("/proc/self/statm").read_text().split()[0])
    limit = taken * os.sysconf("SC_PAGE_SIZE") + _SPARE_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def _answer(reader: str, folder: str, original: str) -> tuple[str, str]:
    from tests.fuzz.readers import READERS, WrongError, outcome

    try:
        return outcome(READERS[reader], Path(folder), Path(original))
    except WrongError as error:
        return "wrong", str(error)
    except BaseException:
        return "traceback", traceback.format_exc()


def main() -> None:
    """Answers until the input ends."""
    import logging

    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    logging.disable(logging.CRITICAL)
    import jax

    jax.config.update("jax_disable_most_optimizations", True)
    import tests.fuzz.readers  # noqa: F401  slow

    _limit_memory()

    def say(content: Any) -> None:
        print(json.dumps(content), file=answers, flush=True)

    say("ready")
    for line in sys.stdin:
        say(_answer(*json.loads(line)))


if __name__ == "__main__":
    main()
