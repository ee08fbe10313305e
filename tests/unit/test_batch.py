"""The batch that follows the devices: its size, its learning rates, its refusals."""

from __future__ import annotations

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import edsr_x4, fastmri_x4, fastmri_x4_gan
from daasr_jax.errors import ConfigError
from daasr_jax.experiment import checks, parts, record
from daasr_jax.experiment.batch import lay_out
from daasr_jax.training.scaling import WARMUP_EPOCHS, LinearRule
from daasr_jax.training.schedules import make_schedule


def follows(images, load=fastmri_x4, **changes):
    config = load.get_config()
    config.train.batch_per_device = images
    config.update_from_flattened_dict(changes)
    return config


class TestRule:
    def test_above_the_given_batch(self):
        rule = LinearRule(batch=72, of_rates=9)
        assert (rule.factor, rule.warmup_epochs) == (8.0, 5)
        assert rule.warmup(0, steps_per_epoch=7) == (35, 1 / 8)
        assert rule.warmup(200, steps_per_epoch=7) == (200, 0.0)

    @pytest.mark.parametrize(("batch", "factor"), [(9, 1.0), (3, 1 / 3)])
    def test_no_warmup_where_no_rate_rises(self, batch, factor):
        rule = LinearRule(batch=batch, of_rates=9)
        assert (rule.factor, rule.warmup_epochs) == (factor, 0)
        assert rule.warmup(0, steps_per_epoch=7) == (0, 0.0)

    def test_the_rate_rises_from_the_given_one(self):
        """Goyal et al., section 2.2: in equal steps to k times it, then as planned."""
        warmup, begin = LinearRule(36, 9).warmup(0, steps_per_epoch=2)
        schedule = make_schedule(
            "halving",
            4.0,
            total_steps=100,
            steps_per_epoch=2,
            halve_every_epochs=6,
            warmup_steps=warmup,
            warmup_from=begin,
        )
        want = [1 + 3 * n / 10 for n in range(1, 11)] + [4.0, 4.0, 2.0]
        got = [float(schedule(i)) for i in range(13)]
        np.testing.assert_allclose(got, want, rtol=1e-6)

    @pytest.mark.parametrize("start", [-0.1, 1.0])
    def test_where_a_warmup_cannot_begin(self, start):
        with pytest.raises(ValueError, match="warmup_from"):
            make_schedule(
                "constant",
                1.0,
                total_steps=9,
                steps_per_epoch=3,
                halve_every_epochs=2,
                warmup_from=start,
            )


def rates(optimiser, steps):
    """The learning rates of the first updates."""
    w, told = {"w": jnp.zeros(())}, []
    state = optimiser.init(w)
    for _ in range(steps):
        _, state = optimiser.update({"w": jnp.ones(())}, state, w)
        told.append(float(state.hyperparams["learning_rate"]))
    return told


def test_both_optimisers_follow():
    """An epoch of the discriminator has as many updates as it makes in it."""
    config = fastmri_x4_gan.get_config()
    config.adversarial.updates = 2
    config.optimiser.warmup_steps = 4
    sizes = {"steps": 90, "steps_per_epoch": 1}
    given = parts.make_training(config, **sizes)
    scaled = parts.make_training(config, **sizes, rule=LinearRule(18, 9))
    n = 2 * WARMUP_EPOCHS
    a, b = (rates(x[1].optimiser, n + 2) for x in (given, scaled))
    rise = [1 + min(1.0, i / n) for i in range(1, n + 3)]
    np.testing.assert_allclose(np.divide(b, a), rise, rtol=1e-6)
    a, b = (rates(x[0], 6) for x in (given, scaled))
    np.testing.assert_allclose(np.divide(b, a), 2.0, rtol=1e-6)  # the warm-up as given
    assert b[0] < b[3] == b[5]


