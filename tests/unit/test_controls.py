"""Reference controls: their references, their measures, their report and picture."""

from __future__ import annotations

import io
import json
import math
from types import SimpleNamespace

import jax
import numpy as np
import optax
import pytest
from rich.console import Console

from daasr_jax.data import draw_pairing
from daasr_jax.data.corruption import add_noise
from daasr_jax.evaluation import controls as reference_controls
from daasr_jax.evaluation import controls_scores
from daasr_jax.evaluation.controls import (
    draw_controls,
    evenly_spaced,
    run_controls,
    shuffle_blocks,
)
from daasr_jax.evaluation.controls_panel import draw_controls_panel, window_of_tissue
from daasr_jax.evaluation.controls_report import (
    describe_controls,
    make_controls_report,
    make_controls_table,
)
from daasr_jax.evaluation.controls_scores import (
    BINS,
    calibrate,
    control_scores,
    identity_shares,
)
from daasr_jax.evaluation.predict import Prediction, make_predict, run_split
from daasr_jax.models.daasr import DAASR, PRESETS
from daasr_jax.registry import LOSSES
from daasr_jax.resampling import upsample
from daasr_jax.training.state import create_state
from daasr_jax.training.step import make_train_step
from tests.data_fixtures import table
from tests.unit.test_contract import randomise
from tests.unit.test_evaluation import slices


class TestReferences:
    def test_every_control_has_its_own(self):
        data = table()
        pairing = draw_pairing(data, seed=3)
        controls, left_out = draw_controls(data, pairing, scale=2)
        assert list(controls) == list(reference_controls.CONTROLS)
        assert left_out == {}
        assert {n: c.same_as for n, c in controls.items() if c.same_as} == {
            "stranger": "pair"
        }
        for i in range(len(data)):
            place = {
                n: c.images(i)[0][0, 0, 0] for n, c in controls.items() if c.images
            }
            found = {
                name: int(place[name]) for name in ("stranger", "neighbour", "contrast")
            }
            assert data.subjects[found["stranger"]] != data.subjects[i]
            assert data.volumes[found["neighbour"]] == data.volumes[i]
            assert abs(data.index[found["neighbour"]] - data.index[i]) == 1
            assert data.subjects[found["contrast"]] == data.subjects[i]
            assert data.contrasts[found["contrast"]] != data.contrasts[i]
            np.testing.assert_array_equal(controls["self"].images(i)[0], data.image(i))
            assert not controls["black"].images(i)[0].any()
            pair = data.image(int(pairing.references[i]))
            shuffled = controls["shuffled"].images(i)[0]
            assert (shuffled != pair).any()
            np.testing.assert_array_equal(np.sort(shuffled, None), np.sort(pair, None))
            noisy, again = (controls["noisy"].images(i)[0] for _ in range(2))
            np.testing.assert_array_equal(noisy, again)
            assert noisy.min() >= 0
            assert noisy.max() <= 1
            assert (noisy != pair).any()

    def test_noise_has_its_deviation(self):
        image = np.full((64, 64, 1), 0.5, np.float32)
        noise = add_noise(image, 0.1, np.random.default_rng(0)) - image
        assert np.std(noise) == pytest.approx(0.1, rel=0.05)
        assert abs(np.mean(noise)) < 0.01

    @pytest.mark.parametrize("aligned", ["neighbour", "contrast"])
    def test_the_track_of_the_run_is_the_pair(self, aligned):
        data = table()
        pairing = draw_pairing(data, track="aligned", aligned=aligned)
        controls, _ = draw_controls(data, pairing, scale=2)
        same = {name for name, c in controls.items() if c.same_as == "pair"}
        assert same == {aligned}

    def test_what_the_data_cannot_give_is_left_out(self):
        data = table(subjects=1, contrasts=("T1",))
        pairing = draw_pairing(data, exclude="slice")
        controls, left_out = draw_controls(data, pairing, scale=2)
        assert list(controls) == [
            "pair", "neighbour", "shuffled", "noisy", "black", "self",
        ]  # fmt: skip
        assert left_out["stranger"] == "there is one subject"
        assert left_out["contrast"].startswith("not in these data")
        data = table(contrasts=("T1",), slices=1)
        _, left_out = draw_controls(data, draw_pairing(data), scale=2)
        assert set(left_out) == {"neighbour", "contrast"}
        assert left_out["neighbour"] == "a volume has one slice only"

    def test_blocks_keep_their_content(self):
        image = np.random.default_rng(0).random((14, 9, 1), np.float32)
        got = shuffle_blocks(image, 4, seed=1)
        np.testing.assert_array_equal(got, shuffle_blocks(image, 4, seed=1))
        assert (got != shuffle_blocks(image, 4, seed=2)).any()
        np.testing.assert_array_equal(got[12:], image[12:])
        np.testing.assert_array_equal(got[:, 8:], image[:, 8:])

        def blocks(x):
            parts = (x[i : i + 4, j : j + 4] for i in (0, 4, 8) for j in (0, 4))
            return sorted(part.tobytes() for part in parts)

        assert blocks(got) == blocks(image)
        assert (got != image).any()


