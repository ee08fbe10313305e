"""Cells of the paper's tables: their configurations, choices and times."""

from __future__ import annotations

import contextlib
import dataclasses
import json

import numpy as np
import pytest

from daasr_jax.errors import (
    ConfigError,
    DataError,
    DivergedError,
    ResourceError,
    UserError,
)
from daasr_jax.evaluation.tables import budgets, cells
from daasr_jax.experiment import cell as runs
from daasr_jax.experiment import cell_setting, checks
from daasr_jax.experiment import reproduce as reproducing
from daasr_jax.experiment.cell_pictures import PICTURES
from daasr_jax.experiment.configuration import load
from daasr_jax.experiment.record import RECORD
from daasr_jax.experiment.reproduce import (
    _run,
    describe,
    reproduce,
    seconds_left,
    wants_lpips,
)
from daasr_jax.experiment.reproduce_lengths import (
    begun_with,
    equal_steps,
    trial_steps,
)
from daasr_jax.experiment.reproduce_request import (
    DONE,
    IDENTITY,
    ReproduceRequest,
    as_begun,
    check_identity,
    is_done,
    keep_identity,
)
from daasr_jax.experiment.reproduce_tables import _of_equal_slices, write_tables
from daasr_jax.experiment.sessions import peak_of, session
from daasr_jax.files import write_atomically
from tests.data_fixtures import nifti_root, one_line


def setting(name="smoke", *, data="quickstart_x4", **changes):
    budget = budgets.budget(name, gpu=False)
    return cell_setting.Setting(load(data), budget, changes)


def request(tmp_path, **kwargs):
    given = {"parts": ["table_2"], "setting": setting(), "data": "quickstart_x4"}
    return ReproduceRequest(**(given | {"workdir": tmp_path, "scales": [4]} | kwargs))


