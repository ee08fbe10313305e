"""A wheel built from the tree trains and evaluates where there is no checkout.

Nothing is downloaded: the environment into which the wheel goes is empty but for a path
file that names the packages of the running one. So a dependency that the metadata lack
is not noticed here; `tests/unit/test_packaging.py` compares them with the imports.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

import daasr_jax
from tests.e2e.commands import ROOT, complaint, environment

pytestmark = pytest.mark.timeout(500)

SMALL = (
    "--config.model.kwargs.features=8",
    "--config.model.kwargs.groups=1",
    "--config.train.crop=8",
    "--config.train.batch_size=2",
    "--config.train.steps=2",
    "--config.train.log_every=1",
    "--config.data.size=48",
    "--config.evaluate.resamples=200",
)
NO_SOURCE = (".*", "__pycache__", "build", "dist", "docs", "runs", "site", "*.egg-info")


@dataclass
class Installed:
    """The built distributions and the place where the wheel is installed."""

    sdist: Path
    wheel: Path
    python: Path
    folder: Path

    def start(self, *argv: str) -> subprocess.Popen[str]:
        """One command in an empty folder of a user's, without the checkout."""
        env = environment(self.folder / "cache")
        del env["PYTHONPATH"]
        work = self.folder / "work"
        work.mkdir(exist_ok=True)
        return subprocess.Popen(
            [self.python, *argv],
            cwd=work,
            env=env,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *argv: str) -> dict:
        """Exit code and streams of a command."""
        return finish(self.start(*argv))


def finish(process: subprocess.Popen[str]) -> dict:
    out, err = process.communicate(timeout=400)
    return {"code": process.returncode, "out": out, "err": err}


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    tree = folder / "tree"
    shutil.copytree(ROOT, tree, ignore=shutil.ignore_patterns(*NO_SOURCE))
    dist = folder / "dist"
    # The source distribution, and from it the wheel.
    build = ["build", "--no-isolation", "--outdir", str(dist), str(tree)]
    call(sys.executable, "-m", *build)
    (sdist,), (wheel,) = dist.glob("*.tar.gz"), dist.glob("*.whl")
    shutil.rmtree(tree)
    venv.create(folder / "env", with_pip=False, symlinks=True)
    python = folder / "env/bin/python"
    pip = ["pip", "--disable-pip-version-check", "--python", str(python), "install"]
    call(sys.executable, "-m", *pip, "--no-deps", "--no-index", str(wheel))
    where = "import sysconfig; print(sysconfig.get_path('purelib'))"
    packages = Path(call(python, "-c", where).strip())
    running = [
        p for p in sys.path if Path(p).name in ("site-packages", "dist-packages")
    ]
    (packages / "running.pth").write_text("\n".join(running))
    return Installed(sdist, wheel, python, folder)


