"""The step, its state, the schedules and the loop around them."""

from __future__ import annotations

import builtins
import errno
import io
import json
import math
import os
import signal
import struct
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tensorboardX.proto import event_pb2

from daasr_jax.errors import ConfigError, DivergedError, Preempted, ResourceError
from daasr_jax.losses.adversarial import discriminator_loss, generator_loss
from daasr_jax.models.daasr import DAASR, PRESETS
from daasr_jax.models.discriminator import PatchDiscriminator
from daasr_jax.registry import LOSSES, MODELS
from daasr_jax.resampling import downsample
from daasr_jax.runtime import devices, stopping
from daasr_jax.runtime.stopping import StopRequest
from daasr_jax.training import loop, writers
from daasr_jax.training.adversarial import Adversarial
from daasr_jax.training.checkpoints import Checkpoints
from daasr_jax.training.progress import Progress, clock
from daasr_jax.training.schedules import make_optimiser, make_schedule
from daasr_jax.training.state import (
    TrainState,
    create_state,
    generator_variables,
    start_from,
)
from daasr_jax.training.step import confidence_statistics, make_train_step
from daasr_jax.training.writers import RunWriter

SCALE, CROP = 2, 8
NAN = math.nan
TERMS = {"rec": 1.0, "cwt": 0.1, "sat": 0.01}


def tiny(**fields):
    return DAASR(scale=SCALE, features=8, groups=1, **{**PRESETS["fast"], **fields})


def make(
    model, *, ema_decay=0.0, learning_rate=2e-3, axis=None, adversarial=None,
    schedule=None,
):  # fmt: skip
    schedule = schedule or optax.constant_schedule(learning_rate)
    optimiser = make_optimiser("adam", schedule, b1=0.9, b2=0.999)
    state = create_state(
        tiny(),
        optimiser,
        scale=SCALE,
        crop=CROP,
        seed=0,
        ema=ema_decay > 0,
        adversarial=adversarial,
    )
    step = make_train_step(
        model,
        optimiser,
        {name: (w, LOSSES.get(f"pixel.{name}")) for name, w in TERMS.items()},
        scale=SCALE,
        ema_decay=ema_decay,
        axis=axis,
        adversarial=adversarial,
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
            *("confidence/group0", "g/learning_rate"),
            *("skipped", "skipped_in_a_row"),
        }
        for row in ran[2]:
            assert all(v.shape == () and v.dtype == np.float32 for v in row.values())
            total = sum(w * row[f"g/{n}"] for n, w in TERMS.items())
            assert row["g/total"] == pytest.approx(total, rel=1e-6)
            assert row["skipped"] == row["skipped_in_a_row"] == 0
            assert row["g/learning_rate"] == np.float32(2e-3)

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
        ema = states[0].gen, states[0].batch_stats
        for s in states[1:]:
            ema = jax.tree.map(
                lambda e, p: 0.9 * e + 0.1 * p, ema, (s.gen, s.batch_stats)
            )
        got = states[8].ema, states[8].ema_batch_stats
        assert jax.tree.leaves(got[1])
        for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(ema), strict=True):
            np.testing.assert_allclose(a, b, atol=1e-6)
        variables = generator_variables(states[8])
        assert variables["params"] is got[0]
        assert variables["batch_stats"] is got[1]

    def test_ema_is_off_without_a_decay(self):
        state = jax.eval_shape(lambda: make(tiny())[0])
        assert state.ema == state.ema_batch_stats == {}
        variables = generator_variables(state)
        assert variables["params"] is state.gen
        assert variables["batch_stats"] is state.batch_stats

    def test_batch_statistics_move(self, ran):
        a, b = (jax.tree.leaves(ran[1][i].batch_stats) for i in (0, 1))
        assert a
        assert any(not np.array_equal(x, y) for x, y in zip(a, b, strict=True))

    def test_update_that_is_not_finite_is_skipped(self, ran):
        run, states, _ = ran
        bad = batch()
        bad["hr"][0, 0, 0, 0] = np.nan
        new, metrics = run(states[3], bad)
        assert int(new.step) == 4
        moved = {k: getattr(new, k) for k in ("step", "skipped", "skipped_in_a_row")}
        jax.tree.map(np.testing.assert_array_equal, new, states[3].replace(**moved))
        again, metrics = run(new, bad)
        counts = [(int(s.skipped), int(s.skipped_in_a_row)) for s in (new, again)]
        assert counts == [(1, 1), (2, 2)]
        assert float(metrics["skipped"]) == 2
        good, metrics = run(again, batch())
        assert (int(good.skipped), int(good.skipped_in_a_row)) == (2, 0)

    def test_confidence_statistics_by_hand(self):
        c = jnp.array([[0.0, 1.0], [0.5, 0.5]]).reshape(2, 2, 1, 1, 1)
        got = {k: float(v) for k, v in confidence_statistics(c).items()}
        assert got == {
            "confidence/mean": 0.5,
            "confidence/std": pytest.approx(math.sqrt(0.125)),
            "confidence/min": 0.0,
            "confidence/group0": 0.5,
            "confidence/group1": 0.5,
        }
        assert confidence_statistics(None) == {}


