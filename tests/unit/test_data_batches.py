import numpy as np
import pytest

from daasr_jax.data import (
    SliceTable,
    TrainingTriples,
    crop_to_multiple,
    steps_per_epoch,
    training_batches,
)
from daasr_jax.data.table import SliceRecord
from daasr_jax.errors import ConfigError, DataError
from tests.data_fixtures import one_line, table

RUN = {"batch_size": 4, "crop": 4, "scale": 2, "steps": 15, "seed": 3}


def equal(first, second):
    assert len(first) == len(second)
    for one, two in zip(first, second, strict=True):
        for name in ("hr", "ref"):
            np.testing.assert_array_equal(one[name], two[name])


def pair(triples, i):
    target, drawn = triples.draw(i)
    return target, drawn[0].reference


def test_shapes_and_length():
    slices = table()
    batches = list(training_batches(slices, **RUN))
    assert len(batches) == RUN["steps"]
    for batch in batches:
        assert set(batch) == {"hr", "ref"}
        for image in batch.values():
            assert image.shape == (4, 8, 8, 1)
            assert image.dtype == np.float32
    assert steps_per_epoch(slices, 5) == 4


def test_each_epoch_visits_every_slice_once_with_new_references():
    slices = table()  # 24 slices, 6 batches of 4
    triples = TrainingTriples(slices, **RUN | {"steps": 12})
    pairs = [pair(triples, i) for i in range(48)]
    first, second = pairs[:24], pairs[24:]
    assert sorted(t for t, _ in first) == list(range(24))
    assert sorted(t for t, _ in second) == list(range(24))
    assert [t for t, _ in first] != [t for t, _ in second]
    assert dict(first) != dict(second)
    for target, reference in pairs:
        assert slices.subjects[target] != slices.subjects[reference]
    with pytest.raises(IndexError):
        triples.draw(48)


def test_remainder_is_left_out():
    triples = TrainingTriples(table(), **RUN | {"batch_size": 9, "steps": 4})
    targets = [triples.draw(i)[0] for i in range(36)]
    assert len(set(targets[:18])) == 18
    assert len(set(targets[18:])) == 18


def test_target_and_reference_share_window_and_turn():
    # the images of the fixture are one ramp plus a number of their own
    triples = TrainingTriples(table(), **RUN)
    windows = set()
    for i in range(60):
        target, reference = pair(triples, i)
        sample = triples[i]
        hr, ref = sample["hr"] - target, sample["ref"] - reference
        np.testing.assert_allclose(hr, ref, atol=1e-5)
        windows.add(hr.tobytes())
    assert len(windows) > 50


def test_augmentation_reaches_all_eight_turns():
    slices = table(size=16)
    whole = {**RUN, "crop": 8, "steps": 60}
    plain = TrainingTriples(slices, **whole, augment=False)
    turned = TrainingTriples(slices, **whole)
    ramp = plain[0]["hr"] - plain.draw(0)[0]
    eight = [np.rot90(f, k) for f in (ramp, ramp[:, ::-1]) for k in range(4)]
    seen = set()
    for i in range(240):
        np.testing.assert_allclose(plain[i]["hr"] - plain.draw(i)[0], ramp, atol=1e-5)
        hr = turned[i]["hr"] - turned.draw(i)[0]
        errors = [np.abs(hr - other).max() for other in eight]
        assert min(errors) < 1e-4
        seen.add(int(np.argmin(errors)))
    assert seen == set(range(8))


def test_scale_three_never_uses_the_last_column():
    image = np.zeros((32, 32, 1), np.float32)
    image[30:], image[:, 30:] = 9, 9
    records = [SliceRecord(f"p{i}/T1", f"p{i}", "T1", "", 0, 1) for i in range(4)]
    slices = SliceTable("train", records, 32, lambda i: image)
    run = {**RUN, "scale": 3, "crop": 9}
    for batch in training_batches(slices, **run):
        assert batch["hr"].max() == 0
    whole = next(iter(training_batches(slices, **run | {"crop": 0})))
    assert whole["hr"].shape == (4, 30, 30, 1)