class TestIdentity:
    LR = np.array([[0.0, 0.5, 0.5], [0.5, 0.5, 0.05]], np.float32)  # four of tissue

    def test_by_hand(self):
        own = np.arange(6).reshape(2, 3)
        other = own.copy()
        other[0, 1] = 2  # a place beside its own
        other[1, 0] = 5  # two places away
        other[0, 0] = 5  # background
        identity, near = identity_shares(np.stack([own, other], -1), self.LR)
        assert identity.tolist() == [1.0, 0.5]
        assert near.tolist() == [1.0, 0.75]

    def test_a_row_is_not_joined_to_the_next(self):
        own = np.arange(6).reshape(2, 3)
        own[1, 0] = 2  # index 3 less 1, but at the other end of the row above
        _, near = identity_shares(own[..., None], self.LR)
        assert near.tolist() == [0.75]

    def test_a_finer_grid_and_several_references(self):
        own = np.arange(4 * 6).reshape(4, 6)
        identity, _ = identity_shares((own + 2 * own.size)[..., None], self.LR)
        assert identity.tolist() == [1.0]
        moved = own.copy()
        moved[2:, :2] = 0  # the four queries of one LR pixel of four
        identity, _ = identity_shares(moved[..., None], self.LR)
        assert identity.tolist() == [0.75]

    def test_nothing_without_foreground(self):
        own = np.arange(6).reshape(2, 3, 1)
        for share in identity_shares(own, np.zeros((2, 3), np.float32)):
            assert np.isnan(share).all()


class TestCalibration:
    def case(self, side=10, cell=2):
        rng = np.random.default_rng(0)
        lr = np.ones((side, side), np.float32)
        error = np.kron(rng.random((side, side)), np.ones((cell, cell)))
        return lr, error, error[::cell, ::cell]

    def test_a_true_confidence(self):
        lr, error, of_cells = self.case()
        found = calibrate(1 - of_cells, error, np.full_like(error, 2.0), lr)
        assert found["rank_error"] == pytest.approx(-1)
        assert found["rank_gain"] == pytest.approx(1)
        bins = [found[f"error_{k}"] for k in range(BINS)]
        assert bins == sorted(bins, reverse=True)
        assert np.mean(bins) == pytest.approx(error.mean())
        for k in range(BINS):
            assert found[f"confidence_{k}"] == pytest.approx(1 - bins[k])
            assert found[f"gain_{k}"] == pytest.approx(2 - bins[k])

    def test_a_confidence_of_every_pixel(self):
        lr, error, _ = self.case()
        found = calibrate(1 - error, error, error, lr)
        assert found["rank_error"] == pytest.approx(-1)
        assert math.isnan(found["rank_gain"])  # no gain anywhere
        assert found["gain_3"] == 0

    def test_background_does_not_count(self):
        lr, error, of_cells = self.case()
        lr[:, 5:] = 0
        changed = of_cells.copy()
        changed[:, 5:] = 0.5
        a, b = (calibrate(1 - c, error, error, lr) for c in (of_cells, changed))
        assert a == pytest.approx(b, nan_ok=True)

    def test_nothing_where_there_is_nothing_to_compare(self):
        lr, error, of_cells = self.case()
        found = calibrate(np.ones_like(of_cells), error, error, lr)
        assert math.isnan(found["rank_error"])
        found = calibrate(1 - of_cells, error, error, lr * 0)
        assert all(math.isnan(x) for x in found.values())


def with_psnr(psnr, **scores):
    return Prediction(0, 0, 0.5, {}, {"daasr": {"psnr": psnr}, **scores})


def test_scores_of_validation():
    pair = [with_psnr(x) for x in (30.0, 32.0, math.inf)]
    none = [with_psnr(x) for x in (29.0, 30.0, 30.0)]
    answer = [
        with_psnr(40.0, identity={"2": share, "10": share / 2})
        for share in (0.2, 0.6, math.nan)
    ]
    assert control_scores(pair, none, answer, "daasr") == pytest.approx(
        {"gain_over_black": 1.5, "identity": 0.2}
    )
    pair[0] = with_psnr(math.nan)
    found = control_scores(pair, none, [with_psnr(40.0)] * 3, "daasr")
    assert list(found) == ["gain_over_black"]
    assert math.isnan(found["gain_over_black"])


