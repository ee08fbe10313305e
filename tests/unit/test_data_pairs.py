import json

import numpy as np
import pytest

from daasr_jax.data import ReferenceRule, distance_mm, draw_pairing, load_pairing
from daasr_jax.data.references import with_reference
from daasr_jax.errors import ConfigError, DataError
from tests.data_fixtures import one_line, table


def named(slices, pairing):
    return {slices.keys[i]: slices.keys[r] for i, r in enumerate(pairing.references)}


def test_a_part_of_a_split_keeps_its_numbers():
    """Of three people the first lacks the other contrast."""
    whole = table(slices=2)
    first = whole.only([i for i, v in enumerate(whole.volumes) if v != "p0/T2"])
    part = with_reference(first, aligned="contrast")
    assert [whole.keys[i] for i in part.places] == part.keys
    assert part.people.tolist() == [2] * 4 + [3] * 4


@pytest.mark.parametrize("exclude", ["subject", "volume", "slice"])
@pytest.mark.parametrize("seed", range(5))
def test_random_references_obey_the_rule(exclude, seed):
    slices = table(order=seed)
    pairing = draw_pairing(slices, exclude=exclude, seed=seed)
    groups = {"subject": slices.subjects, "volume": slices.volumes}.get(
        exclude, np.array(slices.keys)
    )
    assert (groups[pairing.references] != groups).all()
    rule = ReferenceRule(slices, exclude=exclude)
    for i in range(len(slices)):
        wanted = set(np.flatnonzero(groups != groups[i]))
        assert set(rule.candidates(i)) == wanted
        assert {j for j in range(len(slices)) if rule.allows(i, j)} == wanted


def test_every_candidate_is_equally_likely():
    slices = table(subjects=3, contrasts=("T1",), slices=4)
    rule = ReferenceRule(slices)
    drawn = [rule.draw(0, seed=1, epoch=epoch) for epoch in range(4000)]
    seen = np.bincount(drawn, minlength=len(slices))
    assert (seen[:4] == 0).all()
    # eight candidates, 500 draws each; 100 is over 4.7 standard deviations
    assert (abs(seen[4:] - 500) < 100).all()


def test_draws_depend_on_seed_and_epoch_only():
    slices = table()
    rule = ReferenceRule(slices)

    def epoch(seed, number):
        return [rule.draw(i, seed=seed, epoch=number) for i in range(len(slices))]

    assert epoch(0, 1) == epoch(0, 1)
    assert epoch(0, 1) != epoch(0, 2)
    assert epoch(0, 1) != epoch(1, 1)


@pytest.mark.parametrize(
    "rule",
    [
        {},
        {"exclude": "volume"},
        {"exclude": "slice"},
        {"track": "aligned"},
        {"track": "aligned", "aligned": "contrast"},
    ],
)
def test_pairing_is_free_of_order_and_global_state(rule):
    first, second = table(), table(order=7)
    np.random.seed(0)  # noqa: NPY002
    one = draw_pairing(first, seed=5, **rule)
    np.random.seed(1)  # noqa: NPY002
    two = draw_pairing(second, seed=5, **rule)
    assert named(first, one) == named(second, two)
    assert one.sha256 == two.sha256
    assert one.sha256 != draw_pairing(first, seed=6, **rule).sha256


def test_pairing_does_not_change_between_versions():
    pairing = draw_pairing(table(), seed=0)
    assert pairing.sha256[:16] == "1ad65d16a170f7af"


def test_neighbour():
    slices = table(slices=5, order=2)
    pairing = draw_pairing(slices, track="aligned", seed=3)
    other = pairing.references
    assert (slices.volumes[other] == slices.volumes).all()
    assert (abs(slices.index[other] - slices.index) == 1).all()
    middle = slices.index == 2
    assert set(slices.index[other][middle]) == {1, 3}


def test_neighbour_among_kept_slices():
    slices = table(slices=5)
    slices.index = slices.index * 3
    other = draw_pairing(slices, track="aligned").references
    assert (abs(slices.index[other] - slices.index) == 3).all()