def game(objective="bce", **changes):
    """Adversarial training with a small discriminator, its own learning rate 1e-3."""
    adam = make_optimiser("adam", optax.constant_schedule(1e-3), b1=0.5, b2=0.9)
    network = PatchDiscriminator(features=4, stages=1)
    return Adversarial(network, adam, objective, **{"weight": 0.1, **changes})


@pytest.fixture(scope="module")
def plain():
    """One step without a discriminator."""
    state, step = make(tiny())
    return state, jax.jit(step)(state, batch())


class TestAdversarialStep:
    @pytest.mark.parametrize(
        "objective", ["bce", pytest.param("wgan-gp", marks=pytest.mark.full)]
    )
    def test_discriminator_first_then_generator_against_it(self, plain, objective):
        """By hand: D moves on the generator's output, then judges it."""
        setting = game(objective)
        start, step = make(tiny(), adversarial=setting)
        jax.tree.map(np.testing.assert_array_equal, start.gen, plain[0].gen)
        new, metrics = jax.jit(step)(start, batch())
        hr, ref = batch()["hr"], batch()["ref"]
        lr = jax.jit(downsample, static_argnums=1)(hr, SCALE)
        mix = jax.random.uniform(
            jax.random.fold_in(
                jax.random.fold_in(jax.random.wrap_key_data(start.key), 0), 0
            ),
            (2, 1, 1, 1),
        )

        def logits(disc, x):
            return setting.discriminator.apply({"params": disc}, x)

        @jax.jit
        def by_hand(start):
            variables = {"params": start.gen, "batch_stats": start.batch_stats}
            out, _ = tiny().apply(
                variables, lr, ref, train=True, mutable=["batch_stats"]
            )

            def loss(disc):
                return discriminator_loss(
                    objective,
                    lambda x: logits(disc, x),
                    hr,
                    out.sr,
                    mix=mix,
                    penalty_weight=10.0,
                )

            (total, terms), gradient = jax.value_and_grad(loss, has_aux=True)(
                start.disc
            )
            change, _ = setting.optimiser.update(gradient, start.disc_opt, start.disc)
            disc = optax.apply_updates(start.disc, change)
            return total, terms, disc, generator_loss(objective, logits(disc, out.sr))

        total, terms, disc, adv = by_hand(start)
        assert float(metrics["d/total"]) == pytest.approx(float(total), rel=1e-5)
        for name, value in terms.items():
            assert float(metrics[f"d/{name}"]) == pytest.approx(float(value), rel=1e-5)
        assert float(metrics["g/adv"]) == pytest.approx(float(adv), rel=1e-5)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), new.disc, disc
        )
        _, without = plain[1]
        assert float(metrics["g/total"]) == pytest.approx(
            float(without["g/total"] + 0.1 * metrics["g/adv"]), rel=1e-5
        )
        assert float(metrics["d/learning_rate"]) == np.float32(1e-3)
        gap = jax.tree.map(lambda a, b: np.abs(a - b).max(), new.gen, plain[1][0].gen)
        assert max(jax.tree.leaves(gap)) > 1e-4

    @pytest.mark.full
    def test_nothing_of_it_before_its_start(self, plain):
        start, step = make(tiny(), adversarial=game(start_step=1))
        run = jax.jit(step)
        first, metrics = run(start, batch())
        for name in ("disc", "disc_opt"):
            old, new = getattr(start, name), getattr(first, name)
            jax.tree.map(np.testing.assert_array_equal, old, new)
        assert {float(metrics[k]) for k in ("g/adv", "d/total", "d/real")} == {0.0}
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6),
            first.gen,
            plain[1][0].gen,
        )
        second, metrics = run(first, batch())
        assert float(metrics["g/adv"]) > 0
        assert any(
            not np.array_equal(a, b)
            for a, b in zip(
                jax.tree.leaves(first.disc), jax.tree.leaves(second.disc), strict=True
            )
        )

    @pytest.mark.full
    def test_several_updates_of_the_discriminator(self):
        counts = {}
        for updates in (1, 3):
            start, step = make(tiny(), adversarial=game("wgan-gp", updates=updates))
            new, _ = jax.jit(step)(start, batch())
            counts[updates] = int(new.disc_opt.count), int(new.gen_opt.count)
        assert counts == {1: (1, 1), 3: (3, 1)}

    @pytest.mark.full
    def test_bad_discriminator_leaves_both_alone(self):
        start, step = make(tiny(), adversarial=game())
        start = start.replace(disc=jax.tree.map(lambda x: x * jnp.nan, start.disc))
        new, metrics = jax.jit(step)(start, batch())
        assert float(metrics["skipped"]) == 1
        for name in ("gen", "gen_opt", "batch_stats", "disc", "disc_opt"):
            old, kept = getattr(start, name), getattr(new, name)
            jax.tree.map(np.testing.assert_array_equal, old, kept)


