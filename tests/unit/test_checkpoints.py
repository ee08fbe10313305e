"""What is kept, what is refused, and what is said about it."""

from __future__ import annotations

import dataclasses
import errno
import json
import math
import os

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

from daasr_jax.errors import CheckpointError, ResourceError
from daasr_jax.files import write_atomically
from daasr_jax.runtime import devices
from daasr_jax.training import checkpoints as module
from daasr_jax.training import manifest
from daasr_jax.training.checkpoints import Checkpoints
from daasr_jax.training.manifest import seal, verify
from daasr_jax.training.state import TrainState


def state(value, **changes):
    fields = {
        "step": jnp.int32(value),
        "gen": {"conv": {"kernel": jnp.full((2, 3), float(value))}},
        "batch_stats": {"mean": jnp.full(2, float(value))},
        "gen_opt": ({"mu": jnp.ones(2)}, ()),
        "ema": {},
        "disc": {},
        "disc_opt": {},
        "skipped": jnp.int32(0),
        "skipped_in_a_row": jnp.int32(0),
        "restores": jnp.int32(0),
        "key": jnp.array([1, value], jnp.uint32),
    }
    return TrainState(**{**fields, **changes})


def write(folder, scores):
    """One step per score, numbered 1, 2, ...; "absent" saves without metrics."""
    store = Checkpoints(folder)
    for step, score in enumerate(scores, 1):
        metrics = {} if score == "absent" else {"psnr": score}
        store.save(step, state(step), metrics)
    store.close()


@pytest.fixture
def kept(tmp_path):
    """A run whose steps scored 20, 30, 25, 22."""
    write(tmp_path, [20.0, 30.0, 25.0, 22.0])
    return tmp_path


