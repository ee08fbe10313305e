"""The track `mixed`: shares, damage, and that draws depend on names and seeds only."""

import pickle
from collections import Counter

import numpy as np
import pytest

from daasr_jax.data import (
    Shares,
    TrainingTriples,
    alternating,
    tracks,
    training_batches,
)
from daasr_jax.data.corruption import _WAYS, corrupted
from daasr_jax.data.mixture import Mixture, reference_image
from daasr_jax.errors import ConfigError, DataError
from tests.data_fixtures import one_line, table

RUN = {
    "batch_size": 4, "crop": 4, "scale": 2, "steps": 12, "seed": 3, "track": "mixed",
}  # fmt: skip
EVERY = Shares(stranger=0.3, neighbour=0.2, contrast=0.2, corrupted=0.2, none=0.1)


def draws(mixture, i=0, count=2000, seed=1):
    return [mixture.draw(i, seed=seed, epoch=epoch) for epoch in range(count)]


def test_kinds_come_as_often_as_their_shares():
    mixture = Mixture(table(), shares=EVERY)
    counts = Counter(drawn.kind for drawn in draws(mixture))
    for kind, share in EVERY.of_all.items():
        spread = np.sqrt(2000 * share * (1 - share))
        assert abs(counts[kind] - 2000 * share) < 5 * spread, kind


def test_each_kind_is_what_its_name_says():
    slices = table()
    mixture = Mixture(slices, shares=EVERY)
    for i in range(len(slices)):
        for drawn in draws(mixture, i, 60):
            r = drawn.reference
            if drawn.kind == "none":
                assert r is None
                continue
            assert r != i
            same = slices.subjects[r] == slices.subjects[i]
            if drawn.kind == "stranger":
                assert not same
            if drawn.kind == "neighbour":
                assert slices.volumes[r] == slices.volumes[i]
                assert abs(slices.index[r] - slices.index[i]) == 1
            if drawn.kind == "contrast":
                assert same
                assert slices.contrasts[r] != slices.contrasts[i]
            assert (drawn.damage is None) == (drawn.kind != "corrupted")


def test_a_corrupted_copy_is_of_what_has_a_share():
    slices = table()
    shares = Shares(stranger=0, neighbour=0, contrast=1, corrupted=1, none=0)
    for drawn in draws(Mixture(slices, shares=shares), count=200):
        assert slices.contrasts[drawn.reference] == "T2"
        assert slices.subjects[drawn.reference] == "p0"


def test_what_a_slice_lacks_goes_to_the_next_kind():
    shares = Shares(stranger=0, neighbour=0, contrast=1, corrupted=0, none=0)
    one = Mixture(table(contrasts=("T1",)), shares=shares)
    assert {drawn.kind for drawn in draws(one, count=50)} == {"neighbour"}
    assert one.describe() == "100 % neighbour"
    single = Mixture(table(contrasts=("T1",), slices=1), shares=shares)
    assert {drawn.kind for drawn in draws(single, count=50)} == {"stranger"}
    assert single.describe() == "100 % stranger"


def test_a_neighbour_with_the_pixels_of_the_target_is_not_drawn():
    slices = table(slices=3)
    slices.hashes = np.array([k.replace("p0/T1#001", "p0/T1#000") for k in slices.keys])
    shares = Shares(stranger=0, neighbour=1, contrast=0, corrupted=0, none=0)
    mixture = Mixture(slices, shares=shares)
    assert {d.kind for d in draws(mixture, 0, 20)} == {"stranger"}
    assert {d.reference for d in draws(mixture, 1, 20)} == {2}


def test_draws_depend_on_seed_epoch_and_names_only():
    first, second = table(), table(order=5)
    one, two = Mixture(first, shares=EVERY), Mixture(second, shares=EVERY)
    place = {key: i for i, key in enumerate(second.keys)}
    for i, key in enumerate(first.keys):
        for a, b in zip(draws(one, i, 30), draws(two, place[key], 30), strict=True):
            assert (a.kind, a.damage) == (b.kind, b.damage)
            if a.reference is not None:
                assert first.keys[a.reference] == second.keys[b.reference]
    assert draws(one, 0, 30) != draws(one, 0, 30, seed=2)