class TestStartFrom:
    def test_takes_the_generator_and_nothing_else(self, ran):
        state, _ = make(tiny(), ema_decay=0.9)
        trained = ran[1][8]
        new = start_from(state, generator_variables(trained))
        jax.tree.map(np.testing.assert_array_equal, new.gen, trained.ema)
        jax.tree.map(np.testing.assert_array_equal, new.ema, trained.ema)
        for got in (new.batch_stats, new.ema_batch_stats):
            jax.tree.map(np.testing.assert_array_equal, got, trained.ema_batch_stats)
        assert int(new.step) == 0
        jax.tree.map(np.testing.assert_array_equal, new.gen_opt, state.gen_opt)

    def test_another_generator_is_refused(self, ran):
        state, _ = make(tiny(), ema_decay=0.9)
        params = {k: v for k, v in ran[1][8].gen.items() if k != "tail_out"}
        variables = {"params": {**params, "x": 1}, "batch_stats": state.batch_stats}
        with pytest.raises(ValueError, match="other parameters"):
            start_from(state, variables)


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

    @pytest.mark.parametrize("name", ["halving", "cosine", "constant"])
    def test_rates_and_lengths_share_a_program(self, name):
        def program(rate, steps):
            schedule = make_schedule(
                name,
                rate,
                total_steps=steps,
                steps_per_epoch=steps // 4,
                halve_every_epochs=2,
                warmup_steps=steps // 5,
            )
            state, step = make(tiny(), schedule=schedule)
            call = jax.jit(lambda step, *given: step(*given))
            return call.lower(step, state, batch()).as_text()

        assert program(1e-3, 20) == program(2e-4, 600)

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

    def test_milestones_halve_at_each(self):
        common = {"total_steps": 9, "steps_per_epoch": 3, "halve_every_epochs": 2}
        schedule = make_schedule("milestones", 1.0, milestones=(3, 5), **common)
        assert [float(schedule(i)) for i in (0, 2, 3, 4, 5, 99)] == [
            *(1.0, 1.0, 0.5, 0.5, 0.25, 0.25)
        ]
        for wrong in ((), (5, 3), (3, 3)):
            with pytest.raises(ValueError, match="milestones must ascend"):
                make_schedule("milestones", 1.0, milestones=wrong, **common)

    def test_adam_uses_it(self):
        """The n-th update, from 0, moves by schedule(n)."""
        schedule = make_schedule(
            "halving", 1.0, total_steps=9, steps_per_epoch=1, halve_every_epochs=2
        )
        optimiser = make_optimiser("adam", schedule, b1=0.9, b2=0.999)
        w = jnp.zeros(())
        s, moves, told = optimiser.init(w), [], []
        for _ in range(5):
            update, s = optimiser.update(jnp.ones(()), s, w)
            moves.append(-float(update))
            told.append(float(s.hyperparams["learning_rate"]))
        assert told == [1, 1, 0.5, 0.5, 0.25]
        np.testing.assert_allclose(moves, told, rtol=1e-3)


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
        skipped=jnp.zeros((), jnp.int32),
        skipped_in_a_row=jnp.zeros((), jnp.int32),
        restores=jnp.zeros((), jnp.int32),
        key=jnp.zeros(2, jnp.uint32),
    )