class TestLayout:
    @pytest.mark.parametrize(("devices", "batch"), [(0, 12), (2, 6), (1, 3)])
    def test_the_batch_follows_the_devices(self, devices, batch):
        assert jax.device_count() == 4
        layout = lay_out(follows(3, **{"train.devices": devices}))
        assert (layout.size, layout.mesh.size) == (batch, devices or 4)
        assert layout.rule == LinearRule(batch, 9)
        assert layout.record() == {
            "images": batch,
            "devices": devices or 4,
            "rates_of": 9,
            "rates_times": batch / 9,
            "warmup": "5 epochs" if batch > 9 else "none",
        }

    def test_words(self):
        assert lay_out(follows(3)).words == (
            "12 images, 3 on each of 4 devices; learning rates times 1.333, 12 / "
            "train.batch_size=9; warm-up: 5 epochs"
        )
        words = lay_out(follows(1)).words
        assert words.endswith("0.4444, 4 / train.batch_size=9; warm-up: none")
        words = lay_out(follows(1, **{"train.devices": 1})).words
        assert words.startswith("1 images, all on one device; ")
        words = lay_out(follows(9, **{"optimiser.warmup_steps": 70})).words
        assert words.endswith("train.batch_size=9; warm-up: 70 steps, as given")

    def test_off_is_the_batch_that_is_given(self):
        layout = lay_out(fastmri_x4.get_config())
        assert (layout.size, layout.mesh.size) == (9, 3)
        assert layout.rule.factor == 1
        assert layout.words == "9 images, 3 on each of 3 devices"

    def test_a_run_that_has_begun_keeps_its_batch(self):
        began = lay_out(follows(3)).record()
        layout = lay_out(follows(3, **{"train.devices": 2}), began)
        assert (layout.size, layout.mesh.size) == (12, 2)
        assert layout.rule.factor == 12 / 9
        assert "6 on each of 2 devices (it began on 4)" in layout.words

    @pytest.mark.parametrize(("devices", "fits"), [(0, 3), (4, 3), (2, 1)])
    def test_devices_that_do_not_divide_it(self, devices, fits):
        began = lay_out(follows(3)).record() | {"images": 9, "devices": 9}
        said = rf"E247.*batch of 9.*over {devices or 4} devices.*train.devices={fits}\."
        with pytest.raises(ConfigError, match=said):
            lay_out(follows(3, **{"train.devices": devices}), began)
        assert lay_out(follows(3, **{"train.devices": fits}), began).size == 9

    def test_a_process_that_would_have_none(self, monkeypatch):
        monkeypatch.setattr(jax, "process_count", lambda: 2)
        began = lay_out(follows(3)).record() | {"images": 7}
        with pytest.raises(ConfigError, match=r"E247.*start 1 process"):
            lay_out(follows(3), began)

    @pytest.mark.parametrize(
        ("changes", "said"),
        [
            ({"train.devices": 5}, r"E221.*devices=5"),
            ({"train.accumulate": 2}, r"E226.*share of 3 images"),
        ],
    )
    def test_refusals(self, changes, said):
        with pytest.raises(ConfigError, match=said):
            lay_out(follows(3, **changes))


class TestChecks:
    def test_ranges(self):
        with pytest.raises(ConfigError, match=r"E210.*batch_per_device is -1"):
            checks.check_ranges(follows(-1))
        config = follows(4)
        checks.check_ranges(config)
        config.train.batch_size = 0
        with pytest.raises(ConfigError, match=r"E210.*batch_size is 0"):
            checks.check_ranges(config)

    def test_milestones_in_steps_need_a_length_in_steps(self):
        config = edsr_x4.get_config("published")
        assert (config.optimiser.schedule, config.train.batch_per_device) == (
            "milestones",
            0,
        )
        config.train.steps = 0
        checks.check_ranges(config)
        config.train.batch_per_device = 4
        with pytest.raises(
            ConfigError, match=r"E248.*config.optimiser.schedule.*steps"
        ):
            checks.check_ranges(config)
        config.train.steps = 300_000
        checks.check_ranges(config)

    def test_those_of_a_discriminator_that_plays(self):
        config = follows(4)
        config.adversarial.optimiser.schedule = "milestones"
        checks.check_ranges(config)
        config.adversarial.objective = "bce"
        with pytest.raises(ConfigError, match=r"E248.*adversarial.optimiser.schedule"):
            checks.check_ranges(config)


class TestRecord:
    def inputs(self, layout):
        return {"prepared_sha256": "p", "perceptual": {}, "start": None} | {
            "batch": layout.record()
        }

    def test_it_stays_as_the_run_began(self, tmp_path):
        config = follows(3).to_dict()
        record.record_config(config, tmp_path, self.inputs(lay_out(follows(3))))
        began = record.read_record(tmp_path)["batch"]
        assert (began["images"], began["devices"]) == (12, 4)
        config = follows(3, **{"train.devices": 2})
        layout = lay_out(config, began)
        record.record_config(
            config.to_dict(), tmp_path, self.inputs(layout), begun=True
        )
        assert record.read_record(tmp_path)["batch"] == began
        assert record.trained_with(record.read_record(tmp_path))["batch"] == began

    def test_other_settings_are_another_run(self, tmp_path):
        layout = lay_out(follows(3))
        record.record_config(follows(3).to_dict(), tmp_path, self.inputs(layout))
        with pytest.raises(ConfigError, match=r"E207.*batch_per_device was 3, is 6"):
            record.record_config(
                follows(6).to_dict(), tmp_path, self.inputs(layout), begun=True
            )

    def test_a_run_from_before_it(self, tmp_path):
        """Its batch is that of its configuration, and it goes on with it."""
        config = fastmri_x4.get_config()
        inputs = self.inputs(lay_out(config))
        record.record_config(config.to_dict(), tmp_path, inputs)
        path = tmp_path / "config.json"
        old = json.loads(path.read_text())
        del old["batch"], old["config"]["train"]["batch_per_device"]
        path.write_text(json.dumps(old))
        read = record.read_record(tmp_path)
        assert read["config"]["train"]["batch_per_device"] == 0
        want = {"images": 9, "rates_of": 9, "rates_times": 1.0}
        assert read["batch"] == want
        record.record_config(config.to_dict(), tmp_path, inputs, begun=True)
        assert json.loads(path.read_text())["batch"] == want