class TestBatches:
    def test_the_same_whatever_threads_and_processes(self):
        slices = table()
        whole = list(training_batches(slices, **RUN, num_threads=0))
        threads = list(training_batches(slices, **RUN, num_threads=3))
        parts = [
            list(training_batches(slices, **RUN, rows=rows, start=5))
            for rows in (range(1), range(1, 4))
        ]
        for k, batch in enumerate(whole):
            for name in ("hr", "ref"):
                np.testing.assert_array_equal(batch[name], threads[k][name])
                if k >= 5:
                    halves = [part[k - 5][name] for part in parts]
                    np.testing.assert_array_equal(batch[name], np.concatenate(halves))

    def test_a_copy_in_another_process_draws_the_same(self):
        ramp = np.linspace(0, 1, 32 * 32, dtype=np.float32).reshape(32, 32, 1)
        slices = table()
        slices._read = Ramp(ramp)
        slices._memory = None
        triples = TrainingTriples(slices, **RUN)
        copy = pickle.loads(pickle.dumps(triples))
        for i in range(20):
            assert triples.draw(i) == copy.draw(i)
            np.testing.assert_array_equal(triples[i]["ref"], copy[i]["ref"])

    def test_no_reference_is_zero_and_others_are_not(self):
        triples = TrainingTriples(table(), **RUN, shares=EVERY)
        kinds = Counter()
        for i in range(48):
            _, (drawn,) = triples.draw(i)
            kinds[drawn.kind] += 1
            ref = triples[i]["ref"]
            assert ref.shape == (8, 8, 1)
            assert ref.dtype == np.float32
            assert (ref.max() == 0) == (drawn.kind == "none") or drawn.damage
        assert kinds["none"]
        assert kinds["corrupted"]

    def test_window_and_turn_are_those_of_the_target(self):
        shares = Shares(stranger=1, neighbour=1, contrast=1, corrupted=0, none=0)
        triples = TrainingTriples(table(), **RUN, shares=shares)
        for i in range(48):
            target, (drawn,) = triples.draw(i)
            sample = triples[i]
            np.testing.assert_allclose(
                sample["hr"] - target, sample["ref"] - drawn.reference, atol=1e-5
            )


class Ramp:
    def __init__(self, ramp):
        self.ramp = ramp

    def __call__(self, i):
        return self.ramp * np.float32(1 / (1 + i))


class TestCorruption:
    def image(self, size=64):
        rng = np.random.default_rng(0)
        inside = np.zeros((size, size, 1), np.float32)
        inside[12:-12, 12:-12] = rng.uniform(0.2, 1, (size - 24, size - 24, 1))
        return inside

    @pytest.mark.parametrize("way", range(len(_WAYS)))
    def test_every_way_changes_the_image_and_keeps_its_range(self, way):
        image = self.image()
        kept = image.copy()
        for seed in range(20):
            rng = np.random.default_rng(seed)
            out = np.clip(_WAYS[way](image, rng), 0, 1)
            assert out.shape == image.shape
            assert np.abs(out - image).max() > 0.01
        np.testing.assert_array_equal(image, kept)

    def test_moved_is_the_image_elsewhere(self):
        image = self.image()
        out = _WAYS[0](image, np.random.default_rng(2))
        ys, xs = np.nonzero(out[..., 0])
        rows, columns = ys.min() - 12, xs.min() - 12
        assert (rows, columns) != (0, 0)
        moved = np.roll(image, (rows, columns), axis=(0, 1))
        np.testing.assert_array_equal(out, moved)

    def test_half_is_blank_and_the_rest_as_it_was(self):
        image = np.ones((64, 64, 1), np.float32)
        out = _WAYS[3](image, np.random.default_rng(1))
        assert set(np.unique(out)) == {0, 1}
        assert out.mean() == 0.5

    def test_background_stays_dark_in_another_contrast(self):
        image = self.image()
        for seed in range(10):
            out = _WAYS[2](image, np.random.default_rng(seed))
            assert (out[image == 0] == 0).all()

    def test_every_way_is_drawn_and_a_seed_repeats_it(self):
        image = self.image()
        outs = [corrupted(image, np.random.default_rng(s)) for s in range(40)]
        again = corrupted(image, np.random.default_rng(0))
        np.testing.assert_array_equal(outs[0], again)
        assert len({out.tobytes() for out in outs}) > 35
        assert all(out.dtype == np.float32 for out in outs)
        assert all(out.min() >= 0 and out.max() <= 1 for out in outs)

    def test_reference_image(self):
        slices = table(size=64)
        slices._read = lambda i: self.image()
        mixture = Mixture(slices, shares=EVERY)
        for drawn in draws(mixture, count=60):
            image = reference_image(slices, drawn)
            same = drawn.reference is not None and not drawn.damage
            assert np.array_equal(image, self.image()) == same