def test_same_seed_same_batches_whatever_the_threads():
    slices = table()
    one = list(training_batches(slices, **RUN))
    equal(one, list(training_batches(slices, **RUN, num_threads=0)))
    equal(one, list(training_batches(slices, **RUN, num_threads=4)))
    other = list(training_batches(slices, **RUN | {"seed": 4}))
    assert any((a["hr"] != b["hr"]).any() for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("track", ["random", "aligned", "mixed"])
def test_several_references(track):
    slices = table(slices=6)
    run = {**RUN, "track": track}
    one = list(training_batches(slices, **run))
    three = list(training_batches(slices, **run, count=3))
    for a, b in zip(one, three, strict=True):
        assert b["ref"].shape == (4, 3, 8, 8, 1)
        np.testing.assert_array_equal(a["hr"], b["hr"])
        np.testing.assert_array_equal(a["ref"], b["ref"][:, 0])
    triples = TrainingTriples(slices, **run, count=3)
    for i in range(40):
        _, drawn = triples.draw(i)
        found = [d.reference for d in drawn if d.reference is not None]
        if track != "aligned":  # a slice has two neighbours at most
            assert len(set(found)) == len(found)


def test_resume_is_exact():
    slices = table()
    whole = list(training_batches(slices, **RUN))
    for stop in (0, 1, 7, 14, 15):
        equal(whole[stop:], list(training_batches(slices, **RUN, start=stop)))


def test_longer_run_continues_a_shorter_one():
    slices = table()
    short = list(training_batches(slices, **RUN))
    long = list(training_batches(slices, **RUN | {"steps": 20}))
    equal(short, long[:15])


@pytest.mark.parametrize("ends", [(4,), (2, 4), (1, 2, 3, 4), (3, 4)])
@pytest.mark.parametrize("start", [0, 5])
def test_processes_share_each_batch_in_its_order(ends, start):
    slices = table()
    whole = list(training_batches(slices, **RUN))[start:]
    parts = [
        list(training_batches(slices, **RUN, rows=range(begin, end), start=start))
        for begin, end in zip((0, *ends), ends, strict=False)
    ]
    together = [
        {k: np.concatenate([b[k] for b in batches]) for k in batches[0]}
        for batches in zip(*parts, strict=True)
    ]
    equal(whole, together)


@pytest.mark.parametrize(
    ("changes", "error_type", "parts"),
    [
        ({"batch_size": 25}, DataError, ("E314", "'train' holds 24 slices", "25")),
        ({"batch_size": 0}, ConfigError, ("E210", "batch size")),
        ({"crop": 17}, ConfigError, ("E205", "17", "lower the crop to 16")),
        ({"crop": -1}, ConfigError, ("E205",)),
        ({"exclude": "x"}, ConfigError, ("E211",)),
    ],
)
def test_refusals(changes, error_type, parts):
    with pytest.raises(error_type) as error:
        training_batches(table(), **RUN | changes)
    one_line(error.value, *parts)


def test_crop_to_multiple():
    image = np.arange(8 * 7.0).reshape(8, 7, 1)
    np.testing.assert_array_equal(crop_to_multiple(image, 3), image[:6, :6])
    assert crop_to_multiple(image, 1).shape == image.shape


def test_a_split_beyond_the_memory_budget_is_read_each_time():
    records = [SliceRecord(f"p{i}/T1", f"p{i}", "T1", "", 0, 1) for i in range(4)]
    reads = []

    def read(i):
        reads.append(i)
        return np.zeros((16, 16, 1), np.float32)

    for budget, wanted in ((0, [1, 1]), (4 * 16 * 16 * 4, [1])):
        reads.clear()
        slices = SliceTable("train", records, 16, read, memory_budget=budget)
        slices.image(1)
        slices.image(1)
        assert reads == wanted
    with pytest.raises(IndexError):
        slices.image(4)
    assert "4 slices, 4 subjects" in repr(slices)
