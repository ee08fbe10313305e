"""What a wheel needs: configurations found by name, dependencies declared, a commit."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

import daasr_jax
from daasr_jax.errors import ConfigError
from daasr_jax.experiment import installation
from daasr_jax.experiment.configuration import load, locate, shipped

ROOT = Path(__file__).parents[2]
OURS = {"daasr_jax", "configs"}


def project():
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))[
        "project"
    ]


def distributions(requirements):
    """Names without extras and versions, in the spelling of the package index."""
    names = (re.match(r"[\w.-]+", requirement) for requirement in requirements)
    return {re.sub(r"[-_.]+", "-", name[0]).lower() for name in names if name}


def imports(path):
    """Top-level name -> whether the module imports it as it is loaded itself."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found = {}
    for node in ast.walk(tree):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names = [node.module]
        for name in names:
            top = name.partition(".")[0]
            found[top] = found.get(top, False) or node in tree.body
    return {
        name: at_once
        for name, at_once in found.items()
        if name not in sys.stdlib_module_names | OURS
    }


def test_every_import_is_a_declared_dependency():
    needed = distributions(project()["dependencies"])
    extras = project()["optional-dependencies"]
    optional = distributions([*extras["parity"], *extras["dicom"], *extras["export"]])
    known = packages_distributions()
    missing = {}
    files = [*(ROOT / "daasr_jax").rglob("*.py"), *(ROOT / "configs").glob("*.py")]
    for path in files:
        for name, at_once in imports(path).items():
            declared = needed if at_once else needed | optional
            if not distributions(known.get(name, [name])) & declared:
                missing.setdefault(name, []).append(path.relative_to(ROOT).as_posix())
    assert len(files) > 100
    assert missing == {}


def test_version_is_one():
    assert project()["version"] == daasr_jax.__version__
    cited = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert f"\nversion: {daasr_jax.__version__}\n" in cited


class TestConfigurationFile:
    def test_shipped(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        for file in ("hat_x4", "hat_x4.py", "configs/hat_x4.py", "./hat_x4"):
            assert locate(file) == ROOT / "configs/hat_x4.py"
        for name in shipped():
            assert load(name).is_locked
        assert load("hat_x4:published") != load("hat_x4")
        assert "protocol" not in shipped()

    def test_own_file_wins(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        mine = tmp_path / "configs/hat_x4.py"
        mine.parent.mkdir()
        mine.write_text(
            "from configs import brain_x4\n\n"
            "def get_config():\n"
            "    config = brain_x4.get_config().unlock()\n"
            "    config.name = 'mine'\n"
            "    return config\n"
        )
        for file in ("hat_x4", "hat_x4.py", "configs/hat_x4.py", str(mine)):
            config = load(file)
            assert config.name == "mine"
            assert config.is_locked
        nearer = tmp_path / "hat_x4.py"
        nearer.write_text(mine.read_text().replace("'mine'", "'nearer'"))
        assert load("hat_x4").name == "nearer"
        assert load("configs/hat_x4.py").name == "mine"

    @pytest.mark.parametrize(
        ("file", "says"),
        [
            ("hat_x5", "'hat_x5'; nearest: hat_x4"),
            ("configs/qickstart_x4.py:fast", "nearest: quickstart_x4"),
            ("elsewhere/hat_x4.py", "'elsewhere/hat_x4.py'; nearest: hat_x4"),
            ("configs/protocol.py", "has no get_config"),
            ("none.py", "returns NoneType"),
            ("fails.py", "two lines"),
        ],
    )
    def test_refused(self, file, says, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        Path("none.py").write_text("def get_config():\n    pass\n")
        Path("fails.py").write_text("raise ValueError('two\\nlines')\n")
        with pytest.raises(ConfigError, match=re.escape(says)) as caught:
            load(file)
        assert caught.value.code == "E225"
        assert "\n" not in str(caught.value)


def git(folder, *arguments):
    who = ("-c", "user.name=x", "-c", "user.email=x@x")
    done = subprocess.run(
        ["git", *who, *arguments],
        cwd=folder,
        check=True,
        capture_output=True,
        text=True,
    )
    return done.stdout.strip()


@pytest.mark.skipif(not shutil.which("git"), reason="git is not installed")
def test_commit_is_of_this_code_alone(tmp_path):
    """The package lies in a project of a user's, and that project has commits."""
    package = tmp_path / "lib/daasr_jax"
    (package / "experiment").mkdir(parents=True)
    for name in ("__init__.py", "experiment/__init__.py", "experiment/installation.py"):
        shutil.copy(ROOT / "daasr_jax" / name, package / name)
    (tmp_path / "own.txt").write_text("of the user's")
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", "own.txt")
    git(tmp_path, "commit", "-q", "-m", "own")

    def said():
        code = (
            "from daasr_jax.experiment.installation import commit_id as c; print(c())"
        )
        done = subprocess.run(
            [sys.executable, "-B", "-c", code],
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": str(tmp_path / "lib")},
            check=True,
            capture_output=True,
            text=True,
        )
        return done.stdout.strip()

    assert said() == "unknown"
    (package / "configs").mkdir()
    assert said() == f"daasr_jax {daasr_jax.__version__} (wheel)"
    (package / "configs").rmdir()
    git(tmp_path, "add", "lib")
    git(tmp_path, "commit", "-q", "-m", "vendored")
    assert said() == git(tmp_path, "rev-parse", "HEAD")
    (package / "__init__.py").write_text("changed = True\n")
    assert said().endswith("-dirty")


def test_commands_fit_the_place(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    assert installation.command("eval") == "python eval.py"
    monkeypatch.chdir(tmp_path)
    assert installation.command("eval") == "python -m daasr_jax.eval"
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(installation, "is_wheel", lambda: True)
    assert installation.command("train") == "python -m daasr_jax.train"
