"""Every command of README and pages is real: read by its program, or run."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys

import nibabel as nib
import pytest

from tests.data_fixtures import fastmri_root
from tests.docs.blocks import (
    FETCHERS,
    KINDS,
    PAGES,
    ROOT,
    Block,
    blocks,
    commands,
    looks_like_command,
)
from tests.docs.dry_run import READ
from tests.e2e.commands import SMALL, environment, run_all
from tests.e2e.test_enhance import scan

BLOCKS = [block for path in PAGES for block in blocks(path)]
# Counts that stand for themselves in an example.
NUMBERS = {"--processes=N": "--processes=2", "--process=I": "--process=0"}


def of_kind(*kinds: str) -> list[Block]:
    return [block for block in BLOCKS if block.kind in kinds]


def test_every_block_says_what_it_is():
    wrong = [str(b) for b in BLOCKS if b.kind not in (*KINDS, "inline")]
    assert not wrong, f"begin these by ```bash, ```python or ```text: {wrong}"
    hidden = [
        f"{block}: {line.strip()}"
        for block in of_kind("text")
        for line in block.text.splitlines()
        if looks_like_command(line)
    ]
    assert not hidden, f"commands in ```text: {hidden}"
    assert len(of_kind("bash")) > 15


def unwrapped(argv: list[str]) -> list[str]:
    """The Python command that a starter runs; the starter's own file exists.

    These cannot be run here: a scheduler, MPI, other machines.
    """
    name, rest = argv[0], argv[1:]
    if name == "sbatch":
        script = next(k for k, word in enumerate(rest) if not word.startswith("-"))
        text = (ROOT / rest[script]).read_text(encoding="utf-8")
        assert 'train.py "$@"' in text
        return ["python", "train.py", *rest[script + 1 :]]
    if name == "mpirun":
        return rest[next(k for k, w in enumerate(rest) if w.endswith("python")) :]
    if name == "scripts/launch.sh":
        assert os.access(ROOT / name, os.X_OK)
        assert "--" in rest[1:], "no host, or no command"
        return rest[rest.index("--") + 1 :]
    return argv


def test_commands_are_read_by_their_programs(tmp_path):
    found = [
        (block, unwrapped(argv))
        for block in of_kind("bash", "inline")
        for argv in commands(block, tmp_path)
    ]
    assert len(found) > 40
    wrong, python = [], []
    for block, argv in found:
        program = argv[0].rpartition("/")[2]
        if program == "python":
            python.append((block, [NUMBERS.get(word, word) for word in argv[1:]]))
        elif program == "make":
            if said := refused_by_make(tuple(argv[1:])):
                wrong.append(f"{block}: {said}")
        elif program == "mkdocs":
            assert argv[1:] == ["serve"], f"{block}: {argv}"
        elif program in FETCHERS:
            assert "ds002748" in " ".join(argv), f"{block}: {argv}"
        else:
            wrong.append(f"{block}: what is {argv[0]}?")
    results = read_all([argv for _, argv in python], tmp_path)
    for (block, argv), result in zip(python, results, strict=True):
        named = block.kind == "inline" and "arguments are required" in result["err"]
        listed = argv == ["eval.py"] and (
            "error E224: no run" in result["err"] or "evaluate one:" in result["out"]
        )
        explained = argv[-1] == "--help" and "Exit codes:" in result["out"]
        if not (named or listed or explained) and (
            result["code"] != 0 or READ not in result["out"]
        ):
            wrong.append(f"{block}: {' '.join(argv)}: {result['err'][-300:]}")
    assert not wrong, "\n".join(wrong)


def refused_by_make(arguments: tuple[str, ...]) -> str:
    done = subprocess.run(
        ["make", "-n", *arguments], cwd=ROOT, capture_output=True, text=True
    )
    return done.stderr if done.returncode else ""


def read_all(cases: list[list[str]], folder) -> list[dict]:
    file = folder / "cases.json"
    file.write_text(json.dumps(cases), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "tests.docs.dry_run", str(file)],
        cwd=ROOT,
        env=environment(folder / "cache"),
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_wrong_commands_are_noticed(tmp_path):
    train = "python train.py --config configs/fastmri_x4.py --workdir=RUN"
    said = {
        "python train.py --config configs/none.py --workdir=RUN": "configs/none.py",
        f"{train} --config.train.batchsize=18": "batch_size",
        f"{train} --config.model.name=dasr": "nearest: daasr",
        "python eval.py --workdir=RUN --fast": "fast",
        "python eval.py --workdir=RUN --config.data.size=64": "--config.data.s",
        "python -m benchmarks.none": "no module benchmarks.none",
        "python -m benchmarks.scaling --sahre 9": "--sahre",
    }
    cases = [commands(Block("page", 1, "bash", text), tmp_path)[0] for text in said]
    results = read_all([argv[1:] for argv in cases], tmp_path)
    for words, result in zip(said.values(), results, strict=True):
        assert READ not in result["out"]
        assert words in result["err"]


def test_an_unknown_command_is_noticed(tmp_path):
    with pytest.raises(AssertionError, match="command not found"):
        commands(Block("page", 1, "bash", "conda install daasr_jax\n"), tmp_path)
    assert "none" in refused_by_make(("none",))


@pytest.mark.parametrize("block", of_kind("python"), ids=str)
def test_python_runs(block):
    exec(compile(block.text, str(block), "exec"), {})


def test_readme_enhances_trains_and_evaluates(tmp_path):
    """Its commands as they stand, on small data; what is trained is a small network."""
    found = [
        argv[1:]
        for block in blocks(ROOT / "README.md")
        if block.kind == "bash"
        for argv in commands(block, tmp_path)
        if argv[0] == "python"
    ]
    assert [argv[0] for argv in found] == ["enhance.py", "train.py", "eval.py"]
    for name, side in (("T2.nii.gz", 24), ("T1.nii.gz", 96), ("T2_x4.nii.gz", 0)):
        found[0] = [str(tmp_path / w) if w == name else w for w in found[0]]
        if side:
            scan(tmp_path / name, side)
    root = fastmri_root(tmp_path / "data", train=4, val=2)
    run = tmp_path / "run"
    smaller = (
        *SMALL[1:],
        "--config.train.steps=1",
        "--config.perceptual.network=none",
        "--config.evaluate.show_progress=False",
    )
    cases = [
        [re.sub("DIR$", str(root), re.sub("RUN$", str(run), w)) for w in argv]
        for argv in found
    ]
    cases[1] += smaller
    results = run_all(cases, tmp_path / "cache")
    for result in results:
        assert result["code"] == 0, result["err"]
    assert nib.load(tmp_path / "T2_x4.nii.gz").shape == (96, 96, 2)
    assert "bicubic" in results[2]["out"]
    assert (run / "eval_test_random.json").is_file()