@pytest.mark.parametrize("row", cells.ROWS)
@pytest.mark.parametrize("name", ["smoke", "paper"])
def test_configuration_of_every_row(row, name):
    for scale in cells.SCALES:
        made = cell_setting.configuration(
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


@pytest.mark.parametrize(
    ("name", "side", "expected"),
    [
        ("smoke", 64, [4, 5, 10]),
        ("paper", 128, [5, 10, 20]),
        ("paper", 320, [10, 20, 40]),
    ],
)
def test_patches_of_table_5_are_parts_of_a_slice(name, side, expected):
    asked = setting(name)
    with asked.data.unlocked():
        asked.data.data.size = side
    crops = [
        cell_setting.configuration(
            asked, row, 4, track="random", seed=0, rate=1e-3
        ).train.crop
        for row in ("crop_10", "crop_20", "crop_40")
    ]
    assert crops == expected


def test_changes():
    wide = setting(**{"model.kwargs.features": "8", "model.kwargs.groups": "1"})
    kwargs = {"track": "any", "seed": 0, "rate": 1e-3, "steps": 9}
    made = cell_setting.configuration(wide, "edsr", 4, **kwargs)
    assert made.model.kwargs.features == 8
    assert "groups" not in made.model.kwargs
    for key, value in (("train.corp", "8"), ("train.crop", "wide")):
        with pytest.raises(ConfigError, match=r"--set train") as error:
            cell_setting.configuration(setting(**{key: value}), "edsr", 4, **kwargs)
        assert error.value.code == "E282"


def test_texts_stay_texts():
    """A subject may have the name 20."""
    named = setting(**{"data.subjects.test": "20", "data.subjects.val": "09,19"})
    made = cell_setting.configuration(named, "edsr", 4, track="any", seed=0, rate=1e-3)
    assert (made.data.subjects.test, made.data.subjects.val) == ("20", "09,19")


def test_a_network_without_reference_needs_none():
    for track, expected in (("any", "slice"), ("neighbour", "subject")):
        asked = setting()
        with asked.data.unlocked():
            asked.data.reference.exclude = "subject"
        made = cell_setting.configuration(
            asked, "edsr", 4, track=track, seed=0, rate=1e-3
        )
        assert made.reference.exclude == expected


def nifti_setting(tmp_path, masks="", **subjects):
    """Of `openms` by its form: of some people there is one contrast."""
    root = nifti_root(tmp_path / "data", subjects=5, contrasts="FLAIR,T1W")
    (root / "patient03/study1_T1W.nii.gz").unlink(missing_ok=True)
    changes = {f"data.subjects.{k}": v for k, v in subjects.items()}
    changes["data.slice_step"] = "1"
    made = setting(data="brain_x4_small", **changes)
    with made.data.unlocked():
        made.data.data.root = str(root)
        made.data.data.cache_dir = str(tmp_path / "cache")
    return dataclasses.replace(made, masks=masks)


def test_the_data_are_looked_at_first(tmp_path):
    """One person validates: the track random is refused, the others are not."""
    plan = cells.plan_tables(
        ["table_1"], budgets.budget("smoke", gpu=False), scales=[4]
    )
    by_track = {t: [c for c in plan.cells if c.track == t] for t in cells.TRACKS}
    free = [c for c in plan.cells if c.track == cells.NO_TRACK]
    split = {"train": "00,01", "val": "02", "test": "03,04"}
    whole = nifti_setting(tmp_path, **split)
    cell_setting.check_data(
        whole, [*by_track["neighbour"], *by_track["contrast"], *free]
    )

    def refused(made, jobs, code, *parts):
        with pytest.raises(UserError) as error:
            cell_setting.check_data(made, jobs)
        assert error.value.code == code
        one_line(error.value, *parts)

    refused(whole, by_track["random"], "E307", "--tracks random: split 'val' holds one",
            "--set reference.exclude=volume")  # fmt: skip
    refused(nifti_setting(tmp_path, train="00,01", test="03,04"), free, "E283",
            "no val split", "--set data.subjects.val=")  # fmt: skip
    refused(dataclasses.replace(whole, masks=str(tmp_path)), free, "E364",
            "patient03/study1_FLAIR_mask.nii.gz")  # fmt: skip


def test_without_tracks_those_of_the_data_are_taken(tmp_path, monkeypatch):
    done = []

    def run_trial(setting, job, folder, *, steps):
        done.append(job)
        return trial(job.rate, 30.0) | {
            "speed": job.speed, "seconds": 1.0, "diverged": ""
        }  # fmt: skip

    def run_cell(setting, job, folder, **_):
        done.append(job)
        raise DataError("E302", "a file was not read")

    monkeypatch.setattr(runs, "run_trial", run_trial)
    monkeypatch.setattr(runs, "run_cell", run_cell)
    split = {"train": "00,01", "val": "02", "test": "03,04"}
    asked = request(
        tmp_path / "w", setting=nifti_setting(tmp_path, **split), only=["daasr"],
        parts=["table_1", "table_2"], data="brain_x4_small",
    )  # fmt: skip
    assert "at most: " in "".join(describe(asked, asked.plan()))
    said: list[str] = []
    made = reproduce(asked, said.append)
    assert [line for line in said if line.startswith("left out")] == [said[0]]
    assert said[0].startswith("left out: error E307: --tracks random: split 'val'")
    assert {job.track for job in done} == {"neighbour", "contrast"}
    assert {job.track for job in done if isinstance(job, cells.Trial)} == {"neighbour"}
    page = made.files["table_1.md"].read_text()
    assert "Not run, as the data have none: random reference." in page
    assert "## x4, contrast reference" in page
    assert "on the track neighbour" in page
    assert "as the data have none" not in made.files["table_2.md"].read_text()
    lacking = {
        track: DataError("E307", f"--tracks {track}: no") for track in cells.TRACKS
    }
    monkeypatch.setattr(cell_setting, "lacking_tracks", lambda *_: lacking)
    with pytest.raises(DataError) as error:
        reproduce(asked, said.append)
    one_line(error.value, "E307", "--tracks random")


def trial(rate, psnr, speed=8.0):
    return {"rate": rate, "psnr": psnr, "images_per_second": speed, "batch": 2}


def of_speed(speed):
    return trial(1e-3, None, speed) | {"speed": True}


def test_the_best_rate_of_validation_is_chosen():
    trials = [trial(1e-3, 30.0), trial(2e-3, 31.0), trial(5e-4, 31.0), trial(1, None)]
    assert runs.chosen(trials)["rate"] == 5e-4
    with pytest.raises(DivergedError):
        runs.chosen([trial(1e-3, None)])


def test_a_speed_is_that_past_the_warm_up():
    reports = [{"step": 1}, {"images_per_second": 2.0}, {"images_per_second": 5.0},
               {"val/psnr": 30.0}, {"images_per_second": float("nan")},
               {"images_per_second": 9.0}, {"images_per_second": 8.0}]  # fmt: skip
    assert runs.settled_speed(reports) == 8.5
    assert runs.settled_speed(reports[:1]) is None


def test_a_trial_lasts_a_tenth_of_the_minutes(tmp_path):
    asked = request(tmp_path, setting=setting("short"))  # ten minutes
    plan = asked.plan()
    first, rate, *_ = (t for t in plan.trials if t.row == "daasr_fast")
    assert (first.speed, rate.speed) == (True, False)
    assert plan.needed(first, "small") == []
    assert plan.needed(rate, "small") == [first]
    assert trial_steps(asked, first, []) == 200
    for speed, steps in ((8.0, 4 * 60), (2.0, 200)):
        assert trial_steps(asked, rate, [of_speed(speed)]) == steps
    with pytest.raises(ConfigError, match="no trial of daasr_fast") as error:
        trial_steps(asked, rate, [])
    assert error.value.code == "E286"
    by_steps = request(tmp_path)
    assert {trial_steps(by_steps, t, []) for t in by_steps.plan().trials} == {20}


def test_steps_of_minutes():
    of_a_rate = trial(2, 1, 10.0)
    assert runs.steps_in_time([of_speed(8.0), of_a_rate], 2) == 480
    assert runs.steps_in_time([of_a_rate], 2) is None
    assert runs.steps_in_time([of_speed(None)], 2) is None


def test_equal_steps_are_those_of_the_first(tmp_path):
    first = equal_steps(tmp_path, 4, {"hat": 90, "edsr": 95, "ttsr": None})
    assert first == (90, ["ttsr"])
    assert equal_steps(tmp_path, 4, {"hat": 70, "ttsr": 60}) == first
    assert equal_steps(tmp_path, 2, {"hat": 70}) == (70, [])


def ready(plan, *, without=()):
    return [
        trial(t.rate, 30 + 100 * t.rate)
        | {"row": t.row, "scale": t.scale, "speed": t.speed}
        for t in plan.trials
        if (t.row, t.rate) not in without
    ]


def test_a_cell_without_a_speed_is_refused(tmp_path):
    """The trial of an ablation's speed failed, and tells no steps of its minutes."""
    short = setting("short")
    asked = request(tmp_path, setting=short)
    plan = asked.plan()
    middle = short.budget.rates[1]
    found = ready(plan, without=[("without_cwt", middle)])
    for cell in plan.cells:
        if cell.row == "without_cwt":
            with pytest.raises(ConfigError, match="no trial of without_cwt") as error:
                begun_with(asked, plan, cell, found)
            assert error.value.code == "E286"
        else:
            begun = begun_with(asked, plan, cell, found)
            assert begun["steps"] == 4 * 600
            unknown = ["without_cwt"] if cell.match == "steps" else []
            assert begun["without"] == unknown


def test_equal_steps_are_those_that_the_slowest_was_given(tmp_path):
    """Its cell of equal time began with fewer than its speed says today."""
    asked = request(tmp_path, setting=setting("short"))
    plan = asked.plan()
    slow = next(c for c in plan.cells if (c.row, c.match) == ("without_cwt", "time"))
    write_atomically(tmp_path / slow.name / "chosen.json", json.dumps({"steps": 77}))
    equal = next(c for c in plan.cells if (c.row, c.match) == ("daasr_fast", "steps"))
    assert begun_with(asked, plan, equal, ready(plan))["steps"] == 77


def test_a_run_keeps_the_rate_it_began_with(tmp_path):
    """One of three trials failed at first, and comes later."""
    asked = request(tmp_path)
    plan = asked.plan()
    cell = next(c for c in plan.cells if c.row == "daasr_fast")
    best = asked.setting.budget.rates[-1]
    begun = begun_with(asked, plan, cell, ready(plan, without=[("daasr_fast", best)]))
    assert (begun["rate"], len(begun["trials"])) == (asked.setting.budget.rates[1], 2)
    # Nothing was trained yet: the third rate counts.
    assert begun_with(asked, plan, cell, ready(plan))["rate"] == best
    first = begun_with(asked, plan, cell, ready(plan, without=[("daasr_fast", best)]))
    (tmp_path / cell.name / RECORD).touch()
    assert begun_with(asked, plan, cell, ready(plan)) == first == begun


def test_another_program_is_waited_for(tmp_path, monkeypatch):
    """A trial that another program runs without a lease is tried again."""
    asked = request(tmp_path, parts=["figure_4"], only=["srcnn"])
    calls, said = [], []

    def run_trial(setting, job, folder, *, steps):
        calls.append(job)
        if len(calls) == 1:
            raise ResourceError("E614", "another program")
        return trial(job.rate, 30.0) | {"diverged": "", "seconds": 1.0}

    def run_cell(setting, job, folder, **_):
        assert len({c.rate for c in calls}) == 3
        write_atomically(folder / runs.SCORES.format(0), json.dumps(
            {"methods": {"pair": {"psnr": {"mean": 30.0}}}}))  # fmt: skip
        return {"seconds": 1.0, "row": job.row, "lpips": False}

    monkeypatch.setattr(runs, "run_trial", run_trial)
    monkeypatch.setattr(runs, "run_cell", run_cell)
    monkeypatch.setattr(reproducing, "WAIT_SECONDS", 0.01)
    _run(asked, asked.plan(), said.append)
    assert len(calls) == 4
    assert sum("another program has it" in x for x in said) == 1
    assert "0 of 4 left" in said[-1]


def test_the_slowest_row_is_trained_once(tmp_path, monkeypatch):
    """It makes as many steps in its minutes as all rows do at equal steps."""
    short = setting("short")
    asked = request(
        tmp_path, parts=["figure_4"], only=["srcnn", "hat"], setting=short,
        tracks=["random"],
    )  # fmt: skip
    trained = []

    def run_trial(setting, job, folder, *, steps):
        speed = {"srcnn": 80.0, "hat": 8.0}[job.row]
        done = {"diverged": "", "seconds": 1.0, "speed": job.speed}
        return trial(job.rate, 30.0, speed) | done

    def run_cell(setting, job, folder, *, steps, rate, lpips):
        trained.append((job.row, job.match, steps))
        finish(tmp_path, job, 30, pairings=1)
        (folder / "weights").write_text(job.row)
        (folder / ".lock").touch()
        about = {"steps": steps, "learning_rate": rate, "lpips": lpips}
        return json.loads((folder / DONE).read_text()) | about

    monkeypatch.setattr(runs, "run_trial", run_trial)
    monkeypatch.setattr(runs, "run_cell", run_cell)
    _run(asked, asked.plan(), lambda line: None)
    least = 4 * 600
    assert trained == [
        ("srcnn", "time", 10 * least), ("hat", "time", least), ("srcnn", "steps", least)
    ]  # fmt: skip
    copied = tmp_path / cells.Cell("hat", 4, cells.NO_TRACK, 0, "steps").name
    assert (copied / "weights").read_text() == "hat"
    assert not (copied / ".lock").exists()
    found = json.loads((copied / DONE).read_text())
    assert (found["steps"], len(found["trials"])) == (least, 3)


def test_a_failed_cell_is_an_error(tmp_path, monkeypatch):
    """One of two cells; its tables are written, and the exit code is its error's."""
    asked = request(tmp_path, parts=["figure_4"], only=["srcnn", "edsr"])
    failing = {"edsr"}

    def run_trial(setting, job, folder, *, steps):
        return trial(job.rate, 30.0) | {"diverged": "", "seconds": 1.0}

    def run_cell(setting, job, folder, **_):
        if job.row in failing:
            raise DataError("E302", "a file")
        finish(tmp_path, job, 30, pairings=1)
        return json.loads((folder / DONE).read_text()) | {"lpips": False}

    monkeypatch.setattr(runs, "run_trial", run_trial)
    monkeypatch.setattr(runs, "run_cell", run_cell)
    monkeypatch.setattr(cell_setting, "check_data", lambda *_: None)
    monkeypatch.setattr(cell_setting, "lacking_tracks", lambda *_: {})
    made = reproduce(asked, lambda line: None)
    assert "failed: error E302" in made.files["figure_4.md"].read_text()
    with pytest.raises(DataError) as error:
        made.check()
    one_line(error.value, "E302", "1 of 2 cells failed", "cells/edsr-x4", "a file")
    failing.clear()
    reproduce(asked, lambda line: None).check()


def test_sessions_add_up(tmp_path):
    for wrong in (True, False):
        with contextlib.suppress(ValueError), session(tmp_path) as spent:
            spent.begin -= 10
            with peak_of(spent):
                pass
            assert spent.peak_mib > 0
            if wrong:
                spent.peak_mib = 1e9
                raise ValueError
    assert 20 <= spent.total() < 25
    assert spent.peak_mib == 1e9


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


def test_time_left_of_minutes(tmp_path):
    asked = request(tmp_path, setting=setting("short"))
    plan = asked.plan()
    first, *rates = (t for t in plan.trials if t.row == "daasr_fast")
    assert seconds_left(asked, rates) == 3 * 60
    assert seconds_left(asked, [first]) is None
    (tmp_path / first.name).mkdir(parents=True)
    found = {"seconds": 7.0, "row": first.row, "speed": True}
    (tmp_path / first.name / DONE).write_text(json.dumps(found))
    assert seconds_left(asked, [*rates, first, *plan.cells[:1]]) == 3 * 60 + 7 + 600


def test_time_left_of_the_paper_is_ten_trials(tmp_path):
    asked = request(tmp_path, setting=setting("paper"))
    plan = asked.plan()
    trial = plan.trials[0]
    (tmp_path / trial.name).mkdir(parents=True)
    found = {"seconds": 7.0, "row": trial.row}
    (tmp_path / trial.name / DONE).write_text(json.dumps(found))
    assert seconds_left(asked, plan.cells) == len(plan.cells) * 10 * 7


def test_a_folder_has_one_degradation_and_one_kind_of_reference(tmp_path):
    keep_identity(request(tmp_path))
    for change in ({"degradation": "kspace"}, {"reference": {"seed": 7}}):
        other = setting()
        with other.data.unlocked():
            other.data.update(change)
        with pytest.raises(ConfigError, match=next(iter(change))) as error:
            keep_identity(request(tmp_path, setting=other))
        assert error.value.code == "E281"
    tracks = setting()
    with tracks.data.unlocked():
        tracks.data.reference.track = "aligned"
    keep_identity(request(tmp_path, setting=tracks))
    # A folder of before tells less: it is completed.
    path = tmp_path / IDENTITY
    whole = json.loads(path.read_text())
    path.write_text(json.dumps({k: whole[k] for k in ("data", "budget")}))
    keep_identity(request(tmp_path))
    assert json.loads(path.read_text()) | {"salt": whole["salt"]} == whole
    budget = {k: v for k, v in whole["budget"].items() if k != "validations"}
    path.write_text(json.dumps(whole | {"budget": budget}))
    keep_identity(request(tmp_path))
    assert json.loads(path.read_text()) == whole


def test_cells_of_another_schedule_are_not_gone_on_with(tmp_path):
    """Networks of published size halved the rate by epochs, whatever their length."""
    paper = request(tmp_path, setting=setting("paper"))
    keep_identity(paper)
    path = tmp_path / IDENTITY
    before = json.loads(path.read_text())
    del before["budget"]["validations"]
    path.write_text(json.dumps(before))
    with pytest.raises(ConfigError) as error:
        check_identity(paper)
    one_line(error.value, "E281", "another schedule of the learning rate")


def test_pairings_and_masks_may_come_later(tmp_path):
    cell = cells.Cell("daasr_fast", 4, "random", 0)
    first = request(tmp_path)
    keep_identity(first)
    finish(tmp_path, cell, 30, pairings=3)
    more = dataclasses.replace(setting(), pairings=5)
    masked = dataclasses.replace(setting(), masks=str(tmp_path))
    assert is_done(first, cell)
    assert not is_done(request(tmp_path, setting=more), cell)
    assert not is_done(request(tmp_path, setting=masked), cell)
    keep_identity(request(tmp_path, setting=more))
    assert as_begun(first).setting.pairings == 5
    for kept, done in (({}, False), ({"stripped_hr": 0}, True)):
        np.savez(tmp_path / cell.name / PICTURES, hr=0, **kept)
        assert is_done(request(tmp_path, setting=masked), cell) == done
    keep_identity(request(tmp_path, setting=masked))
    with pytest.raises(ConfigError, match="another masks"):
        check_identity(first)


def test_all_rates_of_a_folder_are_chosen_on_one_track(tmp_path):
    def begun(track):
        asked = dataclasses.replace(setting(), track=track)
        made = request(tmp_path, setting=asked, parts=["table_1"], tracks=[track])
        return as_begun(made)

    assert begun("random").setting.tried_on == "random"
    keep_identity(begun("neighbour"))
    later = begun("random")
    assert (later.setting.tried_on, later.setting.track) == ("neighbour", "random")
    plan = later.plan()
    assert {t.track for t in plan.trials} == {"neighbour", cells.NO_TRACK}
    assert {c.track for c in plan.cells} == {"random", cells.NO_TRACK}
    keep_identity(later)
    assert json.loads((tmp_path / IDENTITY).read_text())["track"] == "neighbour"


def test_a_command_that_fails_first_leaves_no_mark(tmp_path):
    """Its data do not serve: the mended command may have another track and masks."""
    split = {"train": "00,01", "val": "02", "test": "03,04"}
    wrong = nifti_setting(tmp_path, masks=str(tmp_path), **split)
    asked = request(tmp_path / "w", setting=wrong, only=["daasr"], tracks=["random"])
    with pytest.raises(DataError) as error:
        reproduce(asked, lambda line: None)
    assert error.value.code == "E307"
    assert not (tmp_path / "w").exists()


@pytest.mark.parametrize(
    ("key", "parts", "instead"),
    [
        ("scale", ["table_1"], "--scales"),
        ("seed", ["table_1"], "--seeds"),
        ("optimiser.learning_rate", ["table_1"], "trials choose"),
        ("train.crop", ["table_1", "table_5"], "Table 5"),
        ("losses.sat.weight", ["table_6"], "Table 6"),
        ("model.kwargs.align.name", ["table_4"], "Table 4"),
    ],
)
def test_what_tells_cells_apart_is_not_set(tmp_path, key, parts, instead):
    asked = request(tmp_path, parts=parts, setting=setting(**{key: "1"}))
    with pytest.raises(ConfigError) as error:
        asked.check()
    one_line(error.value, "E287", f"--set {key}", instead)
    if key == "train.crop":
        request(tmp_path, setting=asked.setting, parts=["table_1"]).check()


@pytest.mark.parametrize("steps", [3, 60, 5000])
def test_the_paper_halves_after_each_tenth_of_a_run(steps):
    """Section 4.2: 200 epochs, halved every 20."""
    kwargs = {"track": "random", "seed": 0, "rate": 1e-4}
    short = dataclasses.replace(
        setting(), budget=budgets.budget("short", size="published", gpu=False)
    )
    o = cell_setting.configuration(short, "hat", 4, steps=steps, **kwargs).optimiser
    assert o.schedule == "milestones"
    assert list(o.milestones) == sorted({max(1, steps * k // 10) for k in range(1, 10)})
    for epochs, every in ((200, 20), (20, 2)):
        made = cell_setting.configuration(
            setting("paper"), "hat", 4, epochs=epochs, **kwargs
        )
        assert made.optimiser.schedule == "halving"
        assert made.optimiser.halve_every_epochs == every
    chosen = {"optimiser.halve_every_epochs": "7", "train.validate_every_epochs": "3"}
    own = dataclasses.replace(short, changes=chosen)
    made = cell_setting.configuration(own, "hat", 4, steps=steps, **kwargs)
    assert (made.optimiser.schedule, made.optimiser.halve_every_epochs) == (
        "halving",
        7,
    )
    assert (made.train.validate_every, made.train.validate_every_epochs) == (0, 3)


def test_every_row_is_validated_equally_often():
    for steps in (2307, 5000, 4):
        made = cell_setting.configuration(
            setting("short"), "edsr", 4, track="any", seed=0, rate=1e-3, steps=steps,
            validations=5,
        )  # fmt: skip
        every = made.train.validate_every
        at = [k for k in range(1, steps + 1) if k % every == 0 or k == steps]
        assert len(at) == min(5, steps)


@pytest.mark.parametrize(
    "content", ["[1]", '{"data": null, "changes": []}', '{"data": {"subjects": 1}}']
)
def test_a_damaged_identity_is_another_folder_or_none(tmp_path, content):
    (tmp_path / "reproduce.json").write_text(content)
    with contextlib.suppress(ConfigError):
        keep_identity(request(tmp_path))


def test_lists_of_people_are_salted(tmp_path):
    asked, found = setting(), []
    with asked.data.unlocked():
        asked.data.data.subjects.val = "Q"
    for name in "ab":
        (tmp_path / name).mkdir()
        given = request(tmp_path / name, setting=asked)
        keep_identity(given)
        keep_identity(given)  # the salt is kept
        found.append((tmp_path / name / "reproduce.json").read_text())
    assert found[0] != found[1]
    assert '"Q"' not in found[0]


def test_a_folder_has_one_budget(tmp_path):
    def dry(asked):
        reproduce(asked, lambda line: None, dry_run=True)

    dry(request(tmp_path))
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "reproduce.json").write_text('{"budget": 1}')
    with pytest.raises(ConfigError, match="budget") as error:
        dry(request(tmp_path))
    assert error.value.code == "E281"


def test_lpips_is_wanted_by_table_6_alone(tmp_path):
    plan = request(tmp_path, parts=["table_2", "table_6"]).plan()
    wanted = {c.row for c in plan.cells if wants_lpips(plan, c)}
    assert wanted == {k for _, k in plan.rows["table_6"]}
    assert "without_sat" not in wanted


def scored(value):
    """A score file of one run of four slices of two subjects."""
    methods = ("bicubic", "sr")
    return {
        "measured_as": "sr", "prepared_sha256": "p", "split": "test",
        "pairing_sha256": f"pairing {value}",
        "methods": {m: {"psnr": {"n_nonfinite": 0}, "consistency": {"n_nonfinite": 0}}
                    for m in methods} | {"pair": {"psnr": {"mean": value}}},
        "per_slice": [
            {"subject": "ab"[i // 2]}
            | {m: {"psnr": value + i, "consistency": 50.0} for m in methods}
            for i in range(4)
        ],
    }  # fmt: skip


def finish(folder, cell, value, pairings=2):
    found = {
        "row": cell.row, "seconds": 1.0, "pairings_used": pairings,
        "commit": f"c{value}",
        "device": "cpu", "versions": {"jax": "0.10"}, "protocol": {"border": 4},
        "parameters": 10, "steps": 9, "learning_rate": 1e-3, "uses_reference": True,
        "config_sha256": "c", "trials": {"0.001": 30.0, "0.002": None},
        "checkpoint_step": 9, "curve": [], "images_per_second": 1.0, "minutes": 1.0,
        "peak_mib": 5.0,
    }  # fmt: skip
    write_atomically(folder / cell.name / DONE, json.dumps(found))
    for k in range(pairings):
        write_atomically(
            folder / cell.name / runs.SCORES.format(k), json.dumps(scored(value + k))
        )


def test_tables_of_a_folder(tmp_path):
    asked = request(
        tmp_path, parts=["table_1", "figure_4"], tracks=["random"], seeds=2,
        setting=dataclasses.replace(setting(), pairings=2),
        data="/home/someone/brain.py",
        arguments=["--workdir", "/home/someone/w", "--data=/home/someone/brain.py"],
    )  # fmt: skip
    plan = asked.plan()
    for cell in plan.cells:
        if cell.row == "daasr_fast" or (cell.row == "ttsr" and cell.seed == 0):
            finish(tmp_path, cell, 30 + 10 * cell.seed)
    files = write_tables(asked)
    table, figure = (
        json.loads(files[f"{n}.json"].read_text()) for n in ("table_1", "figure_4")
    )
    rows = {r["row"]: r for r in table["groups"][0]["rows"]}
    assert rows["ttsr"]["status"] == "1 of 2 seeds"
    assert rows["daasr_fast"]["status"] == "done"
    assert [m["commit"] for m in rows["daasr_fast"]["made_with"]] == ["c30", "c40"]
    assert rows["ttsr"]["statistics"]["base_minus"]["psnr"]["mean"] == 0  # seed 0 alone
    hashes = table["groups"][0]["pairing_sha256"]
    assert sorted(hashes) == [f"pairing {n}" for n in (30, 31, 40, 41)]
    # A figure shows seed 0.
    rows = {r["row"]: r["status"] for r in figure["groups"][0]["rows"]}
    assert rows["ttsr"] == rows["daasr_fast"] == "done"
    page = files["report.html"].read_text()
    assert "<dd>c30; c40</dd>" in page
    assert "jax 0.10" in page
    for path in files.values():
        assert "someone" not in path.read_text()
    assert "--workdir W --data=PATH" in files["table_1.md"].read_text()
    assert "of equal seeds" in files["table_1.md"].read_text()


def test_a_table_has_one_set_of_people(tmp_path):
    """Of two subjects the second alone has another contrast."""
    asked = request(
        tmp_path, parts=["table_1"], tracks=["contrast"], only=["edsr", "daasr", "ttsr"]
    )
    one = dataclasses.replace(
        asked, setting=dataclasses.replace(asked.setting, pairings=1)
    )
    some = {"places": [2, 3], "people": [2, 2]}
    for cell in asked.plan().cells:
        finish(tmp_path, cell, 30, pairings=1)
        path = tmp_path / cell.name / runs.SCORES.format(0)
        report = json.loads(path.read_text())
        if cell.track == "contrast":
            report["per_slice"] = report["per_slice"][2:]
            report |= some if cell.row == "daasr_fast" else {"places": [1, 2]}
        path.write_text(json.dumps(report))
        found = tmp_path / cell.name / DONE
        # A cell of before that does not tell its slices is evaluated again.
        assert is_done(one, cell) == (cell.row == "edsr")
        found.write_text(json.dumps(json.loads(found.read_text()) | {"by_place": True}))
        assert is_done(one, cell)
    for cell in asked.plan().cells:
        found = tmp_path / cell.name / DONE
        assert is_done(asked, cell) == (cell.track == "any")
        again = json.loads(found.read_text()) | {"pairings": 3}
        found.write_text(json.dumps(again))
        assert is_done(asked, cell)
    files = write_tables(asked)
    (group,) = json.loads(files["table_1.json"].read_text())["groups"]
    rows = {r["row"]: r for r in group["rows"]}
    for row in ("bicubic", "edsr", "daasr_fast"):
        found = rows[row]["statistics"]
        assert (found["n_slices"], found["n_subjects"]) == (2, 1)
        assert found["pair"]["psnr"]["mean"] == 32.5
        assert list(found["pair"]["psnr"]["per_subject"]) == ["2"]
    assert rows["edsr"]["statistics"]["base_minus"]["psnr"]["mean"] == 0
    assert rows["ttsr"]["statistics"] is None
    made = files["table_1.md"].read_text()
    assert "2 slices of 1 subject(s)." in made
    assert "| network | subject 2 |" in made
    assert "TTSR (other slices: it lacks some" in made


def test_a_figure_has_one_set_of_slices():
    slices = np.arange(24.0).reshape(6, 2, 2)
    rows = {
        "EDSR": {"hr": slices[::-1]},
        "HAT": {"hr": np.concatenate([slices[:4], slices[:2]])},  # its worst and best
        "DAASR": {"hr": slices},
    }
    assert list(_of_equal_slices(rows, "DAASR")) == ["HAT", "DAASR"]


def test_table_5_names_its_base(tmp_path):
    files = write_tables(request(tmp_path, parts=["table_5"]))
    made = files["table_5.md"].read_text()
    assert "40 x 40 minus this, dB" in made
    assert "4 pixels at least. `10 x 10`: 4 x 4, `20 x 20`: 5 x 5, `40 x 40`" in made
    assert "compared with `40 x 40`" in made
    assert "at equal time" not in made
