"""Fault 17: a run that is resumed with other settings, or without its record.

Expected: settings of where and how long may change. Any other difference is shown and
ends with exit code 2, but for `--allow_config_change`; then `config.json` and every
report tell it, and the subjects seen before stay known.
"""

from __future__ import annotations

import json

import pytest

from daasr_jax.data import prepare
from daasr_jax.errors import ConfigError
from daasr_jax.evaluation.words import describe_training
from daasr_jax.experiment import record, subjects
from daasr_jax.experiment.configuration import load
from tests.data_fixtures import nifti_root, one_line, settings
from tests.e2e.commands import SMALL, complaint, rows, run_all

INPUTS = {
    "prepared_sha256": "p",
    "companions_sha256": None,
    "perceptual": {"network": "none"},
    "start": None,
}


@pytest.fixture
def config(tmp_path):
    """A configuration that was recorded in a run."""
    made = load("fastmri_x4")
    record.record_config(made.to_dict(), tmp_path, INPUTS)
    return made


def resumed(config, folder, inputs=INPUTS, **kwargs):
    record.record_config(config.to_dict(), folder, inputs, begun=True, **kwargs)


def test_17_where_and_how_long_may_change(tmp_path, config):
    config.train.epochs, config.train.log_every = 300, 7
    config.data.root, config.train.workers = "/elsewhere", 3
    resumed(config, tmp_path)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("scale", 2),
        ("seed", 9),
        ("model.kwargs.features", 8),
        ("data.size", 64),
        ("reference.track", "aligned"),
        ("optimiser.learning_rate", 1e-3),
    ],
)
def test_17_what_decides_is_shown_and_refused(tmp_path, config, key, value):
    before = config.to_dict()
    for part in key.split("."):
        before = before[part]
    config.update_from_flattened_dict({key: value})
    text = (tmp_path / "config.json").read_text()
    with pytest.raises(ConfigError) as error:
        resumed(config, tmp_path)
    assert error.value.exit_code == 2
    one_line(error.value, "E207", f"{key} was {before!r}, is {value!r}")
    one_line(error.value, "--workdir", "--allow_config_change")
    assert (tmp_path / "config.json").read_text() == text


def test_17_other_data_are_refused(tmp_path, config):
    with pytest.raises(ConfigError, match=r"E207.*the data differ"):
        resumed(config, tmp_path, INPUTS | {"prepared_sha256": "q"})


def test_17_a_lost_record_is_refused(tmp_path, config):
    for spoil in (lambda path: path.write_text("{"), lambda path: path.unlink()):
        spoil(tmp_path / "config.json")
        for allow in (False, True):
            with pytest.raises(ConfigError) as error:
                resumed(config, tmp_path, allow=allow)
            one_line(error.value, "E208", "config.json")


def test_17_an_allowed_change_is_recorded(tmp_path, config, caplog):
    config.seed = 9
    resumed(config, tmp_path, allow=True)
    assert "goes on with other settings: seed was 0, is 9" in caplog.text
    resumed(config, tmp_path)  # it is the run's own now
    config.optimiser.learning_rate = 1e-3
    resumed(config, tmp_path, allow=True)
    found = record.read_record(tmp_path)
    assert [text.partition(" ")[0] for text in found["changes"]] == [
        "seed",
        "optimiser.learning_rate",
    ]
    report = {"training": record.trained_with(found)}
    assert "2 settings CHANGED on the way" in describe_training(report)


def test_17_subjects_seen_before_stay_known(tmp_path):
    """The data have changed: nobody that was learned from is forgotten."""
    root, cache = nifti_root(tmp_path / "data"), tmp_path / "cache"
    first, second = (prepare(settings(root, cache, seed=seed)) for seed in (0, 1))
    assert first.subjects["train"] != second.subjects["train"]
    run = tmp_path / "run"
    run.mkdir()
    for data in (first, second):
        subjects.record_subjects(data, run)
    seen = json.loads((run / "subjects.json").read_text())
    for data in (first, second):
        hashes = data.subject_hashes(seen["salt"])["train"]
        assert {*hashes} <= {*seen["subjects"]["train"]}
        assert {*data.volume_hashes["train"]} <= {*seen["volumes"]["train"]}


@pytest.mark.full
@pytest.mark.timeout(400)
def test_17_a_change_is_allowed_on_the_command_line(tmp_path):
    run = tmp_path / "run"
    train = ["train.py", *SMALL, "--config.data.layout=template", f"--workdir={run}"]
    train += [
        "--config.reference.exclude=slice",
        "--config.optimiser.schedule=constant",
    ]
    other = [*train, "--config.train.steps=2", "--config.seed=9"]
    first, no, yes, again = run_all(
        [
            [*train, "--config.train.steps=1"],
            other,
            [*other, "--allow_config_change"],
            [*other, "--config.train.steps=3"],
        ],
        tmp_path / "cache",
    )
    assert first["code"] == 0, first["err"]
    assert not complaint(no, "E207", 2, "seed was 0, is 9", "--allow_config_change")
    assert yes["code"] == 0, yes["err"]
    said = " ".join(yes["err"].split())
    assert "goes on with other settings: seed was 0, is 9" in said
    assert "resuming at step 1" in said
    assert again["code"] == 0, again["err"]  # it is the run's own now
    assert record.read_record(run)["changes"] == ["seed was 0, is 9"]
    steps = [row["step"] for row in rows(run) if "g/total" in row]
    assert steps == [1, 2, 3]
