"""Cells of the paper's tables: their configurations, choices and times."""

from __future__ import annotations

import json

import pytest

from daasr_jax.errors import ConfigError, DivergedError
from daasr_jax.evaluation.tables import cells
from daasr_jax.experiment import cell as runs
from daasr_jax.experiment import checks
from daasr_jax.experiment.configuration import load
from daasr_jax.experiment.reproduce import (
    _equal_steps,
    describe,
    reproduce,
    seconds_left,
    wants_lpips,
)
from daasr_jax.experiment.reproduce_request import DONE, Request


def setting(name="smoke", *, data="quickstart_x4", **changes):
    budget = cells.budget(name, gpu=False)
    return runs.Setting(load(data), budget, changes)


def request(tmp_path, **kwargs):
    given = {"parts": ["table_2"], "setting": setting(), "data": "quickstart_x4"}
    return Request(**(given | {"workdir": tmp_path, "scales": [4]} | kwargs))


@pytest.mark.parametrize("row", cells.ROWS)
@pytest.mark.parametrize("name", ["smoke", "paper"])
def test_configuration_of_every_row(row, name):
    for scale in cells.SCALES:
        made = runs.configuration(
            setting(name), row, scale, track="neighbour", seed=3, rate=1e-3, steps=40
        )
        checks.check_ranges(made)
        assert (made.scale, made.seed, made.train.steps) == (scale, 3, 40)
        assert made.optimiser.learning_rate == 1e-3
        assert made.optimiser.warmup_steps <= 4
        assert made.data.layout == "template"
        assert made.reference.aligned == "neighbour"
        assert made.train.checkpoint_every == 4
        assert made.train.crop <= made.data.size // scale


def test_patches_of_table_5_keep_their_order():
    crops = [
        runs.configuration(
            setting(), row, 4, track="random", seed=0, rate=1e-3
        ).train.crop
        for row in ("crop_10", "crop_20", "crop_40")
    ]
    assert crops == [4, 5, 10]


def test_changes():
    wide = setting(**{"model.kwargs.features": "8", "model.kwargs.groups": "1"})
    kwargs = {"track": "any", "seed": 0, "rate": 1e-3, "steps": 9}
    made = runs.configuration(wide, "edsr", 4, **kwargs)
    assert made.model.kwargs.features == 8
    assert "groups" not in made.model.kwargs
    for key, value in (("train.corp", "8"), ("train.crop", "wide")):
        with pytest.raises(ConfigError, match=r"--set train") as error:
            runs.configuration(setting(**{key: value}), "edsr", 4, **kwargs)
        assert error.value.code == "E282"


def trial(rate, psnr, speed=8.0):
    return {"rate": rate, "psnr": psnr, "images_per_second": speed, "batch": 2}


def test_the_best_rate_of_validation_is_chosen():
    trials = [trial(1e-3, 30.0), trial(2e-3, 31.0), trial(5e-4, 31.0), trial(1, None)]
    assert runs.chosen(trials)["rate"] == 5e-4
    with pytest.raises(DivergedError):
        runs.chosen([trial(1e-3, None)])


def test_steps_of_minutes():
    assert runs.steps_in_time([trial(1, 1, 8.0), trial(2, 1, 10.0)], 2) == 600


def test_equal_steps_are_those_of_the_first(tmp_path):
    assert [_equal_steps(tmp_path, 4, n) for n in (90, 70)] == [90, 90]
    assert _equal_steps(tmp_path, 2, 70) == 70


def test_time_left(tmp_path):
    asked = request(tmp_path)
    plan = asked.plan()
    left = [*plan.trials, *plan.cells]
    assert seconds_left(asked, left) is None
    assert "the time is known" in describe(asked, plan)[-1]
    for trial, seconds in zip(plan.trials, (10.0, 20.0), strict=False):
        (tmp_path / trial.name).mkdir(parents=True)
        found = {"seconds": seconds, "row": trial.row}
        (tmp_path / trial.name / DONE).write_text(json.dumps(found))
    # Four trials of 15 s and four cells, each three times as long.
    assert seconds_left(asked, left[2:]) == 4 * 15 + 4 * 45
    assert describe(asked, plan)[-1].startswith("6 trials and 4 cells of 60 steps, 8")


def test_a_folder_has_one_budget(tmp_path):
    def dry(asked):
        reproduce(asked, lambda line: None, dry_run=True)

    dry(request(tmp_path))
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "reproduce.json").write_text('{"data": 1}')
    with pytest.raises(ConfigError, match="budget") as error:
        dry(request(tmp_path))
    assert error.value.code == "E281"


def test_lpips_is_wanted_by_table_6_alone(tmp_path):
    plan = request(tmp_path, parts=["table_2", "table_6"]).plan()
    wanted = {c.row for c in plan.cells if wants_lpips(plan, c)}
    assert wanted == {k for _, k in plan.rows["table_6"]}
    assert "without_sat" not in wanted