def test_neighbour_of_a_single_slice():
    with pytest.raises(DataError) as error:
        draw_pairing(table(slices=1), track="aligned")
    one_line(error.value, "E312", "p0/T1", "data.slice_first and data.slice_last")


class TestDistance:
    """`reference.distance_mm` chooses the neighbour nearest to it."""

    def spaced(self, **changes):
        slices = table(slices=9, contrasts=("T1",), **changes)
        slices.spacing = np.full(len(slices), 3.0)
        return slices

    @pytest.mark.parametrize(
        ("distance", "steps"), [(0.1, 1), (3, 1), (4.4, 1), (4.6, 2), (6, 2), (12, 4)]
    )
    def test_the_nearest_to_it_on_both_sides(self, distance, steps):
        slices = self.spaced(order=3)
        rule = ReferenceRule(slices, track="aligned", distance_mm=distance)
        for i in range(len(slices)):
            found = set(slices.index[rule.candidates(i)])
            wanted = {slices.index[i] - steps, slices.index[i] + steps} & set(range(9))
            assert found == wanted

    def test_as_far_as_there_are_slices(self):
        rule = ReferenceRule(self.spaced(), track="aligned", distance_mm=1000)
        assert rule.candidates(0).tolist() == [8]
        assert rule.candidates(4).tolist() == [0, 8]

    def test_among_kept_slices_and_of_each_volume(self):
        slices = self.spaced()
        slices.index = slices.index * 2
        slices.spacing[slices.subjects == "p1"] = 1.0
        pairing = draw_pairing(slices, track="aligned", distance_mm=6)
        apart = abs(slices.index[pairing.references] - slices.index)
        assert set(apart[slices.subjects == "p1"]) == {6}
        assert set(apart[slices.subjects != "p1"]) == {2}

    def test_median_in_millimetres(self):
        slices = self.spaced()
        one, two = np.array([0, 1, 2]), np.array([1, 3, 5])
        assert distance_mm(slices, one, two) == 6
        slices.spacing[:] = np.nan
        assert np.isnan(distance_mm(slices, one, two))

    def test_unknown_distance(self):
        with pytest.raises(ConfigError) as error:
            draw_pairing(table(), track="aligned", distance_mm=4)
        one_line(error.value, "E216", "reference.distance_mm is 4", "p0/T1")

    def test_it_is_written_down(self, tmp_path):
        slices, path = self.spaced(), tmp_path / "pairs.json"
        pairing = draw_pairing(slices, track="aligned", distance_mm=6)
        pairing.save(path)
        again = load_pairing(path, slices)
        assert (again.distance_mm, again.sha256) == (6, pairing.sha256)
        np.testing.assert_array_equal(again.references, pairing.references)


class TestSeveral:
    """`reference.count` references of each slice."""

    @pytest.mark.parametrize(
        "rule", [{}, {"exclude": "slice"}, {"track": "aligned", "aligned": "contrast"}]
    )
    def test_different_and_the_first_is_that_of_one(self, rule):
        slices = table(contrasts=("T1", "T2", "FLAIR", "PD"))
        one = draw_pairing(slices, seed=2, **rule)
        three = draw_pairing(slices, seed=2, count=3, **rule)
        np.testing.assert_array_equal(one.references, three.references)
        assert (one.count, three.count) == (1, 3)
        allowed = ReferenceRule(slices, **rule)
        for i in range(len(slices)):
            assert len(set(three.all_of(i))) == 3
            assert all(allowed.allows(i, k) for k in three.all_of(i))
        shuffled = table(contrasts=("T1", "T2", "FLAIR", "PD"), order=4)
        again = draw_pairing(shuffled, seed=2, count=3, **rule)
        assert again.sha256 == three.sha256 != one.sha256

    def test_too_few_are_repeated(self):
        slices = table(contrasts=("T1",), slices=2, subjects=2)
        pairing = draw_pairing(slices, track="aligned", count=3)
        assert pairing.all_of(0) == [1, 1, 1]
        assert sorted(draw_pairing(slices, count=3).all_of(0))[0] == 2

    def test_file(self, tmp_path):
        path = tmp_path / "pairs.json"
        pairing = draw_pairing(table(), count=3, seed=1)
        pairing.save(path)
        shuffled = table(order=3)
        again = load_pairing(path, shuffled)
        assert again.count == 3
        for i, key in enumerate(shuffled.keys):
            names = [shuffled.keys[k] for k in again.all_of(i)]
            k = pairing.keys.index(key)
            assert names == [pairing.keys[r] for r in pairing.all_of(k)]

    def test_file_with_unlike_numbers(self, tmp_path):
        from daasr_jax.data.pairs import _sha256

        path = tmp_path / "pairs.json"
        draw_pairing(table(), count=2).save(path)
        content = json.loads(path.read_text())
        del content["pairs"][0][2], content["sha256"]
        path.write_text(json.dumps(content | {"sha256": _sha256(content)}))
        with pytest.raises(DataError) as error:
            load_pairing(path, table())
        one_line(error.value, "E313", path, "unlike numbers")


