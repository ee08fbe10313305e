"""The step, its state, the schedules and the loop around them."""

from __future__ import annotations

import json
import math
import signal

import grain
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from daasr_jax.errors import ConfigError, DivergedError, Preempted, ResourceError
from daasr_jax.models.daasr import DAASR, PRESETS
from daasr_jax.registry import LOSSES
from daasr_jax.training import loop, parallel
from daasr_jax.training.checkpoints import Checkpoints
from daasr_jax.training.progress import Progress, _clock
from daasr_jax.training.schedules import make_schedule
from daasr_jax.training.state import TrainState, create_state, generator_variables
from daasr_jax.training.step import confidence_statistics, make_train_step
from daasr_jax.training.writers import RunWriter

SCALE, CROP = 2, 8
TERMS = {"rec": 1.0, "cwt": 0.1, "sat": 0.01}


def tiny(**fields):
    return DAASR(scale=SCALE, features=8, groups=1, **{**PRESETS["fast"], **fields})


def make(model, *, ema_decay=0.0, learning_rate=2e-3, axis=None):
    optimiser = optax.adam(learning_rate)
    state = create_state(
        tiny(), optimiser, scale=SCALE, crop=CROP, seed=0, ema=ema_decay > 0
    )
    step = make_train_step(
        model,
        optimiser,
        {name: (w, LOSSES.get(f"pixel.{name}")) for name, w in TERMS.items()},
        scale=SCALE,
        learning_rate=lambda step: learning_rate,
        ema_decay=ema_decay,
        axis=axis,
    )
    return state, step


def batch(n=2, seed=0):
    rng = np.random.default_rng(seed)
    side = SCALE * CROP
    return {k: rng.random((n, side, side, 1), np.float32) for k in ("hr", "ref")}


@pytest.fixture(scope="module")
def ran():
    """Eight steps on one batch: states and metrics, EMA on."""
    state, step = make(tiny(), ema_decay=0.9)
    run = jax.jit(step)
    states, rows = [state], []
    for _ in range(8):
        state, metrics = run(states[-1], batch())
        states.append(state)
        rows.append(jax.device_get(metrics))
    return run, states, rows


class TestStep:
    def test_loss_falls(self, ran):
        losses = [float(r["g/total"]) for r in ran[2]]
        assert losses[-1] < 0.98 * losses[0]

    def test_names_of_the_metrics(self, ran):
        assert set(ran[2][0]) == {
            *("g/rec", "g/cwt", "g/sat", "g/total", "g/gradient_norm"),
            *("confidence/mean", "confidence/std", "confidence/min"),
            *("confidence/group0", "learning_rate", "skipped"),
        }
        for row in ran[2]:
            assert all(v.shape == () and v.dtype == np.float32 for v in row.values())
            total = sum(w * row[f"g/{n}"] for n, w in TERMS.items())
            assert row["g/total"] == pytest.approx(total, rel=1e-6)
            assert row["skipped"] == 0

    def test_pure(self, ran):
        run, states, _ = ran
        before = jax.device_get(states[0])
        again, _ = run(states[0], batch())
        jax.tree.map(np.testing.assert_array_equal, again, states[1])
        jax.tree.map(np.testing.assert_array_equal, before, states[0])

    def test_step_counts_and_key_stays(self, ran):
        assert [int(s.step) for s in ran[1]] == list(range(9))
        np.testing.assert_array_equal(ran[1][0].key, ran[1][8].key)

    def test_ema_follows_by_hand(self, ran):
        states = ran[1]
        ema = states[0].gen
        for s in states[1:]:
            ema = jax.tree.map(lambda e, p: 0.9 * e + 0.1 * p, ema, s.gen)
        for a, b in zip(
            jax.tree.leaves(states[8].ema), jax.tree.leaves(ema), strict=True
        ):
            np.testing.assert_allclose(a, b, atol=1e-6)
        assert generator_variables(states[8])["params"] is states[8].ema

    def test_ema_is_off_without_a_decay(self):
        state = jax.eval_shape(lambda: make(tiny())[0])
        assert state.ema == {}
        assert generator_variables(state)["params"] is state.gen

    def test_batch_statistics_move(self, ran):
        a, b = (jax.tree.leaves(ran[1][i].batch_stats) for i in (0, 1))
        assert a
        assert any(not np.array_equal(x, y) for x, y in zip(a, b, strict=True))

    def test_update_that_is_not_finite_is_skipped(self, ran):
        run, states, _ = ran
        bad = batch()
        bad["hr"][0, 0, 0, 0] = np.nan
        new, metrics = run(states[3], bad)
        assert float(metrics["skipped"]) == 1
        assert int(new.step) == 4
        jax.tree.map(
            np.testing.assert_array_equal, new, states[3].replace(step=new.step)
        )

    def test_confidence_statistics_by_hand(self):
        c = jnp.array([[0.0, 1.0], [0.5, 0.5]]).reshape(2, 2, 1, 1, 1)
        got = {k: float(v) for k, v in confidence_statistics({"confidence": c}).items()}
        assert got == {
            "confidence/mean": 0.5,
            "confidence/std": pytest.approx(math.sqrt(0.125)),
            "confidence/min": 0.0,
            "confidence/group0": 0.5,
            "confidence/group1": 0.5,
        }
        assert confidence_statistics({}) == {}


