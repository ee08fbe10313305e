"""Writes the software bill of materials, CycloneDX 1.6 as JSON, from the lock:

    python scripts/sbom.py --out dist/daasr_jax.cdx.json

Its components are every package that `requirements.txt` pins, with the SHA-256 of each
of its files, and the released weights with theirs. The same lock gives the same bytes.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import tomllib
import uuid
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
LOCK = ROOT / "requirements.txt"
WEIGHTS = ROOT / "daasr_jax/released"
_PIN = re.compile(
    r"^(?P<name>[\w.-]+)==(?P<version>[^ \\]+)(?: ; (?P<marker>.+?))? \\$"
)
_HASH = re.compile(r"--hash=sha256:([0-9a-f]{64})")


def main() -> None:
    """Writes the file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=ROOT / "dist/daasr_jax.cdx.json")
    out = parser.parse_args().out
    out.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(bill(), indent=1, sort_keys=True) + "\n"
    out.write_text(text, encoding="utf-8")
    print(out)


def bill() -> dict[str, Any]:
    """The document.

    Raises:
        ValueError: If the lock holds what is no pinned package with hashes.
    """
    lock = LOCK.read_text(encoding="utf-8")
    packages = locked(lock)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    name, version = (project["project"][key] for key in ("name", "version"))
    reference = f"pkg:pypi/{name.replace('_', '-')}@{version}"
    weights = released()
    parts = [*packages, *weights]
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_URL, reference + lock)}",
        "version": 1,
        "metadata": {
            "component": {
                "type": "application",
                "bom-ref": reference,
                "name": name,
                "version": version,
                "purl": reference,
                "licenses": [{"license": {"id": project["project"]["license"]}}],
            }
        },
        "components": parts,
        "dependencies": [
            {"ref": reference, "dependsOn": sorted(p["bom-ref"] for p in parts)}
        ],
    }


def locked(lock: str) -> list[dict[str, Any]]:
    """The packages of a lock.

    Args:
        lock: As `uv pip compile --generate-hashes` writes it.

    Raises:
        ValueError: If a line is no package with its version, or one has no hash.
    """
    found = []
    text = re.sub(r"^ *#.*\n?", "", lock, flags=re.MULTILINE)
    for entry in re.split(r"\n(?=\S)", text.strip()):
        pin = _PIN.match(entry.partition("\n")[0])
        hashes = _HASH.findall(entry)
        if not pin or not hashes:
            raise ValueError(f"no pinned package with hashes: {entry[:99]!r}")
        found.append(_package(pin, hashes))
    return found


def _package(pin: re.Match[str], hashes: list[str]) -> dict[str, Any]:
    name, version, marker = pin["name"].lower(), pin["version"], pin["marker"]
    reference = f"pkg:pypi/{name}@{version}"
    files = {
        "type": "distribution",
        "url": f"https://pypi.org/project/{name}/{version}/#files",
        "hashes": [{"alg": "SHA-256", "content": one} for one in sorted(hashes)],
    }
    told = {"properties": [{"name": "marker", "value": marker}]} if marker else {}
    return {
        "type": "library",
        "bom-ref": reference,
        "name": name,
        "version": version,
        "purl": reference,
        "externalReferences": [files],
    } | told


def released() -> list[dict[str, Any]]:
    """The weights of the package, by their index."""
    index = json.loads((WEIGHTS / "index.json").read_text(encoding="utf-8"))
    return [
        {
            "type": "machine-learning-model",
            "bom-ref": f"weights:{name}",
            "name": entry["file"],
            "version": entry["sha256"][:12],
            "hashes": [{"alg": "SHA-256", "content": digest(WEIGHTS / entry["file"])}],
        }
        for name, entry in sorted(index.items())
    ]


def digest(path: Path) -> str:
    """SHA-256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


if __name__ == "__main__":
    main()