def flip_a_bit(folder):
    path = max(
        (p for p in folder.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size
    )
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    return path


def opened(folder, **kwargs):
    store = Checkpoints(folder, **kwargs)
    try:
        return store.steps(), store.latest(), store.best()
    finally:
        store.close()


def test_latest_previous_and_best_remain(kept):
    for read_only in (True, False):
        assert opened(kept, read_only=read_only) == ([2, 3, 4], 4, 2)
    manifests = sorted(p.name for p in (kept / "manifests").iterdir())
    assert manifests == ["2.json", "3.json", "4.json"]
    store = Checkpoints(kept, read_only=True)
    assert store.metrics(2) == {"psnr": 30.0}
    store.close()


def test_best_is_the_latest_without_scores(tmp_path):
    write(tmp_path, ["absent", math.nan, "absent"])
    steps, latest, best = opened(tmp_path, read_only=True)
    assert latest == best == 3
    assert 2 in steps


@pytest.mark.parametrize(
    ("rule", "best"), [("psnr", 2), ("ssim", 3), ("lpips", 1), ("last", 4)]
)
def test_what_is_best_is_a_setting(tmp_path, rule, best):
    scores = {
        "psnr": [20.0, 30.0, 25.0, 22.0],
        "ssim": [0.7, 0.8, 0.9, 0.6],
        "lpips_alex": [0.1, 0.3, 0.2, 0.4],
    }
    store = Checkpoints(tmp_path, best_by=rule)
    for k in range(4):
        store.save(k + 1, state(k + 1), {name: x[k] for name, x in scores.items()})
    store.close()
    assert opened(tmp_path, read_only=True) == (sorted({best, 3, 4}), 4, best)
    store = Checkpoints(tmp_path, read_only=True)
    assert store.metrics(4) == {name: x[3] for name, x in scores.items()}
    store.close()


def test_a_step_before_the_adversarial_term_is_never_best(tmp_path):
    store = Checkpoints(tmp_path, best_from=3)
    for step, score in enumerate([40.0, 35.0, 25.0, 22.0], 1):
        store.save(step, state(step), {"psnr": score})
    store.close()
    assert opened(tmp_path, read_only=True) == ([3, 4], 4, 3)


def smooth(value):
    """The two parts of a state that are smoothed."""
    return {
        "ema": {"conv": {"kernel": jnp.full((2, 3), float(value))}},
        "ema_batch_stats": {"mean": jnp.full(2, float(value))},
    }


def write_earlier(folder, **changes):
    """One step of a run of then, by the same store."""
    store = Checkpoints(folder)
    fields = {f.name: getattr(state(1), f.name) for f in dataclasses.fields(TrainState)}
    del fields["ema_batch_stats"]
    args = ocp.args.StandardSave({**fields, **changes})
    store._manager.save(1, args=ocp.args.Composite(state=args), metrics={})
    store._manager.wait_until_finished()
    seal(folder / "checkpoints/1", folder / "manifests/1.json")
    store.close()


@pytest.mark.parametrize("smoothed", [True, False])
def test_a_step_of_before_smoothed_statistics(tmp_path, smoothed):
    ema = smooth(7)["ema"] if smoothed else {}
    write_earlier(tmp_path, ema=ema)
    store = Checkpoints(tmp_path)
    given = state(0, **(smooth(0) if smoothed else {}))
    got = store.restore(1, given)
    assert jax.tree.structure(got) == jax.tree.structure(given)
    want = state(1, ema=ema)
    if smoothed:  # it begins with the statistics of the step, in arrays of its own
        want = want.replace(ema_batch_stats=want.batch_stats)
        assert got.ema_batch_stats["mean"] is not got.batch_stats["mean"]
    jax.tree.map(np.testing.assert_array_equal, got, want)
    like = devices.replicated((state(0).gen, state(0).batch_stats))
    found = store.restore_generator(1, *like)
    store.close()
    assert found["params"]["conv"]["kernel"][0, 0] == (7 if smoothed else 1)
    assert found["batch_stats"]["mean"][0] == 1


@pytest.mark.parametrize("smoothed", [True, False])
def test_only_the_generator_is_read(tmp_path, smoothed):
    ema = smooth(7) if smoothed else {}
    store = Checkpoints(tmp_path)
    store.save(1, state(1, **ema, disc={"x": jnp.ones(5)}), {})
    store.close()
    store = Checkpoints(tmp_path, read_only=True)
    like = devices.replicated((state(0).gen, state(0).batch_stats))
    got = store.restore_generator(1, *like)
    assert set(got) == {"params", "batch_stats"}
    assert got["params"]["conv"]["kernel"][0, 0] == (7 if smoothed else 1)
    assert got["batch_stats"]["mean"][0] == (7 if smoothed else 1)
    wrong = jax.ShapeDtypeStruct((9, 3), jnp.float32)
    with pytest.raises(CheckpointError, match=r"E402.*conv/kernel is float32\(2, 3\)"):
        store.restore_generator(1, {"conv": {"kernel": wrong}}, like[1])
    store.close()


def test_round_trip_bit_for_bit(kept):
    store = Checkpoints(kept)
    got = store.restore(4, state(0))
    store.close()
    jax.tree.map(np.testing.assert_array_equal, got, state(4))
    assert jax.tree.structure(got) == jax.tree.structure(state(4))


def test_the_last_clean_step_remains(tmp_path):
    """Whatever is saved in trouble after it, also by a process of its own."""
    for steps in (range(1, 5), range(5, 8)):
        store = Checkpoints(tmp_path)
        for step in steps:
            skipped = jnp.int32(max(0, step - 2))
            store.save(
                step, state(step, skipped_in_a_row=skipped), {"psnr": 1.0 + step}
            )
        assert store.clean_steps() == [2]
        assert store.metrics(step) == {"psnr": 1.0 + step}
        store.close()


def test_scores_are_added_later(tmp_path):
    write(tmp_path, ["absent", "absent"])
    store = Checkpoints(tmp_path)
    assert not store.scored(2)
    store.save(2, state(2), {"psnr": 3.0})
    assert store.scored(2)
    store.close()
    assert opened(tmp_path) == ([1, 2], 2, 2)


def test_new_run(tmp_path):
    assert opened(tmp_path / "not yet é") == ([], None, None)


class TestDamage:
    def test_flipped_bit(self, kept, caplog):
        path = flip_a_bit(kept / "checkpoints/4")
        reading = opened(kept, read_only=True)
        assert reading == ([2, 3], 3, 2)
        assert (kept / "checkpoints/4").is_dir()  # a reader moves nothing
        assert opened(kept) == ([2, 3], 3, 2)
        assert "checkpoints/4 is damaged" in caplog.text.replace("\n", "")
        assert path.name in caplog.text
        assert not (kept / "checkpoints/4").exists()
        assert (kept / "checkpoints_set_aside/4_damaged_0").is_dir()
        assert not (kept / "manifests/4.json").exists()
        store = Checkpoints(kept)
        store.save(4, state(4), {"psnr": 22.0})
        store.close()
        assert opened(kept) == ([2, 3, 4], 4, 2)

    @pytest.mark.parametrize("spoil", ["damaged", "unfinished"])
    @pytest.mark.parametrize("step", [2, 4])
    def test_saved_again_it_is_there_at_once(self, kept, spoil, step):
        if spoil == "damaged" or step == 2:
            flip_a_bit(kept / f"checkpoints/{step}")
        else:
            (kept / f"manifests/{step}.json").unlink()
        store = Checkpoints(kept)
        assert step not in store.steps()
        store.save(step, state(step), {"psnr": 40.0})
        assert step in store.steps()
        assert store.best() == step
        assert store.latest() == 4
        store.close()
        assert opened(kept)[1:] == (4, step)

    def test_twice_damaged_keeps_both(self, kept):
        for n in range(2):
            flip_a_bit(kept / "checkpoints/4")
            opened(kept)
            assert (kept / f"checkpoints_set_aside/4_damaged_{n}").is_dir()
            store = Checkpoints(kept)
            store.save(4, state(4), {})
            store.close()

    def test_damaged_best_gives_way(self, kept):
        flip_a_bit(kept / "checkpoints/2")
        assert opened(kept, read_only=True) == ([3, 4], 4, 3)

    def test_interrupted_before_sealing(self, kept, caplog):
        (kept / "manifests/4.json").unlink()
        assert opened(kept, read_only=True) == ([2, 3], 3, 2)
        assert opened(kept) == ([2, 3], 3, 2)
        assert "was not finished" in caplog.text
        assert (kept / "checkpoints_set_aside/4_unfinished_0").is_dir()

    def test_first_save_interrupted_starts_again(self, tmp_path, caplog):
        write(tmp_path, [20.0])
        (tmp_path / "manifests/1.json").unlink()
        assert opened(tmp_path) == ([], None, None)
        assert "was not finished" in caplog.text


@pytest.mark.parametrize("number", [errno.EACCES, errno.ENOLCK, errno.ESTALE])
@pytest.mark.parametrize("read_only", [True, False])
def test_a_refusal_of_the_system_is_no_damage(kept, monkeypatch, number, read_only):
    """Nothing is set aside for it; what the system said is the report."""
    words = os.strerror(number)

    def refuse(path):
        raise OSError(number, words, str(path))

    monkeypatch.setattr(manifest, "file_hash", refuse)
    with pytest.raises(CheckpointError, match=rf"E410.*checkpoints.*\({words}\)") as e:
        Checkpoints(kept, read_only=read_only)
    assert "\n" not in str(e.value)
    assert ("permissions" in str(e.value)) == (number == errno.EACCES)
    monkeypatch.undo()
    assert opened(kept) == ([2, 3, 4], 4, 2)


def test_a_disk_that_cannot_read_is_damage(kept, monkeypatch):
    whole = manifest.file_hash

    def fails(path):
        if "/4/" in str(path):
            raise OSError(errno.EIO, "Input/output error", str(path))
        return whole(path)

    monkeypatch.setattr(manifest, "file_hash", fails)
    assert opened(kept, read_only=True) == ([2, 3], 3, 2)


def test_a_refusal_while_saving_names_its_remedy(kept, monkeypatch):
    store = Checkpoints(kept)

    def refuse(*_, **__):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(store._manager, "save", refuse)
    with pytest.raises(ResourceError, match=r"E603.*Permission.*correct its perm"):
        store.save(5, state(5), {})
    store.close()


class TestDisk:
    @pytest.mark.parametrize("where", ["save", "seal"])
    def test_full_disk(self, kept, monkeypatch, where):
        def full(*_, **__):
            raise OSError(errno.ENOSPC, "No space left on device")

        store = Checkpoints(kept)
        if where == "save":
            monkeypatch.setattr(store._manager, "save", full)
        else:
            monkeypatch.setattr(module, "seal", full)
        with pytest.raises(
            ResourceError, match=r"E603.*checkpoint 5.*No space"
        ) as caught:
            store.save(5, state(5), {})
        store.close()
        assert caught.value.exit_code == 6
        monkeypatch.undo()
        steps, latest, _ = opened(kept)
        assert latest == 4
        assert 3 in steps or 2 in steps

    def test_other_errors_pass(self, kept, monkeypatch):
        store = Checkpoints(kept)

        def broken(*_, **__):
            raise ValueError("not the disk")

        monkeypatch.setattr(store._manager, "save", broken)
        with pytest.raises(ValueError, match="not the disk"):
            store.save(5, state(5), {})
        store.close()

    def test_only_the_first_process_writes_beside_orbax(self, kept, monkeypatch):
        flip_a_bit(kept / "checkpoints/4")
        monkeypatch.setattr(module.jax, "process_index", lambda: 1)
        before = sorted(p for p in kept.rglob("*"))
        store = Checkpoints(kept, read_only=True)
        store._find_unusable(read_only=False)
        store.close()
        assert sorted(p for p in kept.rglob("*")) == before


class TestManifest:
    def test_seal_and_verify(self, tmp_path):
        folder, manifest = tmp_path / "a b é", tmp_path / "m/1.json"
        (folder / "deep").mkdir(parents=True)
        (folder / "deep/x").write_bytes(b"abc")
        seal(folder, manifest)
        sums = json.loads(manifest.read_text())
        assert sums["deep/x"].startswith("ba7816bf8f01cfea")  # SHA-256 of "abc"
        assert verify(folder, manifest) == ""
        (folder / "deep/x").write_bytes(b"abd")
        assert "has changed" in verify(folder, manifest)
        (folder / "deep/x").unlink()
        assert "is missing" in verify(folder, manifest)
        assert "cannot be read" in verify(folder, tmp_path / "none.json")

    def test_interrupted_write_leaves_the_old_text(self, tmp_path, monkeypatch):
        path = tmp_path / "x.json"
        write_atomically(path, "old")

        def fail(_):
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr("os.fsync", fail)
        with pytest.raises(OSError, match="No space"):
            write_atomically(path, "new")
        assert path.read_text() == "old"