def test_positions_are_spread():
    assert evenly_spaced(3, 8) == [0, 1, 2]
    assert evenly_spaced(15, 8) == [0, 2, 4, 6, 8, 10, 12, 14]
    assert len(set(evenly_spaced(9, 8))) == 8


def case(model, variables, data, *, used=True, method="daasr"):
    """Report, predictions of the first slice, and all rows, at x2."""
    pairing = draw_pairing(data, seed=0)
    predict = make_predict(model, scale=2, border=2, method=method)
    controls, left_out = draw_controls(data, pairing, scale=2, used=used)
    whole = list(run_controls(predict, variables, data, pairing, controls, scale=2))
    rows = [controls_scores.measured(found, method) for found in whole]
    report = make_controls_report(
        rows,
        data,
        pairing,
        controls,
        left_out,
        used=used,
        method=method,
        scale=2,
        border=2,
        resamples=200,
        seed=0,
        provenance={"dataset": "made"},
    )
    report = json.loads(json.dumps(report, allow_nan=False))
    return SimpleNamespace(
        report=report, whole=whole, rows=rows, predict=predict, pairing=pairing
    )


def printed(report):
    console = Console(width=80, file=io.StringIO())
    console.print(make_controls_table(report))
    return " ".join(console.file.getvalue().split())


@pytest.fixture(scope="module", params=[2, 6], ids=lambda n: f"{n} subjects")
def measured(request):
    """A network of random weights, none of them zero."""
    data = slices(n_subjects=request.param, n=2)
    model = DAASR(scale=2, features=8, groups=2, **PRESETS["fast"])
    variables = randomise(model, *(data.image(0)[None, ::k, ::k] for k in (2, 1)))
    return data, variables, case(model, variables, data)


class TestReport:
    def test_scores_are_those_of_each_reference(self, measured):
        data, variables, made = measured
        kinds = {"self": reference_controls.itself, "black": reference_controls.black}
        for name, make in kinds.items():
            images = make(data)
            alone = run_split(
                made.predict, variables, data, made.pairing, scale=2, images=images
            )
            for row, want in zip(made.rows, alone, strict=True):
                assert row.scores[name] == want.scores["daasr"]
        alone = run_split(made.predict, variables, data, made.pairing, scale=2)
        for row, want in zip(made.rows, alone, strict=True):
            assert row.scores["pair"] == row.scores["stranger"] == want.scores["daasr"]
            assert row.scores["bicubic"] == want.scores["bicubic"]

    def test_means_and_differences(self, measured):
        data, _, made = measured
        report, subjects = made.report, len(set(data.subjects))
        assert list(report["methods"]) == [
            *("bicubic", "pair", "stranger", "neighbour", "shuffled", "noisy"),
            *("black", "self"),
        ]  # fmt: skip
        assert report["left_out"] == {
            "contrast": "not in these data: a volume has no other contrast beside it"
        }
        assert report["references"]["stranger"]["same_as"] == "pair"
        assert report["uses_reference"]
        psnr = {
            name: np.array([r.scores[name]["psnr"] for r in made.rows])
            for name in report["methods"]
        }
        for name, values in psnr.items():
            got = report["methods"][name]["psnr"]
            assert got["mean"] == pytest.approx(values.mean())
            if name != "black":
                got = report["minus_black"][name]["psnr"]
                assert got["mean"] == pytest.approx((values - psnr["black"]).mean())
                assert (got["ci95"] is None) == (subjects < 6)
        assert list(report["identity"]["identity"]) == ["1", "2"]
        shares = [r.scores["identity"]["2"] for r in made.rows]
        got = report["identity"]["identity"]["2"]
        assert got["mean"] == pytest.approx(np.mean(shares))
        assert len(report["calibration"]["bins"]) == BINS
        assert len(report["per_slice"]) == len(data)
        assert set(report["per_subject"]["p1"]) == set(report["methods"])

    def test_table(self, measured):
        data, _, made = measured
        report = made.report
        text = printed(report)
        for name in report["methods"]:
            s = report["methods"][name]["psnr"]
            assert f"{s['mean']:.2f} ± {s['std']:.2f}" in text
        assert "NO RESULT" in text
        assert ("no interval below 6" in text) == (len(set(data.subjects)) < 6)
        lines = describe_controls(report)
        assert list(lines) == ["identity", "near", "confidence", "no contrast"]
        assert lines["identity"].count("%") == 2

    def test_picture(self, measured, tmp_path):
        _, _, made = measured
        path = tmp_path / "a b é.png"
        draw_controls_panel(made.whole[0], made.report, titles=("t", "r"), path=path)
        assert path.read_bytes()[:4] == b"\x89PNG"
        assert path.stat().st_size > 50_000


