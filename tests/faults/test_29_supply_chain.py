"""Fault 29: a package, a file of weights or a server is not what was published.

Expected: every package is pinned by SHA-256, but PyTorch of `make parity`, and the bill
of materials lists them all.
Released weights with another SHA-256 are refused. Training, evaluation, enhancement and
the commands beside them open no connection.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from daasr_jax import released
from daasr_jax.errors import CheckpointError
from tests.data_fixtures import fastmri_root, nifti_root
from tests.e2e.commands import ROOT, SMALL, environment
from tests.e2e.test_enhance import scan
from tests.e2e.test_reproduce import command as reproduce

pytestmark = pytest.mark.timeout(600)

_LOCKS = ("requirements.txt", "requirements-dev.txt", "requirements-cuda.txt")
# An audit hook sees every call of the socket module, by whatever library.
_BLOCKED = """
import sys

CALLS = {"socket.connect", "socket.sendto", "socket.sendmsg", "socket.getaddrinfo",
         "socket.gethostbyname", "socket.gethostbyaddr"}

def hook(event, arguments):
    if event not in CALLS:
        return
    address = arguments[-1] if event.startswith(("socket.conn", "socket.send")) else ""
    if isinstance(address, (str, bytes)) and address:  # a socket of this machine
        return
    with open(LOG, "a") as file:
        print(event, arguments[-1], file=file)
    raise PermissionError("the network is blocked")

sys.addaudithook(hook)
"""
# By a name, by a number, and without a connection: each has to be seen.
_REACHES_OUT = """
import socket

place, plain = ("192.0.2.1", 80), socket.SOCK_DGRAM
for reach in (
    lambda: socket.create_connection(("host.invalid", 80)),
    lambda: socket.socket().connect(place),
    lambda: socket.socket(type=plain).sendto(b"x", place),
):
    try:
        reach()
    except PermissionError as error:
        print(error)