def call(*argv: str | Path) -> str:
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run(argv, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_contents(installed):
    with zipfile.ZipFile(installed.wheel) as archive:
        names = set(archive.namelist())
    with tarfile.open(installed.sdist) as archive:
        sources = {name.partition("/")[2] for name in archive.getnames()}
    package = {p.relative_to(ROOT).as_posix() for p in code("daasr_jax")}
    splits = (ROOT / "configs/splits").glob("*.json")
    configs = {p.relative_to(ROOT).as_posix() for p in (*code("configs"), *splits)}
    assert "configs/splits/ds002748.json" in configs
    assert len(configs) > 20
    metadata = {n for n in names if n.startswith("daasr_jax-")}
    released = {
        p.relative_to(ROOT).as_posix()
        for p in (ROOT / "daasr_jax/released").iterdir()
        if p.suffix in (".json", ".md", ".safetensors")
    }
    assert "daasr_jax/released/index.json" in released
    released |= {
        "daasr_jax/enhancement/page.html",
        "daasr_jax/evaluation/tables/paper.json",
        "daasr_jax/evaluation/tables/report.html",
    }
    copies = {f"daasr_jax/{name}" for name in configs}
    assert names - metadata == package | released | copies
    assert any(name.endswith("licenses/LICENSE") for name in metadata)
    assert package | configs | {"README.md", "LICENSE"} <= sources
    assert not {n for n in names | sources if re.match(r"(tests|benchmarks)\b", n)}


def code(folder):
    return (ROOT / folder).rglob("*.py")


def test_train_evaluate_and_list(installed):
    listing = installed.start("-m", "daasr_jax.models", "--json")
    where = installed.run("-c", "import daasr_jax as d; print(d.__file__)")
    assert Path(where["out"]).is_relative_to(installed.folder / "env")

    work = installed.folder / "work"
    own = work / "configs/own.py"  # beside which the shipped files are still found
    own.parent.mkdir()
    own.write_text(
        "from configs import quickstart_x4\n\n"
        "def get_config():\n"
        "    return quickstart_x4.get_config()\n"
    )
    trained = installed.run(
        *("-m", "daasr_jax.train", "--config", "configs/quickstart_x4.py"),
        *(*SMALL, "--workdir", "run"),
    )
    assert trained["code"] == 0, trained["err"]
    record = json.loads((work / "run/config.json").read_text(encoding="utf-8"))
    assert record["commit"] == f"daasr_jax {daasr_jax.__version__} (wheel)"

    evaluated = installed.run(*("-m", "daasr_jax.eval", "--workdir", "run"))
    assert evaluated["code"] == 0, evaluated["err"]
    assert "result:     run/eval_test_random.json" in evaluated["out"]
    report = json.loads(
        (work / "run/eval_test_random.json").read_text(encoding="utf-8")
    )
    assert report["checkpoint_step"] == 2
    assert (work / "run/eval_test_random.png").exists()

    listed = finish(listing)
    assert listed["code"] == 0, listed["err"]
    assert {"daasr", "hat", "srcnn"} <= {r["system"] for r in json.loads(listed["out"])}


@pytest.mark.full
def test_a_scan_is_enhanced(installed):
    """By the released weights as they lie in the package, without anything else."""
    listed = installed.run("-m", "daasr_jax.models", "--released", "--json")
    index = json.loads(listed["out"])
    assert {name: entry["scale"] for name, entry in index.items()}.items() >= {
        ("x2", 2), ("x3", 3), ("x4", 4)
    }  # fmt: skip
    folder = installed.folder / "work"
    rng = np.random.default_rng(0)
    for name, side in (("T2", 24), ("T1", 96)):
        voxels = (rng.random((side, side, 2)) * 900).astype(np.int16)
        affine = np.diag([24 / side, 24 / side, 3, 1])
        nib.save(nib.Nifti1Image(voxels, affine), folder / f"{name}.nii.gz")
    done = installed.run(
        *("-m", "daasr_jax.enhance", "--input", "T2.nii.gz", "--ref", "T1.nii.gz"),
        *("--scale", "4", "--out", "T2_x4.nii.gz"),
    )
    assert done["code"] == 0, done["err"]
    assert nib.load(folder / "T2_x4.nii.gz").shape == (96, 96, 2)
    report = json.loads((folder / "T2_x4.json").read_text(encoding="utf-8"))
    released = json.loads((ROOT / "daasr_jax/released/index.json").read_text())
    source = report["weights"]["source"]
    wanted = {"weights": "x4", "sha256": released["x4"]["sha256"]}
    assert source == wanted | {"hash_was_checked": True}
    assert "</html>" in (folder / "T2_x4.html").read_text(encoding="utf-8")


def test_refusals(installed):
    unknown = installed.run("-m", "daasr_jax.train", "--config=qickstart_x4")
    assert not complaint(unknown, "E225", 2, "'qickstart_x4'", "quickstart_x4")
    nothing = installed.run(
        *("-m", "daasr_jax.eval", "--config=quickstart_x4:fast", "--workdir=none")
    )
    assert not complaint(nothing, "E404", 4, "python -m daasr_jax.train")
    weights = installed.run(
        *("-m", "daasr_jax.experiment.import_weights", "--config=hat_x5"),
        *("--torch=none.pth", "--out=converted"),
    )
    assert not complaint(weights, "E225", 2, "'hat_x5'", "hat_x4")