def test_other_contrast_at_the_same_place():
    slices = table(contrasts=("T1", "T2", "FLAIR"), slices=6, order=1)
    pairing = draw_pairing(slices, track="aligned", aligned="contrast", seed=1)
    other = pairing.references
    assert (slices.subjects[other] == slices.subjects).all()
    assert (slices.contrasts[other] != slices.contrasts).all()
    assert (slices.index[other] == slices.index).all()
    assert len(set(zip(slices.contrasts, slices.contrasts[other], strict=True))) == 6


def test_other_contrast_with_another_number_of_slices():
    slices = table(subjects=1, contrasts=("T1", "T2"), slices=6)
    coarse = slices.contrasts == "T2"
    slices.n_slices[coarse] = 36
    slices.index[coarse] = [3, 9, 15, 21, 27, 33]
    slices.n_slices[~coarse] = 12
    slices.index[~coarse] = [1, 3, 5, 7, 9, 11]
    other = draw_pairing(slices, track="aligned", aligned="contrast").references
    place = (slices.index + 0.5) / slices.n_slices
    assert abs(place[other] - place).max() <= 1 / 12


def test_other_contrast_stays_in_the_study():
    slices = table(studies=("study1", "study2"))
    other = draw_pairing(slices, track="aligned", aligned="contrast").references
    assert (slices.studies[other] == slices.studies).all()


def test_no_other_contrast():
    with pytest.raises(DataError) as error:
        draw_pairing(table(contrasts=("T1",)), track="aligned", aligned="contrast")
    one_line(error.value, "E312", "subject p0", "3 such volumes")


@pytest.mark.parametrize(
    ("exclude", "shape", "hint"),
    [
        ("subject", {"subjects": 1}, "exclude=volume"),
        ("volume", {"subjects": 1, "contrasts": ("T1",)}, "exclude=slice"),
        ("slice", {"subjects": 1, "contrasts": ("T1",), "slices": 1}, "add subjects"),
    ],
)
def test_no_candidate(exclude, shape, hint):
    with pytest.raises(DataError) as error:
        draw_pairing(table(**shape), exclude=exclude)
    one_line(error.value, "E312", "'train'", hint)