def counting_step(state, batch):
    x = jax.lax.pmean(jnp.mean(batch["hr"]), devices.AXIS)
    bad = jnp.isnan(x).astype(jnp.int32)
    new = state.replace(
        step=state.step + 1,
        gen={"w": jnp.where(bad, state.gen["w"], state.gen["w"] + x)},
        skipped=state.skipped + bad,
        skipped_in_a_row=(state.skipped_in_a_row + bad) * bad,
    )
    counts = {k: getattr(new, k) * 1.0 for k in ("skipped", "skipped_in_a_row")}
    return new, {"g/total": x, **counts}


def numbers(values):
    return lambda start: [{"hr": np.float32([[v]])} for v in values[start:]]


def run_loop(folder, values, *, steps=None, validate=None, blame=None, **changes):
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
        with StopRequest() as stop:
            return loop.train(
                counting_step,
                small_state(),
                numbers(values),
                mesh=devices.make_mesh(1, 1),
                settings=settings,
                checkpoints=checkpoints,
                writer=lambda start: RunWriter(folder, start_step=start),
                validate=validate,
                stop=stop,
                blame=blame,
            )
    finally:
        checkpoints.close()


def rows(folder):
    text = (folder / "metrics.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def stop_at(monkeypatch, *steps):
    """A stop is asked for at the report of each of these steps."""
    report = Progress.report

    def asked(self, step, values):
        report(self, step, values)
        if step in steps:
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(Progress, "report", asked)


def scores(folder):
    return [(r["step"], r["val/psnr"]) for r in rows(folder) if "val/psnr" in r]


class TestLoop:
    def test_runs_validates_and_saves(self, tmp_path):
        seen = []

        def validate(state, beat):
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

        def validate(state, beat):
            signal.raise_signal(number)
            return {"psnr": 1.0}

        with pytest.raises(
            Preempted, match=rf"E701.*{number.name} at step 4"
        ) as caught:
            run_loop(tmp_path, range(8), validate=validate)
        assert caught.value.exit_code == 75
        assert signal.getsignal(number) is handler
        state = run_loop(tmp_path, range(8), validate=lambda state, beat: {"psnr": 1.0})
        assert float(state.gen["w"][0]) == 28.0

    @pytest.mark.parametrize("last", [4, 8])  # in the middle, at the end
    @pytest.mark.parametrize("early", [True, False])
    def test_a_stop_does_not_wait_for_the_validation(
        self, tmp_path, monkeypatch, last, early
    ):
        """It is made up for, so that the run is the one that was never stopped."""
        slices = []

        def whole(state, beat):
            return {"psnr": 30.0 - int(state.step)}

        def validate(state, beat):
            if int(state.step) == last and not early:
                signal.raise_signal(signal.SIGTERM)
            for i in range(100):
                slices.append(i)
                beat()
            return whole(state, beat)

        if early:
            stop_at(monkeypatch, last)
        a, b = tmp_path / "a", tmp_path / "b"
        with pytest.raises(Preempted, match=rf"E701.*at step {last}, saved"):
            run_loop(b, range(8), validate=validate)
        monkeypatch.undo()
        assert len(slices) % 100 == (not early)
        state = run_loop(b, range(8), validate=whole)
        assert float(state.gen["w"][0]) == 28.0
        run_loop(a, range(8), validate=whole)
        assert scores(a) == scores(b) == [(4, 26), (8, 22)]
        for folder in (a, b):
            checkpoints = Checkpoints(folder, read_only=True)
            assert (checkpoints.best(), checkpoints.metrics(8)) == (4, {"psnr": 22})
            checkpoints.close()

    def test_a_stop_within_what_a_stop_has_left(self, tmp_path):
        def validate(state, beat):
            signal.raise_signal(signal.SIGINT)
            beat()
            raise AssertionError

        for _ in range(3):
            with pytest.raises(Preempted, match=r"E701.*SIGINT at step 4"):
                run_loop(tmp_path, range(8), validate=validate)

    def test_the_same_signal_twice_at_once_is_one_request(self, tmp_path):
        def validate(state, beat):
            signal.raise_signal(signal.SIGINT)  # of the terminal
            signal.raise_signal(signal.SIGTERM)  # of the launcher
            return {"psnr": 1.0}

        with pytest.raises(Preempted, match=r"E701.*SIGINT at step 4"):
            run_loop(tmp_path, range(8), validate=validate)

    def test_second_signal_acts_at_once(self, tmp_path, monkeypatch):
        def validate(state, beat):
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)
            return {}

        monkeypatch.setattr(stopping, "GRACE_SECONDS", 0.0)
        # Workers of pytest-xdist ignore SIGINT; a person's shell does not.
        before = signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            with pytest.raises(KeyboardInterrupt):
                run_loop(tmp_path, range(8), validate=validate)
        finally:
            signal.signal(signal.SIGINT, before)

    def test_a_row_of_bad_updates_goes_back_once(self, tmp_path, monkeypatch, caplog):
        """Back to the checkpoint of step 4; that of step 6 was saved in trouble."""
        monkeypatch.setattr(loop, "MAX_SKIPPED", 3)
        values = [1, 2, 4, 8, NAN, NAN, NAN, 16, 32, NAN, 64]
        state = run_loop(tmp_path, values)
        assert "going back to checkpoint 4, once" in caplog.text
        assert float(state.gen["w"][0]) == 1 + 2 + 4 + 8 + 16 + 32 + 64
        counts = int(state.skipped), int(state.skipped_in_a_row), int(state.restores)
        assert counts == (4, 0, 1)
        assert int(state.step) == len(values)

    def test_going_back_undoes_what_followed_the_checkpoint(
        self, tmp_path, monkeypatch
    ):
        monkeypatch.setattr(loop, "MAX_SKIPPED", 2)
        values = [1, 2, 4, 8, 16, NAN, NAN, 32]
        state = run_loop(tmp_path, values, checkpoint_every=4)
        assert float(state.gen["w"][0]) == 1 + 2 + 4 + 8 + 32

    @pytest.mark.parametrize(
        ("bad", "changes"),
        [
            (6, {}),  # those of steps 4 and 6 were saved in trouble
            (9, {"checkpoint_every": 1}),
            (6, {"validate_every": 3, "log_every": 4}),
        ],
    )
    def test_checkpoints_in_trouble_do_not_push_the_good_one_out(
        self, tmp_path, monkeypatch, caplog, bad, changes
    ):
        monkeypatch.setattr(loop, "MAX_SKIPPED", bad)
        values = [1, 2, *[NAN] * (bad + 2), 4, 4, 4, 4]
        values = values[: len(values) // 4 * 4]
        state = run_loop(
            tmp_path, values, validate=lambda state, beat: {"psnr": 1.0}, **changes
        )
        assert "going back to checkpoint 2, once" in caplog.text
        assert int(state.restores) == 1
        assert float(state.gen["w"][0]) == np.nansum(values)

    def test_a_stop_in_trouble_keeps_the_good_one(self, tmp_path, monkeypatch):
        monkeypatch.setattr(loop, "MAX_SKIPPED", 7)
        values = [1, 2, *[NAN] * 7, 4, 8, 16]

        stop_at(monkeypatch, 5, 7)
        for step in (5, 7):
            with pytest.raises(Preempted, match=f"at step {step}, saved"):
                run_loop(tmp_path, values)
        assert float(run_loop(tmp_path, values).gen["w"][0]) == 31

    def test_stops_the_second_time_also_after_a_resume(self, tmp_path, monkeypatch):
        monkeypatch.setattr(loop, "MAX_SKIPPED", 2)
        values = [1, 1, NAN, NAN, 1, 1, 1, 1, NAN, NAN, 1, 1]
        run_loop(tmp_path, values, steps=8)
        with pytest.raises(DivergedError, match=r"E501.*step 10.*again") as caught:
            run_loop(tmp_path, values)
        assert caught.value.exit_code == 5
        assert rows(tmp_path)[-1]["g/total"] == "nan"

    def test_stops_where_there_is_nothing_to_go_back_to(self, tmp_path, monkeypatch):
        monkeypatch.setattr(loop, "MAX_SKIPPED", 3)
        with pytest.raises(DivergedError, match=r"E502.*step 3 .*no checkpoint") as e:
            run_loop(tmp_path, [NAN] * 9)
        assert e.value.exit_code == 5

    @pytest.mark.parametrize("killed_at", [3, 5])  # before and after going back
    def test_killed_around_going_back(self, tmp_path, monkeypatch, killed_at):
        monkeypatch.setattr(loop, "MAX_SKIPPED", 2)
        values = [1, 2, NAN, NAN, NAN, 4, 8, 16]

        class Killed(Exception):
            pass

        def kill(state, beat):
            raise Killed

        whole = run_loop(tmp_path / "a", values, validate_every=8)
        with pytest.raises(Killed):
            run_loop(
                tmp_path / "b",
                values,
                validate=kill,
                validate_every=killed_at,
            )
        parts = run_loop(tmp_path / "b", values, validate_every=8)
        jax.tree.map(np.testing.assert_array_equal, whole, parts)
        strip = {"images_per_second", "eta_seconds", "seconds_to_first_step"}
        a, b = (
            [{k: v for k, v in r.items() if k not in strip} for r in rows(tmp_path / x)]
            for x in ("a", "b")
        )
        assert a == b

    def test_few_bad_updates_are_said(self, tmp_path, caplog):
        run_loop(tmp_path, [1, NAN, 1, 1], log_every=2)
        assert "1 updates up to step 2 were not finite" in caplog.text
        assert caplog.text.count("not finite") == 1
        assert [r["skipped"] for r in rows(tmp_path) if "skipped" in r] == [0, 1, 1]

    def test_log_is_closed_when_validation_fails(self, tmp_path):
        def validate(state, beat):
            raise ResourceError("E999", "full")

        with pytest.raises(ResourceError):
            run_loop(tmp_path, range(8), validate=validate)
        assert [r["step"] for r in rows(tmp_path)] == [1, 2, 3, 4]


class FullDisk:
    """Opens files; those whose name begins so cannot be opened, or be written to."""

    def __init__(self, name, when):
        self.name, self.when, self.full = name, when, True
        self.open_file = io.open

    def open(self, file, mode="r", *args, **kwargs):
        path = Path(file) if isinstance(file, str | os.PathLike) else Path("-")
        name = path.name
        log = name.startswith(("metrics.jsonl", ".metrics.jsonl", "events.out"))
        if not log or not name.startswith(self.name) or mode.startswith("r"):
            return self.open_file(file, mode, *args, **kwargs)
        self.refuse(self.when == "opening")
        opened = self.open_file(file, mode, *args, **kwargs)
        method = "write" if name.startswith(".") else "flush"
        setattr(opened, method, self.refused(getattr(opened, method)))
        return opened

    def refused(self, method):
        def call(*args):
            self.refuse(self.when == "writing")
            return method(*args)

        return call

    def refuse(self, asked):
        if self.full and asked:
            raise OSError(errno.ENOSPC, "No space left on device")


def records(content):
    """Events of a TensorBoard file: length, its sum, the event, its sum."""
    while content:
        (n,) = struct.unpack("<Q", content[:8])
        yield event_pb2.Event.FromString(content[12 : 12 + n])
        content = content[16 + n :]


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

    @pytest.mark.parametrize(
        "refused", ["metrics.jsonl", ".metrics.jsonl", "events.out", ""]
    )
    @pytest.mark.parametrize("when", ["opening", "writing"])
    def test_full_disk_is_said_once_and_training_goes_on(
        self, tmp_path, caplog, monkeypatch, refused, when
    ):
        """The log, its copy on resume, the events, all: until there is room again."""
        run_loop(tmp_path, range(4), steps=2)
        disk = FullDisk(refused, when)
        monkeypatch.setattr(writers, "FLUSH_SECONDS", -1, raising=False)
        monkeypatch.setattr(io, "open", disk.open)  # of pathlib
        monkeypatch.setattr(builtins, "open", disk.open)
        room_at = 6

        def validate(state, beat):
            disk.full = int(state.step) < room_at
            return {"psnr": 1.0}

        state = run_loop(tmp_path, range(10), validate=validate, validate_every=1)
        assert float(state.gen["w"][0]) == 45.0
        assert caplog.text.count("cannot write the log") == 1
        assert "No space left" in caplog.text
        steps = [r["step"] for r in rows(tmp_path) if "g/total" in r]
        assert steps == sorted(set(steps))
        assert {1, 2, *range(room_at + 1, 11)} <= set(steps)

    def test_events_are_tensorboards(self, tmp_path):
        for start in (0, 3):
            writer = RunWriter(tmp_path, start_step=start)
            writer.write(start + 1, {"g/total": 0.5, "x": 2.0})
            writer.close()
        files = sorted(tmp_path.glob("events.out.tfevents.*"))
        events = [list(records(file.read_bytes())) for file in files]
        assert [[e.step for e in file] for file in events] == [
            *([1, 1, 1, 1], [4, 4, 4, 4])
        ]
        assert events[1][0].file_version == "brain.Event:2"
        assert events[1][1].session_log.status == 1  # START: purges from step 4
        value = events[1][2].summary.value[0]
        assert (value.tag, value.simple_value) == ("g/total", 0.5)


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
    def testclock(self, seconds, text):
        assert clock(seconds) == text


class TestMesh:
    def test_refusals_name_what_fits(self):
        with pytest.raises(ConfigError, match=r"E222.*batch_size=4 or 8.*devices=3"):
            devices.make_mesh(6, 4)
        with pytest.raises(ConfigError, match=r"E221.*devices=64"):
            devices.make_mesh(64, 64)
        with pytest.raises(ConfigError, match=r"E226.*2 images.*accumulate=3"):
            devices.make_mesh(8, 4, accumulate=3)
        assert devices.make_mesh(8, accumulate=2).size == 4

    @pytest.mark.parametrize(
        ("batch", "size", "told"), [(9, 3, "1 OF 4"), (7, 1, "3 OF 4"), (4, 4, "")]
    )
    def test_devices_that_do_not_divide_the_batch_stay_idle(
        self, batch, size, told, caplog
    ):
        mesh = devices.make_mesh(batch)
        assert mesh.size == size
        assert told in caplog.text
        assert bool(caplog.records) == bool(told)
        assert ("batch_size=8 or 12" in caplog.text) == (batch == 9)
        assert devices.rows_of(mesh, batch) == range(batch)

    def test_processes_take_part_alike(self, monkeypatch):
        """Two nodes of eight and the paper's batch of 9: five devices and four."""
        nodes = [SimpleNamespace(process_index=i // 8, id=i) for i in range(16)]
        monkeypatch.setattr(devices.jax, "devices", lambda: nodes)
        monkeypatch.setattr(devices.jax, "process_count", lambda: 2)
        monkeypatch.setattr(
            devices,
            "_mesh",
            lambda x: SimpleNamespace(
                devices=SimpleNamespace(flat=x), size=len(x), ids=[d.id for d in x]
            ),
        )
        mesh = devices.make_mesh(9)
        assert mesh.ids == [0, 1, 2, 3, 4, 8, 9, 10, 11]
        rows = []
        for process in range(2):
            monkeypatch.setattr(devices.jax, "process_index", lambda i=process: i)
            rows.append(devices.rows_of(mesh, 9))
        assert rows == [range(5), range(5, 9)]
        assert devices.make_mesh(6, 3).ids == [0, 1, 8]
        monkeypatch.setattr(devices.jax, "process_count", lambda: 16)
        with pytest.raises(ConfigError, match=r"E222.*9 of 16.*16 processes.*=16 or"):
            devices.make_mesh(9)
        with pytest.raises(ConfigError, match=r"E221.*devices=8.*16 process"):
            devices.make_mesh(16, 8)

    def test_nodes_that_no_fast_link_connects(self, monkeypatch):
        """XLA gives the GPUs of each such node a slice of its own."""

        class Device:
            platform, device_kind, process_index = "gpu", "a GPU", 0

            def __init__(self, i):
                self.id, self.slice_index = i, i // 2

        monkeypatch.setattr(
            devices.jax, "devices", lambda: [Device(i) for i in range(4)]
        )
        assert [d.id for d in devices.make_mesh(8).devices.flat] == [0, 1, 2, 3]


class TestOptimisers:
    GRADIENTS = (0.5, -2.0, 0.25)

    def moves(self, name, **fields):
        """Where one parameter stands after each update, by the optimiser."""
        rate = optax.constant_schedule(0.1)
        optimiser = make_optimiser(name, rate, **fields)
        w = {"a": {"kernel": jnp.zeros(())}, "b": {"kernel": jnp.zeros(())}}
        state, places = optimiser.init(w), []
        for g in self.GRADIENTS:
            gradient = jax.tree.map(lambda x, g=g: jnp.full_like(x, g), w)
            change, state = optimiser.update(gradient, state, w)
            w = optax.apply_updates(w, change)
            places.append((float(w["a"]["kernel"]), float(w["b"]["kernel"])))
        assert float(state.hyperparams["learning_rate"]) == pytest.approx(0.1)
        return np.array(places)

    def test_sgd_with_momentum(self):
        """m = 0.9 m + g; w = w - 0.1 m."""
        want, m, w = [], 0.0, 0.0
        for g in self.GRADIENTS:
            m = 0.9 * m + g
            w -= 0.1 * m
            want.append(w)
        np.testing.assert_allclose(self.moves("sgd", b1=0.9)[:, 0], want, rtol=1e-6)

    def test_rmsprop_is_pytorchs(self):
        """v = 0.99 v + 0.01 g^2; w = w - 0.1 g / (sqrt(v) + 1e-8)."""
        want, v, w = [], 0.0, 0.0
        for g in self.GRADIENTS:
            v = 0.99 * v + 0.01 * g * g
            w -= 0.1 * g / (math.sqrt(v) + 1e-8)
            want.append(w)
        got = self.moves("rmsprop", b2=0.99)[:, 0]
        np.testing.assert_allclose(got, want, rtol=1e-5)

    @pytest.mark.parametrize("name", ["adam", "rmsprop", "sgd"])
    def test_slow_parameters(self, name):
        places = self.moves(name, slow="^b/", slow_factor=0.25)
        np.testing.assert_allclose(places[:, 1], 0.25 * places[:, 0], rtol=1e-6)
        np.testing.assert_array_equal(places[:, 0], self.moves(name)[:, 0])

    def test_refusals(self):
        rate = optax.constant_schedule(0.1)
        with pytest.raises(ValueError, match=r"'adam', 'rmsprop', 'sgd'.*'lion'"):
            make_optimiser("lion", rate)
        with pytest.raises(ValueError, match="slow='\\(' is no regular expression"):
            make_optimiser("adam", rate, slow="(")


@pytest.mark.full
def test_stochastic_depth_draws_anew_in_every_step():
    """The same batch and parameters, two steps: other layers are left out."""
    model = MODELS.get("swinir")(
        scale=2, features=12, groups=1, blocks=2, heads=2, window=4, drop_path=0.9
    )
    state = create_state(model, optax.sgd(0.0), scale=2, crop=8, seed=0, ema=False)
    step = jax.jit(
        make_train_step(
            model, optax.sgd(0.0), {"rec": (1.0, LOSSES.get("pixel.rec"))}, scale=2
        )
    )
    hr = np.random.default_rng(0).random((2, 16, 16, 1), np.float32)
    losses = []
    for _ in range(4):
        state, metrics = step(state, {"hr": hr, "ref": hr})
        losses.append(float(metrics["g/rec"]))
    assert len(set(losses)) > 1
