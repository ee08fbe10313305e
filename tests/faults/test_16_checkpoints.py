"""Fault 16: a checkpoint cut short, without a file, left half written, or copied.

Expected: the newest whole step before it is used, said loudly. A run that has been is
never begun again in silence: without a usable step it ends with exit code 4.
`python -m daasr_jax.experiment.verify` tells what each checkpoint is worth.
"""

from __future__ import annotations

import shutil

import pytest

from daasr_jax.errors import CheckpointError
from daasr_jax.experiment import verify
from daasr_jax.experiment.begun import check_new
from daasr_jax.training.checkpoints import Checkpoints
from tests.data_fixtures import one_line
from tests.unit.test_checkpoints import flip_a_bit, opened, state, write


@pytest.fixture
def kept(tmp_path):
    """A run whose steps 2, 3 and 4 are kept."""
    write(tmp_path, [20.0, 30.0, 25.0, 22.0])
    return tmp_path


def test_16_missing_file_and_truncation(kept):
    next(p for p in (kept / "checkpoints/4/state").rglob("*") if p.is_file()).unlink()
    path = flip_a_bit(kept / "checkpoints/3")
    path.write_bytes(path.read_bytes()[:-1])
    assert opened(kept) == ([2], 2, 2)


def test_16_no_usable_step_never_restarts(kept):
    for step in (2, 3, 4):
        flip_a_bit(kept / f"checkpoints/{step}")
    for _ in range(2):  # the second start finds what the first one found
        store = Checkpoints(kept)
        for choose in (store.latest, store.best):
            with pytest.raises(CheckpointError, match=r"E401.*step 4.*SHA-256") as e:
                choose()
            assert e.value.exit_code == 4
            assert "\n" not in str(e.value)
        store.close()
    assert len(list((kept / "checkpoints").glob("[0-9]*"))) == 3


def test_16_a_copy_without_manifests_never_restarts(kept):
    shutil.rmtree(kept / "manifests")
    for _ in range(2):
        store = Checkpoints(kept, read_only=True)
        with pytest.raises(CheckpointError, match=r"E401.*4\.json is missing"):
            store.latest()
        store.close()


def test_16_an_unreadable_manifest(kept):
    (kept / "manifests/4.json").write_text("{")
    assert opened(kept) == ([2, 3], 3, 2)


def test_16_the_temporary_folder_of_a_killed_save(kept):
    left = kept / "checkpoints/5.orbax-checkpoint-tmp"
    shutil.copytree(kept / "checkpoints/4", left)
    (kept / "manifests/5.json.partial").write_text("{")
    assert opened(kept) == ([2, 3, 4], 4, 2)
    store = Checkpoints(kept)
    store.save(5, state(5), {"psnr": 21.0})
    store.close()
    assert opened(kept) == ([2, 4, 5], 5, 2)


LOG = "".join(f'{{"step": {n}}}\n' for n in range(1, 11))
UNFINISHED = "checkpoints/10.orbax-checkpoint-tmp"
LEFT = {
    "manifests/4.json": "",
    "checkpoints_set_aside/4_damaged_0": "",
    "checkpoints_set_aside/4_unfinished_0": "",
    "eval_a.json": "",
    UNFINISHED: "",
    "metrics.jsonl": LOG,  # it ends exactly at the first save
}


def left(folder, sign):
    path = folder / sign
    path.parent.mkdir(exist_ok=True)
    path.write_text(LEFT[sign])


@pytest.mark.parametrize("sign", LEFT)
def test_16_what_is_left_of_a_run_stops_a_new_one(tmp_path, sign):
    left(tmp_path, sign)
    for _ in range(2):
        Checkpoints(tmp_path).close()  # as a start of the program opens them
        with pytest.raises(CheckpointError, match=rf"E415.*{sign}.*--workdir"):
            check_new(tmp_path, first_save=10)


def test_16_a_kill_within_the_first_save_ever_begins_anew_and_says_so(tmp_path, caplog):
    """The file `no_checkpoint_yet` tells it from a run that lost its checkpoints."""
    check_new(tmp_path, first_save=10)
    left(tmp_path, UNFINISHED)
    left(tmp_path, "metrics.jsonl")
    check_new(tmp_path, first_save=10)
    assert "was ended at step 10, before its first checkpoint" in caplog.text
    store = Checkpoints(tmp_path)
    store.save(11, state(11), {})  # then it has one
    store.close()
    shutil.rmtree(tmp_path / "checkpoints/11")
    (tmp_path / "manifests/11.json").unlink()
    with pytest.raises(CheckpointError, match=f"E415.*{UNFINISHED}"):
        check_new(tmp_path, first_save=10)


def test_16_verify(kept, capsys, tmp_path):
    before = sorted(kept.rglob("*"))
    assert verify.main([str(kept)]) == 0
    told = [f"checkpoint {step}: whole" for step in (2, 3, 4)]
    assert capsys.readouterr().out.splitlines() == told
    path = flip_a_bit(kept / "checkpoints/4")
    (kept / "manifests/2.json").unlink()
    assert verify.main([str(kept)]) == 4
    said = capsys.readouterr()
    lines = said.out.splitlines()
    assert lines[1] == told[1]
    assert f"{path} has changed" in lines[2]
    assert "2.json is missing" in lines[0]
    assert said.err.splitlines()[-1].startswith("error E417: 2 of 3 checkpoints")
    assert "step 3 is the newest that can" in said.err
    (kept / "manifests/2.json").touch()
    assert {*before} == {*kept.rglob("*")}  # nothing was moved
    assert verify.main([str(tmp_path / "none")]) == 4
    one_line(Exception(capsys.readouterr().err.strip()), "E417", "none holds no")