def without_reference(apply=lambda lr: 1.1 * upsample(lr, 2)):
    return SimpleNamespace(
        apply=lambda variables, lr, ref, *, train: SimpleNamespace(sr=apply(lr), aux={})
    )


@pytest.mark.parametrize("used", [False, True])
def test_a_network_without_reference_is_told_so(used, tmp_path):
    """Whether its graph tells it before, or only its outputs do."""
    model = without_reference()
    assert not reference_controls.uses_reference(model, {}, scale=2)
    made = case(model, {}, slices(n=2), used=used, method="edsr")
    report = made.report
    assert not report["uses_reference"]
    assert report["identity"] is report["calibration"] is None
    means = {m["psnr"]["mean"] for n, m in report["methods"].items() if n != "bicubic"}
    assert len(means) == 1
    text = printed(report)
    assert text.count("not used") == 6
    assert "NOT USED: edsr" in describe_controls(report)["reference"]
    path = tmp_path / "controls.png"
    draw_controls_panel(made.whole[0], report, titles=("t", "r"), path=path)
    assert path.read_bytes()[:4] == b"\x89PNG"


def test_the_window_follows_the_tissue():
    image = np.zeros((20, 30), np.float32)
    assert window_of_tissue(image) == (slice(5, 15), slice(8, 23))
    image[15:, 2:5] = 1.0
    assert window_of_tissue(image) == (slice(10, 20), slice(0, 15))


SIDE = 8  # of the LR images that are trained with


def textures(scale, count, *seed):
    """Images whose fine half no LR image tells, (count, scale SIDE, ..., 1)."""
    rng = np.random.default_rng(seed)
    coarse = rng.random((count, SIDE, SIDE, 1), np.float32)
    fine = rng.random((count, SIDE * scale, SIDE * scale, 1), np.float32)
    return 0.6 * np.asarray(upsample(coarse, scale)).clip(0, 1) + 0.4 * fine


def rolled(scale, images, *seed):
    """Each moved round by whole LR pixels."""
    rng = np.random.default_rng(seed)
    moves = scale * rng.integers(0, SIDE, (len(images), 2))
    moved = [np.roll(x, move, (0, 1)) for x, move in zip(images, moves, strict=True)]
    return np.stack(moved)


def trained_psnr(scale, reference):
    """PSNR of new textures by their reference, after 300 steps.

    Args:
        scale: s.
        reference: `(hr, step) -> ref` of a training batch.
    """
    model = DAASR(scale=scale, features=16, groups=1, **PRESETS["fast"])
    optimiser = optax.adam(2e-3)
    state = create_state(model, optimiser, scale=scale, crop=SIDE, seed=0, ema=False)
    losses = {"rec": (1.0, LOSSES.get("pixel.rec"))}
    step = jax.jit(make_train_step(model, optimiser, losses, scale=scale))
    for i in range(300):
        hr = textures(scale, 8, 1, i)
        state, _ = step(state, {"hr": hr, "ref": reference(hr, i)})
    variables = {"params": state.gen, "batch_stats": state.batch_stats}
    predict = make_predict(model, scale=scale, border=scale, method="daasr")
    hr = textures(scale, 16, 2)
    references = {
        "self": hr,
        "rolled": rolled(scale, hr, 3),
        "stranger": textures(scale, 16, 4),
        "black": np.zeros_like(hr),
    }
    scores = {name: predict(variables, hr, ref)[1] for name, ref in references.items()}
    return {name: float(np.mean(s["daasr"]["psnr"])) for name, s in scores.items()}


@pytest.mark.full
@pytest.mark.parametrize("scale", [2, 4])
def test_a_reference_that_has_the_answer_is_used(scale):
    found = trained_psnr(scale, lambda hr, i: rolled(scale, hr, 5, i))
    print(found)
    assert found["self"] - found["black"] > 1.0
    assert found["rolled"] - found["black"] > 1.0


@pytest.mark.full
@pytest.mark.parametrize("scale", [2, 4])
def test_references_without_the_answer_do_no_harm(scale):
    found = trained_psnr(scale, lambda hr, i: textures(scale, len(hr), 6, i))
    print(found)
    assert found["stranger"] - found["black"] > -0.1