class TestSchedule:
    @pytest.mark.parametrize("per_epoch", [1, 3, 11, 37, 222, 1000])
    def test_halved_every_20_epochs_exactly(self, per_epoch):
        schedule = jax.jit(
            jax.vmap(
                make_schedule(
                    "halving",
                    2e-4,
                    total_steps=200 * per_epoch,
                    steps_per_epoch=per_epoch,
                    halve_every_epochs=20,
                )
            )
        )
        edges = 20 * per_epoch * np.arange(1, 10)
        steps = np.concatenate([[0], edges - 1, edges, edges + 1]).astype(np.int32)
        want = np.float32(2e-4) * np.float32(0.5) ** (steps // (20 * per_epoch))
        np.testing.assert_array_equal(schedule(steps), want)

    def test_warmup_then_the_schedule(self):
        common = {"total_steps": 100, "steps_per_epoch": 5, "halve_every_epochs": 2}
        plain = make_schedule("halving", 1.0, **common)
        warm = make_schedule("halving", 1.0, warmup_steps=4, **common)
        got = [float(warm(i)) for i in range(6)]
        np.testing.assert_allclose(got, [0.25, 0.5, 0.75, 1, 1, 1])
        assert [float(warm(i)) for i in (9, 10, 20)] == [1.0, 0.5, 0.25]
        assert float(plain(0)) == 1.0

    def test_cosine_and_constant(self):
        common = {"total_steps": 100, "steps_per_epoch": 5, "halve_every_epochs": 2}
        cosine = make_schedule("cosine", 2.0, **common)
        got = [float(cosine(i)) for i in (0, 25, 50, 100, 150)]
        want = [
            1 + math.cos(math.pi * min(i, 100) / 100) for i in (0, 25, 50, 100, 150)
        ]
        np.testing.assert_allclose(got, want, atol=1e-6)
        constant = make_schedule("constant", 2.0, **common)
        assert float(constant(99)) == 2.0

    @pytest.mark.parametrize(
        ("name", "changes", "named"),
        [
            ("linear", {}, "'halving', 'cosine'"),
            ("halving", {"halve_every_epochs": 0}, "halve_every_epochs"),
            ("cosine", {"warmup_steps": -1}, "warmup_steps"),
        ],
    )
    def test_refusals(self, name, changes, named):
        common = {"total_steps": 9, "steps_per_epoch": 3, "halve_every_epochs": 2}
        with pytest.raises(ValueError, match=named):
            make_schedule(name, 1.0, **{**common, **changes})

    def test_adam_uses_it(self):
        """The n-th update, from 0, moves by schedule(n)."""
        schedule = make_schedule(
            "halving", 1.0, total_steps=9, steps_per_epoch=1, halve_every_epochs=2
        )
        optimiser = optax.adam(schedule)
        w = jnp.zeros(())
        s, moves = optimiser.init(w), []
        for _ in range(5):
            update, s = optimiser.update(jnp.ones(()), s, w)
            moves.append(-float(update))
        np.testing.assert_allclose(moves, [1, 1, 0.5, 0.5, 0.25], rtol=1e-3)


# The loop, around a step that costs nothing.


def small_state():
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        gen={"w": jnp.zeros(3)},
        batch_stats={},
        gen_opt={},
        ema={},
        disc={},
        disc_opt={},
        key=jnp.zeros(2, jnp.uint32),
    )


