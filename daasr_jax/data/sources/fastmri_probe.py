"""The texts of an HDF5 file, read in another process first.

The HDF5 library loops without end on a file whose heap of texts is damaged, and nothing
stops it from within Python. So another process reads the texts of every file before
this one does. It serves all files, and knows h5py alone, so that it starts in a fifth
of a second.
"""

import atexit
import functools
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

from daasr_jax.data.sources.base import BadFileError

# Of the processor, for the texts of one file. A slow disk takes none of it.
_LIMIT_SECONDS = 5
_READER = """
import json, resource, sys
import h5py

def limit(kind, soft):
    hard = resource.getrlimit(kind)[1]
    wanted = soft if hard == resource.RLIM_INFINITY else min(soft, hard)
    resource.setrlimit(kind, (wanted, hard))

def texts(path):
    with h5py.File(path, "r") as file:
        for name in ("acquisition", "patient_id"):
            if name in file.attrs:
                file.attrs[name]
        link = file.get("ismrmrd_header", getlink=True)
        if isinstance(link, h5py.HardLink) and file["ismrmrd_header"].size == 1:
            file["ismrmrd_header"][()]

limit(resource.RLIMIT_CORE, 0)
limit(resource.RLIMIT_AS, 2**32)
for line in sys.stdin:
    used = sum(resource.getrusage(resource.RUSAGE_SELF)[:2])
    limit(resource.RLIMIT_CPU, int(used) + int(sys.argv[1]))
    try:
        texts(json.loads(line))
    except Exception:  # the caller meets it too, and says what it is
        pass
    print(flush=True)
"""


def check_texts(path: Path) -> None:
    """Raises BadFileError where the HDF5 library does not come back from the texts."""
    process = _started(os.getpid())
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        process.stdin.write(f"{json.dumps(str(path.absolute()))}\n")
        process.stdin.flush()
        answer = process.stdout.readline()
    except BrokenPipeError:  # it could not start, such as for want of memory
        answer = ""
    if answer:
        return
    _started.cache_clear()
    code = process.wait()
    process.communicate()
    if code < 0:
        does = "loops without end" if code == -signal.SIGXCPU else "crashes"
        raise BadFileError(f"damaged HDF5 file (the HDF5 library {does} on its texts)")


@functools.lru_cache(maxsize=1)
def _started(_: int) -> "subprocess.Popen[str]":
    """The process of this one; a fork of this one gets its own."""
    process = subprocess.Popen(
        [sys.executable, "-P", "-c", _READER, str(_LIMIT_SECONDS)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        encoding="utf-8",
        errors="surrogateescape",
    )
    atexit.register(_end, process)
    return process


def _end(process: "subprocess.Popen[str]") -> None:
    """Ends it; `communicate` closes its pipes too."""
    process.kill()
    process.communicate()