class TestSamePixels:
    """A reference with the pixels of its target is never drawn."""

    def copied(self, first, second, **shape):
        """A table whose slices of volume `second` are those of `first`."""
        slices = table(**shape)
        slices.hashes = np.array([k.replace(second, first) for k in slices.keys])
        return slices

    @pytest.mark.parametrize("exclude", ["volume", "slice"])
    def test_copies_of_one_subject_are_kept_apart(self, exclude):
        slices = self.copied("p0/T1", "p0/T2")
        rule = ReferenceRule(slices, exclude=exclude)
        for i in range(len(slices)):
            same = set(np.flatnonzero(slices.hashes == slices.hashes[i]))
            allowed = {j for j in range(len(slices)) if rule.allows(i, j)}
            assert allowed == set(rule.candidates(i))
            assert not allowed & same
            drawn = {rule.draw(i, seed=0, epoch=e) for e in range(200)}
            assert drawn <= allowed
            assert len(drawn) > 0.9 * len(allowed)
        pairing = draw_pairing(slices, exclude=exclude)
        assert (slices.hashes[pairing.references] != slices.hashes).all()

    def test_others_draw_what_they_drew(self):
        plain, slices = table(), self.copied("p0/T1", "p0/T2")
        one, two = (
            draw_pairing(t, exclude="volume").references for t in (plain, slices)
        )
        free = slices.subjects != "p0"
        np.testing.assert_array_equal(one[free], two[free])

    @pytest.mark.parametrize(
        ("first", "second", "rule"),
        [
            ("p0/T1", "p1/T1", {}),
            ("p0/T1", "p2/T2", {"exclude": "slice"}),
            ("p0/T1", "p0/T2", {"track": "aligned", "aligned": "contrast"}),
            ("p1/T2#001", "p1/T2#002", {"track": "aligned"}),
        ],
    )
    def test_else_it_stops(self, first, second, rule):
        with pytest.raises(DataError) as error:
            draw_pairing(self.copied(first, second), **rule)
        one_line(error.value, "E333", first, second, "'train'", "same pixels")

    def test_nothing_else_is_left(self):
        with pytest.raises(DataError) as error:
            draw_pairing(
                self.copied("p0/T1", "p0/T2", subjects=1, slices=1), exclude="slice"
            )
        one_line(error.value, "E312", "has its pixels")

    def test_a_saved_pair_of_copies_is_refused(self, tmp_path):
        path = tmp_path / "pairs.json"
        pairing = draw_pairing(table(subjects=1), exclude="volume")
        pairing.save(path)
        first = pairing.keys[0]
        partner = pairing.keys[int(pairing.references[0])]
        slices = table(subjects=1)
        slices.hashes = np.array([k.replace(partner, first) for k in slices.keys])
        with pytest.raises(DataError) as error:
            load_pairing(path, slices)
        one_line(error.value, "E313", "rule excludes", partner)


def test_empty_split_and_unknown_values():
    with pytest.raises(DataError) as error:
        draw_pairing(table(subjects=0))
    one_line(error.value, "E312", "'train' is empty", "data.subjects.train")
    for name in ("track", "exclude", "aligned"):
        with pytest.raises(ConfigError) as error:
            draw_pairing(table(), **{name: "x"})
        one_line(error.value, "E211", f"reference.{name}")


class TestFile:
    def test_round_trip(self, tmp_path):
        slices = table()
        pairing = draw_pairing(slices, seed=2)
        path = tmp_path / "deep/pairs.json"
        pairing.save(path)
        content = json.loads(path.read_text())
        assert (content["track"], content["seed"]) == ("random", 2)
        assert len(content["pairs"]) == len(slices)
        shuffled = table(order=3)
        again = load_pairing(path, shuffled)
        assert again.sha256 == pairing.sha256
        assert named(shuffled, again) == named(slices, pairing)
        assert [p.name for p in path.parent.iterdir()] == ["pairs.json"]

    def test_changed_file(self, tmp_path):
        path = tmp_path / "pairs.json"
        draw_pairing(table(), seed=2).save(path)
        path.write_text(path.read_text().replace('"seed": 2', '"seed": 3'))
        with pytest.raises(DataError) as error:
            load_pairing(path, table())
        one_line(error.value, "E313", path, "SHA-256")

    def test_other_split_and_no_file(self, tmp_path):
        path = tmp_path / "pairs.json"
        draw_pairing(table()).save(path)
        with pytest.raises(DataError) as error:
            load_pairing(path, table(subjects=4))
        one_line(error.value, "E313", path)
        path.write_text("[]")
        for bad in (path, tmp_path / "none.json"):
            with pytest.raises(DataError) as error:
                load_pairing(bad, table())
            one_line(error.value, "E313", bad)

    def test_pairing_that_breaks_its_rule(self, tmp_path):
        from daasr_jax.data.pairs import _sha256

        path = tmp_path / "pairs.json"
        slices = table()
        draw_pairing(slices).save(path)
        content = json.loads(path.read_text())
        content["pairs"][0][1] = content["pairs"][1][0]  # the same volume
        del content["sha256"]
        content["sha256"] = _sha256(content)
        path.write_text(json.dumps(content))
        with pytest.raises(DataError) as error:
            load_pairing(path, slices)
        one_line(error.value, "E313", "rule excludes")
