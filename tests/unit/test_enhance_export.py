"""A network as one file, and the example."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from daasr_jax import released
from daasr_jax.enhancement import Engine, artefact
from daasr_jax.export import main
from tests.weights import write_weights

ROOT = Path(__file__).parents[2]


@pytest.fixture
def file(tmp_path):
    return write_weights(tmp_path / "x2.safetensors")


def images(n: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(n)
    return rng.random((n, 20, 22), np.float32), rng.random((n, 40, 44), np.float32)


def test_the_program_does_what_the_network_does(file):
    """For both platforms, for any batch, without the package's own code."""
    weights = released.load(file)
    made = artefact.export_program(weights, (20, 22))
    assert made.platforms == ("cpu", "cuda")
    engine = Engine(weights)
    for n in (1, 3):
        lr, ref = images(n)
        sr, c, p = made.call(lr[..., None], ref[..., None])
        wanted = engine(lr, ref[:, None])
        np.testing.assert_allclose(sr, wanted.sr, atol=1e-6 * np.abs(wanted.sr).max())
        np.testing.assert_allclose(c, wanted.confidence, atol=1e-6)
        np.testing.assert_array_equal(p, wanted.index)


@pytest.mark.full
def test_sizes_may_be_free(file):
    """One program for slices and references of any size, its search by products."""
    weights = released.load(file)
    made = artefact.export_program(weights)
    align = functools.partial(weights.model.align, search="chunked")
    engine = Engine(weights._replace(model=weights.model.clone(align=align)))
    rng = np.random.default_rng(0)
    for low, cells in (((20, 22), (20, 22)), ((31, 24), (40, 20))):
        lr = rng.random((2, *low), np.float32)
        ref = rng.random((2, 2 * cells[0], 2 * cells[1]), np.float32)
        lr[:, :4], ref[:, :8] = 0, 0
        sr, c, p = made.call(lr[..., None], ref[..., None])
        wanted = engine(lr, ref[:, None])
        np.testing.assert_allclose(sr, wanted.sr, atol=1e-6 * np.abs(wanted.sr).max())
        np.testing.assert_allclose(c, wanted.confidence, atol=1e-6)
        np.testing.assert_array_equal(p, wanted.index)


def test_a_network_that_needs_a_size_is_one_line(tmp_path, capsys):
    file = write_weights(tmp_path / "dc.safetensors", data_consistency=True)
    out = ["--out", str(tmp_path / "x.jaxexport")]
    text = refused(capsys, "--checkpoint", str(file), *out)
    assert text.startswith("error E261: ")
    assert "--size" in text
    assert len(text.strip().splitlines()) == 1


USE = """
import sys, jax, numpy as np
data = np.load(sys.argv[2])
program = jax.export.deserialize(open(sys.argv[1], "rb").read())
found = program.call(data["lr"], data["ref"])
np.savez(sys.argv[3], **dict(zip("scp", found)))
assert not [name for name in sys.modules if name.startswith(("daasr", "flax"))]
"""


def test_the_file_runs_with_jax_alone(file, tmp_path, capsys):
    pytest.importorskip(
        "flatbuffers", reason="flatbuffers, the extra export, is absent"
    )
    out = tmp_path / "x2.jaxexport"
    given = ["--checkpoint", str(file), "--size", "20x22", "--out", str(out)]
    assert main(given) == 0
    assert "lr (B, 20, 22, 1) and ref (B, 40, 44, 1)" in capsys.readouterr().out
    lr, ref = images(2)
    np.savez(tmp_path / "in.npz", lr=lr[..., None], ref=ref[..., None])
    (tmp_path / "use.py").write_text("import jax.export\n" + USE)
    argv = [sys.executable, str(tmp_path / "use.py"), str(out)]
    argv += [str(tmp_path / "in.npz"), str(tmp_path / "out.npz")]
    env = {k: v for k, v in os.environ.items() if not k.startswith("JAX_")}
    env |= {"JAX_PLATFORMS": "cpu", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
    subprocess.run(argv, check=True, cwd=tmp_path, env=env)
    found = np.load(tmp_path / "out.npz")
    wanted = Engine(released.load(file))(lr, ref[:, None])
    np.testing.assert_allclose(
        found["s"], wanted.sr, atol=1e-6 * np.abs(wanted.sr).max()
    )


def refused(capsys, *argv: str) -> str:
    assert main([*argv]) != 0
    return capsys.readouterr().err


def test_refusals(file, tmp_path, capsys, monkeypatch):
    out = ["--out", str(tmp_path / "x.jaxexport")]
    assert "error E420" in refused(capsys, "--checkpoint", "x9", *out)
    text = refused(capsys, "--checkpoint", str(file), *out, "--size", "20")
    assert text.startswith("error E225: ")
    assert "HEIGHTxWIDTH" in text
    monkeypatch.setitem(sys.modules, "flatbuffers", None)
    monkeypatch.delitem(sys.modules, "jax._src.export.serialization", raising=False)
    text = refused(capsys, "--checkpoint", str(file), "--size", "20x20", *out)
    assert text.startswith("error E259: ")
    text = refused(capsys, "--checkpoint", str(file), *out, "--size", "19x20")
    assert "sides are 20 to 1024" in text
    text = refused(capsys, "--checkpoint", str(file), "--out", str(tmp_path / "x.foo"))
    assert "x.foo has an unknown ending" in text
    text = refused(capsys, "--checkpoint", str(file), *out, "--about", "a.json")
    assert "--about is for an --out that ends in .safetensors" in text
    weights = ["--out", str(tmp_path / "y.safetensors")]
    text = refused(capsys, "--checkpoint", str(tmp_path), *weights, "--size", "20x20")
    assert "--size is for an --out that ends in .jaxexport" in text
    assert "error E404" in refused(capsys, "--checkpoint", str(tmp_path), *weights)
    (tmp_path / "about.json").write_text(json.dumps({"colour": 1}))
    about = ["--about", str(tmp_path / "about.json")]
    text = refused(capsys, "--checkpoint", str(tmp_path), *weights, *about)
    assert "error E255" in text
    assert "'colour'" in text


def test_the_example_runs(file, tmp_path):
    rng = np.random.default_rng(0)
    for name, side in (("T2", 20), ("T1", 40)):
        voxels = (rng.random((side, side, 2)) * 900).astype(np.int16)
        nib.save(nib.Nifti1Image(voxels, np.eye(4)), tmp_path / f"{name}.nii")
    script = ROOT / "examples/enhance_arrays.py"
    argv = [sys.executable, str(script), str(tmp_path / "T2.nii")]
    argv += [str(tmp_path / "T1.nii"), "--weights", str(file)]
    env = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(argv, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "(2, 20, 20) -> (2, 40, 40)" in done.stdout
    assert "the reference changed the result by" in done.stdout
    assert len(script.read_text().splitlines()) < 35