class TestShares:
    def test_only_ratios_count(self):
        assert Shares(3, 1, 0, 0, 0).of_all == Shares(0.75, 0.25, 0, 0, 0).of_all

    @pytest.mark.parametrize(
        ("changes", "says"),
        [
            ({"none": -0.1}, "reference.shares.none is -0.1"),
            ({"stranger": float("nan")}, "reference.shares.stranger is nan"),
            (dict.fromkeys(EVERY.of_all, 0.0), "are all 0"),
            (
                dict.fromkeys(("stranger", "neighbour", "contrast"), 0.0),
                "corrupted has nothing to damage",
            ),
        ],
    )
    def test_refusals(self, changes, says):
        with pytest.raises(ConfigError) as error:
            Shares(**changes)
        one_line(error.value, "E215", says)


class TestAlternating:
    def test_strangers_and_neighbours_take_turns(self):
        slices = table(contrasts=("T1",))
        pairing = alternating(slices, seed=4)
        near = slices.volumes[pairing.references] == slices.volumes
        assert near.tolist() == [False, True] * 6
        assert (abs(slices.index[pairing.references] - slices.index)[near] == 1).all()
        assert pairing.track == "mixed"

    def test_it_is_free_of_order_and_sealed(self):
        first, second = table(), table(order=3)
        one, two = alternating(first, seed=4), alternating(second, seed=4)
        names = {first.keys[i]: first.keys[r] for i, r in enumerate(one.references)}
        for i, r in enumerate(two.references):
            assert names[second.keys[i]] == second.keys[r]
        assert one.sha256 == two.sha256
        assert one.sha256 != alternating(first, seed=5).sha256

    def test_several_references_and_a_distance(self):
        slices = table(contrasts=("T1",), slices=6)
        slices.spacing = np.full(len(slices), 2.0)
        one = alternating(slices, seed=4, distance_mm=4)
        two = alternating(slices, seed=4, distance_mm=4, count=2)
        np.testing.assert_array_equal(one.references, two.references)
        assert one.sha256 != alternating(slices, seed=4).sha256
        for i in range(1, len(slices), 2):
            assert set(abs(slices.index[two.all_of(i)] - slices.index[i])) == {2}
        assert len(set(two.all_of(2))) == 2

    def test_one_subject_has_no_stranger(self):
        with pytest.raises(DataError) as error:
            alternating(table(subjects=1))
        one_line(error.value, "E312", "exclude=volume")


def test_tracks_that_a_split_has():
    names = [(t["track"], t["aligned"]) for t in tracks(table())]
    assert names == [
        ("random", "neighbour"), ("aligned", "neighbour"), ("aligned", "contrast"),
    ]  # fmt: skip
    assert len(tracks(table(contrasts=("T1",)))) == 2
    assert len(tracks(table(contrasts=("T1",), slices=1))) == 1