"""


def _script(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / f"scripts/{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", _LOCKS)
def test_29_every_package_is_pinned_by_its_hash(name):
    lock = (ROOT / name).read_text(encoding="utf-8")
    packages = _script("sbom").locked(lock)
    pins = re.findall(r"^[\w.-]+==", lock, re.MULTILINE)
    assert len(packages) == len(pins) > 80
    assert not re.search(r"^[^#\n]*(git\+|https?://|--index-url)", lock, re.MULTILINE)


@pytest.mark.parametrize(
    "line",
    [
        "numpy==2.4.6\n    # via jax\n",
        "numpy>=2 \\\n    --hash=sha256:" + "0" * 64 + "\n",
        "x @ git+https://host/x \\\n    --hash=sha256:" + "0" * 64 + "\n",
    ],
)
def test_29_a_package_without_pin_or_hash_is_refused(line):
    with pytest.raises(ValueError, match="no pinned package"):
        _script("sbom").locked(line)


def test_29_bill_of_materials(tmp_path):
    outs = [tmp_path / name for name in ("a.json", "b.json")]
    for out in outs:
        subprocess.run(
            [sys.executable, "scripts/sbom.py", "--out", out], cwd=ROOT, check=True
        )
    assert outs[0].read_bytes() == outs[1].read_bytes()
    bill = json.loads(outs[0].read_text(encoding="utf-8"))
    assert (bill["bomFormat"], bill["specVersion"]) == ("CycloneDX", "1.6")
    assert re.fullmatch(r"urn:uuid:[0-9a-f-]{36}", bill["serialNumber"])
    parts = {part["bom-ref"]: part for part in bill["components"]}
    assert len(parts) == len(bill["components"])
    assert set(bill["dependencies"][0]["dependsOn"]) == set(parts)
    lock = (ROOT / "requirements.txt").read_text(encoding="utf-8")
    pins = set(re.findall(r"^([\w.-]+==[^ ]+)", lock, re.MULTILINE))
    listed = {
        f"{p['name']}=={p['version']}" for p in parts.values() if p["type"] == "library"
    }
    assert listed == {pin.lower() for pin in pins}
    hashes = re.findall(r"sha256:([0-9a-f]{64})", lock)
    assert sorted(hashes) == sorted(
        one["content"]
        for part in parts.values()
        for reference in part.get("externalReferences", ())
        for one in reference["hashes"]
    )
    for name, entry in released.names().items():
        assert parts[f"weights:{name}"]["hashes"][0]["content"] == entry["sha256"]


def test_29_released_weights_are_those_of_the_index(tmp_path):
    for name, entry in released.names().items():
        data = (released.FOLDER / entry["file"]).read_bytes()
        assert hashlib.sha256(data).hexdigest() == entry["sha256"], name
    shutil.copy(released.FOLDER / "index.json", tmp_path)
    changed = bytearray((released.FOLDER / "x2.safetensors").read_bytes())
    changed[np.random.default_rng(0).integers(len(changed))] ^= 1
    path = tmp_path / "x2.safetensors"
    path.write_bytes(changed)
    with pytest.raises(CheckpointError, match="SHA-256") as caught:
        released.load(path)
    assert caught.value.code == "E421"


@pytest.mark.full
def test_29_no_connection_is_opened(tmp_path):
    """In a network namespace without a network too, where the system allows one."""
    log, site = tmp_path / "calls", tmp_path / "site"
    site.mkdir()
    (site / "sitecustomize.py").write_text(f"LOG = {str(log)!r}\n{_BLOCKED}")
    run = tmp_path / "run"
    t2, t1 = scan(tmp_path / "T2.nii", 24), scan(tmp_path / "T1.nii", 96, seed=1)
    caught = tmp_path / "reaches_out.py"
    caught.write_text(_REACHES_OUT)
    nifti, h5 = nifti_root(tmp_path / "nifti"), fastmri_root(tmp_path / "h5", 6, 3)
    weights = tmp_path / "weights.pth"
    weights.write_bytes(b"x")
    cases = {
        "reaches out": [str(caught)],
        "read NIfTI": ["train.py", *SMALL, f"--config.data.root={nifti}",
                       f"--workdir={run}1", "--check_data"],
        "read HDF5": ["train.py", *SMALL, f"--config.data.root={h5}",
                      f"--workdir={run}2", "--check_data"],
        "train": ["train.py", *SMALL, "--config.data.layout=template",
                  "--config.reference.exclude=slice", f"--workdir={run}",
                  "--config.train.steps=1"],
        "eval": ["eval.py", f"--workdir={run}"],
        "enhance": ["enhance.py", "--input", str(t2), "--ref", str(t1), "--checkpoint",
                    "x4", "--out", f"{tmp_path}/a.nii"],
        "verify": ["daasr_jax/experiment/verify.py", str(run)],
        "export": ["daasr_jax/export.py", "--checkpoint", str(run), "--out",
                   f"{tmp_path}/own.safetensors"],
        "import": ["daasr_jax/experiment/import_weights.py", "--vgg19", "--torch",
                   str(weights), "--out", f"{tmp_path}/vgg.npz"],
        "reproduce": [*reproduce(h5, tmp_path / "tables"), "--dry_run"],
    }  # fmt: skip
    refused = {"import": 2}  # that file holds no weights, and PyTorch may be absent
    file = tmp_path / "cases.json"
    file.write_text(json.dumps([*cases.values()]))
    argv = [sys.executable, "-m", "tests.e2e.launcher", str(file)]
    apart = ["unshare", "--net", "--map-root-user"]
    alone = (
        bool(shutil.which("unshare"))
        and not subprocess.run([*apart, "true"], capture_output=True).returncode
    )
    if alone:
        argv = [*apart, *argv]
    print("a network namespace of its own" if alone else "calls are blocked, no more")
    done = subprocess.run(
        argv,
        cwd=ROOT,
        env=environment(tmp_path / "cache") | {"PYTHONPATH": f"{site}:{ROOT}"},
        capture_output=True,
        text=True,
        timeout=500,
        check=True,
    )
    found = dict(zip(cases, json.loads(done.stdout), strict=True))
    assert found.pop("reaches out")["out"] == 3 * "the network is blocked\n"
    for name, result in found.items():
        assert result["code"] == refused.get(name, 0), f"{name}: {result['err']}"
    calls = [line.split()[0] for line in log.read_text().splitlines()]
    assert calls == ["socket.getaddrinfo", "socket.connect", "socket.sendto"]
    assert Path(tmp_path / "a.nii").is_file()