def counting_step(state, batch):
    x = jax.lax.pmean(jnp.mean(batch["hr"]), parallel.AXIS)
    new = state.replace(step=state.step + 1, gen={"w": state.gen["w"] + x})
    bad = jnp.isnan(x).astype(jnp.float32)
    return new, {"g/total": x, "skipped": bad}


def numbers(values):
    data = grain.MapDataset.source([np.float32([v]) for v in values])
    return iter(data.map(lambda v: {"hr": v}).batch(1).to_iter_dataset())


def run_loop(
    folder, values, *, steps=None, step=counting_step, validate=None, **changes
):
    settings = loop.LoopSettings(
        **{
            "steps": steps or len(values),
            "steps_per_epoch": 2,
            "batch_size": 1,
            "log_every": 1,
            "validate_every": 4,
            "checkpoint_every": 2,
            **changes,
        }
    )
    checkpoints = Checkpoints(folder)
    try:
        return loop.train(
            step,
            small_state(),
            numbers(values),
            mesh=parallel.make_mesh(1, 1),
            settings=settings,
            checkpoints=checkpoints,
            writer=lambda start: RunWriter(folder, start_step=start),
            validate=validate,
        )
    finally:
        checkpoints.close()


def rows(folder):
    text = (folder / "metrics.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


class TestLoop:
    def test_runs_validates_and_saves(self, tmp_path):
        seen = []

        def validate(state):
            seen.append(int(state.step))
            return {"psnr": 20.0 + int(state.step)}

        state = run_loop(tmp_path, range(10), validate=validate)
        assert int(state.step) == 10
        assert float(state.gen["w"][0]) == 45.0
        assert seen == [4, 8, 10]
        checkpoints = Checkpoints(tmp_path, read_only=True)
        assert checkpoints.steps() == [8, 10]
        assert checkpoints.best() == 10
        checkpoints.close()
        train = [r for r in rows(tmp_path) if "g/total" in r]
        assert [r["step"] for r in train] == list(range(1, 11))
        assert [r["val/psnr"] for r in rows(tmp_path) if "val/psnr" in r] == [
            24,
            28,
            30,
        ]

    def test_finished_run_is_left_alone(self, tmp_path):
        run_loop(tmp_path, range(4))
        before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*") if p.is_file()}
        state = run_loop(tmp_path, range(4))
        assert int(state.step) == 4
        assert before == {
            p: p.stat().st_mtime_ns for p in tmp_path.rglob("*") if p.is_file()
        }
        assert int(run_loop(tmp_path, range(4), steps=2).step) == 4

    def test_more_steps_continue_it(self, tmp_path):
        run_loop(tmp_path, range(10), steps=4)
        state = run_loop(tmp_path, range(10))
        assert float(state.gen["w"][0]) == 45.0
        train = [r["step"] for r in rows(tmp_path) if "g/total" in r]
        assert train == list(range(1, 11))

    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
    def test_signal_saves_and_stops(self, tmp_path, number):
        handler = signal.getsignal(number)

        def validate(state):
            signal.raise_signal(number)
            return {"psnr": 1.0}

        with pytest.raises(
            Preempted, match=rf"E701.*{number.name} at step 4"
        ) as caught:
            run_loop(tmp_path, range(8), validate=validate)
        assert caught.value.exit_code == 75
        assert signal.getsignal(number) is handler
        state = run_loop(tmp_path, range(8), validate=lambda s: {"psnr": 1.0})
        assert float(state.gen["w"][0]) == 28.0

    def test_second_signal_acts_at_once(self, tmp_path):
        def validate(state):
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)
            return {}

        # Workers of pytest-xdist ignore SIGINT; a person's shell does not.
        before = signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            with pytest.raises(KeyboardInterrupt):
                run_loop(tmp_path, range(8), validate=validate)
        finally:
            signal.signal(signal.SIGINT, before)

    def test_diverged_after_a_row_of_bad_updates(self, tmp_path, monkeypatch):
        monkeypatch.setattr(loop, "MAX_SKIPPED", 3)
        nan = math.nan
        with pytest.raises(DivergedError, match=r"E501.*step 8") as caught:
            run_loop(tmp_path, [1, nan, nan, 1, 1, nan, nan, nan, nan, 1])
        assert caught.value.exit_code == 5
        assert rows(tmp_path)[1]["g/total"] == "nan"

    def test_few_bad_updates_are_said(self, tmp_path, monkeypatch, caplog):
        import logging

        monkeypatch.setattr(logging.getLogger("daasr_jax"), "propagate", True)
        run_loop(tmp_path, [1, math.nan, 1, 1], log_every=2)
        assert "1 updates up to step 2 were not finite" in caplog.text

    def test_log_is_closed_when_validation_fails(self, tmp_path):
        def validate(state):
            raise ResourceError("E999", "full")

        with pytest.raises(ResourceError):
            run_loop(tmp_path, range(8), validate=validate)
        assert [r["step"] for r in rows(tmp_path)] == [1, 2, 3, 4]


class TestWriter:
    def test_lines_after_the_checkpoint_are_dropped(self, tmp_path):
        writer = RunWriter(tmp_path)
        for i in range(1, 6):
            writer.write(i, {"x": float(i)})
        writer.close()
        with (tmp_path / "metrics.jsonl").open("a") as file:
            file.write('{"step": 6, "x')  # killed while writing
        writer = RunWriter(tmp_path, start_step=3)
        writer.write(4, {"x": math.inf})
        writer.close()
        got = [(r["step"], r["x"]) for r in rows(tmp_path)]
        assert got == [(1, 1.0), (2, 2.0), (3, 3.0), (4, "inf")]

    def test_full_disk_is_said_once_and_training_goes_on(
        self, tmp_path, caplog, monkeypatch
    ):
        import logging

        monkeypatch.setattr(logging.getLogger("daasr_jax"), "propagate", True)

        class Full:
            def write(self, text):
                raise OSError(28, "No space left on device")

            def close(self):
                raise OSError(28, "No space left on device")

        writer = RunWriter(tmp_path)
        writer._file.close()
        writer._file = Full()
        writer.write(1, {"x": 1.0})
        writer.write(2, {"x": 1.0})
        writer.close()
        assert caplog.text.count("cannot write the log") == 1


class TestProgress:
    def test_rates_and_no_step(self):
        settings = loop.LoopSettings(0, 1, 4, 1, 1)
        with Progress(0, settings) as progress:
            pass
        settings = loop.LoopSettings(10, 5, 4, 1, 1)
        with Progress(0, settings) as progress:
            first = progress.rates(1)
            assert set(first) == {"seconds_to_first_step", "epoch"}
            progress._mark = (1, progress._mark[1] - 2.0)
            progress.validated(1, {"psnr": 30.0}, 1.0)
            second = progress.rates(3)
        assert second["images_per_second"] == pytest.approx(8, rel=0.05)
        assert second["eta_seconds"] == pytest.approx(3.5, rel=0.05)
        assert second["epoch"] == 0.6

    @pytest.mark.parametrize(
        ("seconds", "text"), [(math.nan, "--"), (59.6, "1:00"), (3725, "1:02:05")]
    )
    def test_clock(self, seconds, text):
        assert _clock(seconds) == text


class TestMesh:
    def test_refusals_name_what_fits(self):
        with pytest.raises(ConfigError, match=r"E222.*batch_size=4 or 8.*devices=3"):
            parallel.make_mesh(6, 4)
        with pytest.raises(ConfigError, match=r"E221.*devices=64"):
            parallel.make_mesh(64, 64)
        assert parallel.make_mesh(8).size == 4
