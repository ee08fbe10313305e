"""Evaluation of a split, its statistics, its report and its picture."""

from __future__ import annotations

import dataclasses
import importlib
import io
import json
import math
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from rich.console import Console

from daasr_jax.data import draw_pairing
from daasr_jax.data.table import SliceRecord, SliceTable
from daasr_jax.errors import ConfigError
from daasr_jax.evaluation import predict as evaluation
from daasr_jax.evaluation.panel import draw_panel, typical
from daasr_jax.evaluation.report import make_report, make_table
from daasr_jax.evaluation.statistics import compared, finite_mean, summary
from daasr_jax.evaluation.words import describe_training, reference_words
from daasr_jax.experiment import evaluate, opening
from daasr_jax.experiment.record import record_config
from daasr_jax.metrics.lpips import lpips
from daasr_jax.models.daasr import DAASR, PRESETS
from daasr_jax.models.outputs import Outputs
from daasr_jax.resampling import degrade, downsample, replace_centre, upsample
from daasr_jax.runtime import devices
from daasr_jax.weights.lpips import load_lpips


def subjects_of(count, each=1):
    return [f"s{i}" for i in range(count) for _ in range(each)]


class TestStatistics:
    def test_by_hand(self):
        got = summary([1.0, 2.0, 3.0], ["a", "a", "b"])
        assert got == {
            "mean": 2.0, "std": 1.0, "ci95": None, "n": 3, "n_nonfinite": 0,
        }  # fmt: skip
        assert summary([5.0], ["a"])["std"] == 0.0

    def test_below_six_subjects_there_is_no_interval(self):
        values = np.arange(60.0)
        assert summary(values[:50], subjects_of(5, 10))["ci95"] is None
        assert summary(values, subjects_of(6, 10))["ci95"] is not None

    def test_large_sample_is_the_normal_interval(self):
        x = np.random.default_rng(0).normal(30, 2, 400)
        low, high = summary(x, subjects_of(400))["ci95"]
        half = 1.96 * x.std(ddof=1) / 20
        assert low == pytest.approx(x.mean() - half, abs=0.02)
        assert high == pytest.approx(x.mean() + half, abs=0.02)

    def test_subjects_are_resampled_whole(self):
        values = np.repeat(np.arange(10.0), 50)  # slices of a subject are alike
        low, high = summary(values, subjects_of(10, 50))["ci95"]
        # t(0.975, 9) = 2.26 times 3.03 / sqrt(10), on both sides; over slices 0.5
        assert high - low == pytest.approx(2 * 2.26 * 3.03 / 10**0.5, rel=0.05)

    def test_seeds_are_resampled_too(self):
        subjects, seeds = subjects_of(8) * 3, [i for i in range(3) for _ in range(8)]
        values = [float(seed) for seed in seeds]  # subjects agree, seeds do not
        assert summary(values, subjects)["ci95"] == [1.0, 1.0]
        low, high = summary(values, subjects, seeds=seeds)["ci95"]
        assert (low, high) == (0.0, 2.0)

    @pytest.mark.parametrize("count", [6, 9, 20])
    def test_intervals_cover(self, count):
        """Of 400 studies with subjects that differ, 95 % hold the truth."""
        rng = np.random.default_rng(count)
        subjects, held = subjects_of(count, 20), 0
        for study in range(400):
            means = rng.normal(30, 1, count)
            values = np.repeat(means, 20) + rng.normal(0, 0.7, 20 * count)
            low, high = summary(values, subjects, resamples=1000, seed=study)["ci95"]
            held += low <= 30 <= high
        print(f"{count} subjects: {held / 4:.1f} % of 400 intervals hold the truth")
        assert held / 400 > {6: 0.89, 9: 0.91, 20: 0.93}[count]

    def test_repeats(self):
        x = np.random.default_rng(1).random(30).tolist()
        a, b = (summary(x, subjects_of(30), seed=s) for s in (3, 3))
        assert a == b
        assert a["ci95"] != summary(x, subjects_of(30), seed=4)["ci95"]

    @pytest.mark.parametrize("bad", [math.nan, -math.inf, math.inf])
    def test_one_value_that_is_not_finite_makes_the_mean_so(self, bad):
        got = summary([1.0, bad, 3.0], ["a", "b", "c"])
        assert (got["mean"], got["std"], got["ci95"]) == (None, None, None)
        assert (got["n"], got["n_nonfinite"]) == (3, 1)
        assert finite_mean([bad, 2.0]) is None
        assert finite_mean([]) is None
        assert finite_mean([1.0, 2.0]) == 1.5

    def test_identical_images_are_left_out_for_all(self):
        scores = {"a": [1.0, math.inf, 3.0, math.nan], "b": [math.inf, 1.0, 2.0, 3.0]}
        assert compared(scores).tolist() == [False, False, True, True]


def slices(n_subjects=2, n=3, size=32):
    """A table of smooth random images."""
    records = [
        SliceRecord(f"p{s}/T2", f"p{s}", "T2", "", i, n)
        for s in range(n_subjects)
        for i in range(n)
    ]
    rng = np.random.default_rng(0)
    coarse = rng.random((len(records), 8, 8, 1), np.float32)
    images = np.asarray(upsample(coarse, size // 8)).clip(0, 1)
    images = images + 0.1 * rng.random(images.shape, np.float32)
    return SliceTable("test", records, size, lambda i: images[i])


def prepared(scale, size=32, **fields):
    table = slices(size=size)
    pairing = draw_pairing(table, seed=0)
    model = DAASR(scale=scale, features=8, groups=1, **{**PRESETS["fast"], **fields})
    side = size // scale
    lr, ref = np.zeros((1, side, side, 1)), np.zeros((1, side * scale, side * scale, 1))
    variables = jax.jit(lambda k: model.init(k, lr, ref, train=False))(
        jax.random.key(0)
    )
    predict = evaluation.make_predict(model, scale=scale, border=scale, method="daasr")
    return table, pairing, predict, variables


@pytest.fixture(scope="module")
def full():
    table, pairing, predict, variables = prepared(2)
    rows = list(evaluation.run_split(predict, variables, table, pairing, scale=2))
    return table, pairing, predict, variables, rows


def test_every_slice_once_on_several_devices(full):
    table, pairing, _, variables, rows = full
    count = 4
    assert len(rows) % count  # the end is uneven
    mesh = devices.make_mesh(count, count)
    model = DAASR(scale=2, features=8, groups=1, **PRESETS["fast"])
    predict = evaluation.make_predict(
        model, scale=2, border=2, method="daasr", mesh=mesh
    )
    shared = list(evaluation.run_split(predict, variables, table, pairing, scale=2))
    assert [r.position for r in shared] == list(range(len(table)))
    for got, want in zip(shared, rows, strict=True):
        assert (got.reference, got.signal) == (want.reference, want.signal)
        np.testing.assert_allclose(got.images["sr"], want.images["sr"], atol=1e-6)
        for method, scores in want.scores.items():
            assert got.scores[method] == pytest.approx(scores, abs=1e-4)


def report_of(table, pairing, rows, method="daasr", **given):
    return make_report(
        rows,
        table,
        pairing,
        method=method,
        scale=2,
        border=2,
        resamples=100,
        seed=0,
        provenance={"dataset": "d", "config_sha256": "c", "commit": "x"},
        **given,
    )


class TestSplit:
    def test_every_slice_once_with_its_fixed_reference(self, full):
        table, pairing, _, _, rows = full
        assert [r.position for r in rows] == list(range(len(table)))
        assert [r.reference for r in rows] == list(pairing.references)
        for r in rows:
            assert table.subjects[r.position] != table.subjects[r.reference]
            np.testing.assert_array_equal(
                r.images["hr"], table.image(r.position)[..., 0]
            )
            np.testing.assert_array_equal(
                r.images["ref"], table.image(r.reference)[..., 0]
            )

    def test_untrained_network_scores_exactly_bicubic(self, full):
        for r in full[4]:
            np.testing.assert_array_equal(r.images["sr"], r.images["bicubic"])
            assert r.scores["daasr"] == r.scores["bicubic"]
        gain = evaluation.mean_scores(iter(full[4]), "daasr")["gain_over_bicubic"]
        assert gain == 0.0

    def test_border_is_cut(self, full):
        table, rows = full[0], full[4]
        hr = table.image(1)[None]
        image = np.asarray(upsample(downsample(hr, 2), 2))
        error = (image - hr)[0, 2:-2, 2:-2]
        want = -10 * np.log10(np.mean(error.astype(np.float64) ** 2))
        assert rows[1].scores["bicubic"]["psnr"] == pytest.approx(want, abs=1e-4)

    def test_same_values_again(self, full):
        table, pairing, predict, variables, rows = full
        again = evaluation.run_split(
            predict, variables, table, pairing, scale=2, positions=[3, 1]
        )
        got = list(again)
        assert [r.position for r in got] == [3, 1]
        assert [r.scores for r in got] == [rows[3].scores, rows[1].scores]

    def test_consistency_is_that_of_the_whole_image(self, full):
        for row in full[4]:
            back = downsample(row.images["sr"][None, ..., None], 2)[0, ..., 0]
            want = -10 * np.log10(np.mean((back - row.images["lr"]) ** 2))
            assert row.scores["daasr"]["consistency"] == pytest.approx(want, abs=1e-3)

    def test_degradation_is_a_choice(self, full):
        """LR, what stands beside it and the words all follow."""
        table, pairing, _, _, rows = full

        def apply(variables, lr, ref, *, train):
            return SimpleNamespace(sr=replace_centre(upsample(lr, 2), lr, 2), aux={})

        predict = evaluation.make_predict(
            SimpleNamespace(apply=apply),
            scale=2,
            border=2,
            method="daasr",
            degradation="kspace",
        )
        own = list(evaluation.run_split(predict, {}, table, pairing, scale=2))
        for row in own:
            hr = row.images["hr"][None, ..., None]
            lr = degrade(hr, 2, degradation="kspace")
            np.testing.assert_allclose(row.images["lr"], lr[0, ..., 0], atol=1e-6)
            want = upsample(lr, 2)[0, ..., 0]
            np.testing.assert_allclose(row.images["bicubic"], want, atol=1e-6)
            assert 110 < row.scores["daasr"]["consistency"] <= 140
            assert row.scores["bicubic"]["consistency"] < 60
        report = report_of(table, pairing, own, degradation="kspace")
        json.dumps(report, allow_nan=False)
        assert report["methods"]["daasr"]["consistency"]["n"] == len(own)
        words = "k-space centre crop x2"
        assert report["protocol"]["degradation"] == words
        assert f"LR by {words}" in printed(report, 80)
        assert "LR by bicubic (Keys" in printed(report_of(table, pairing, rows), 80)

    def test_report(self, full):
        table, pairing, _, _, rows = full
        report = json.loads(
            json.dumps(report_of(table, pairing, rows), allow_nan=False)
        )
        assert report["n_slices"] == 6
        assert report["n_subjects"] == 2
        assert report["pairing_sha256"] == pairing.sha256
        assert [r["slice"] for r in report["per_slice"]] == table.keys
        assert set(report["per_subject"]) == {"p0", "p1"}
        for name in ("bicubic", "daasr"):
            for metric in evaluation.METRICS:
                values = [r[name][metric] for r in report["per_slice"]]
                got = report["methods"][name][metric]
                assert got["mean"] == pytest.approx(np.mean(values))
                assert got["std"] == pytest.approx(np.std(values, ddof=1))
                assert got["ci95"] is None  # of two subjects
                assert report["per_subject"]["p1"][name][metric] == pytest.approx(
                    np.mean(values[3:])
                )
        assert report["daasr_minus_bicubic"]["psnr"]["mean"] == 0.0
        assert report["protocol"]["border"] == 2
        assert make_table(report).row_count == 2 + 2 * 2  # and those of each subject
        assert "p1" in printed(report, 80)

    @pytest.mark.parametrize("perfect", ["daasr", "bicubic"])
    def test_an_identical_slice_is_left_out_for_both(self, full, perfect):
        table, pairing, _, _, rows = full
        report = report_of(
            table, pairing, [with_psnr(rows[0], perfect, math.inf), *rows[1:]]
        )
        json.dumps(report, allow_nan=False)
        rest = np.mean([r.scores["bicubic"]["psnr"] for r in rows[1:]])
        for name in ("bicubic", "daasr"):
            got = report["methods"][name]["psnr"]
            assert got["mean"] == pytest.approx(rest)
            assert (got["n"], got["n_identical"], got["n_nonfinite"]) == (5, 1, 0)
            assert report["methods"][name]["ssim"]["n"] == 6
        assert report["daasr_minus_bicubic"]["psnr"]["mean"] == 0.0
        assert report["per_slice"][0][perfect]["psnr"] is None
        text = " ".join(printed(report, 90).split())
        assert "5 of 6" in text
        assert "1 slice(s) of infinite PSNR left out for all methods" in text

    def test_a_nan_is_never_averaged_away(self, full):
        table, pairing, _, _, rows = full
        changed = [with_psnr(r, "daasr", math.nan) for r in rows[:2]] + rows[2:]
        report = report_of(table, pairing, changed)
        json.dumps(report, allow_nan=False)
        got = report["methods"]["daasr"]["psnr"]
        assert (got["mean"], got["n_nonfinite"]) == (None, 2)
        assert report["methods"]["bicubic"]["psnr"]["mean"] > 0
        assert report["daasr_minus_bicubic"]["psnr"]["mean"] is None
        assert report["per_subject"]["p0"]["daasr"]["psnr"] is None
        assert report["per_subject"]["p1"]["daasr"]["psnr"] > 0
        text = printed(report, 80)
        assert "not finite" in text
        assert "2 of 6 slices" in text
        scores = evaluation.mean_scores(changed, "daasr")
        assert math.isnan(scores["psnr"])
        assert math.isnan(scores["gain_over_bicubic"])

    def test_validation_leaves_identical_slices_out(self, full):
        rows = full[4]
        changed = [with_psnr(rows[0], "bicubic", math.inf), *rows[1:]]
        scores = evaluation.mean_scores(changed, "daasr")
        assert scores["gain_over_bicubic"] == 0.0
        rest = np.mean([r.scores["daasr"]["psnr"] for r in rows[1:]])
        assert scores["psnr"] == pytest.approx(rest)


def with_psnr(row, method, value):
    scores = {
        k: {**v, "psnr": value} if k == method else v for k, v in row.scores.items()
    }
    return dataclasses.replace(row, scores=scores)


def printed(report, width):
    console = Console(width=width, file=io.StringIO())
    console.print(make_table(report))
    return console.file.getvalue()


class TestLpips:
    @pytest.fixture(scope="class")
    def measured(self):
        """A model that is brighter than its input; 40 pixels less 2 at each side."""

        def apply(variables, lr, ref, *, train):
            sr = 1.2 * upsample(lr, 2) + variables["offset"].reshape(1, 1, 1, 1)
            return SimpleNamespace(sr=sr, aux={})

        nets = {net: load_lpips(net) for net in ("alex", "vgg")}
        table = slices(size=40)
        pairing = draw_pairing(table, seed=0)

        def rows(**kwargs):
            predict = evaluation.make_predict(
                SimpleNamespace(apply=apply),
                scale=2,
                border=2,
                method="daasr",
                **kwargs,
            )
            offset = {"offset": np.full(1, 0.05, np.float32)}
            return list(
                evaluation.run_split(
                    predict, offset, table, pairing, scale=2, positions=[1, 4]
                )
            )

        return table, pairing, nets, rows(lpips=nets), rows()

    @pytest.mark.parametrize("net", ["alex", "vgg"])
    def test_is_lpips_of_the_cut_images(self, measured, net):
        _, _, nets, rows, _ = measured

        def cut(name):
            x = np.stack([r.images[name][2:-2, 2:-2, None] for r in rows])
            return 2 * x - 1

        distance = jax.jit(lambda x, y, variables: lpips(x, y, variables, net=net))
        assert cut("sr").max() > 1  # not clipped
        for method, image in (("bicubic", "bicubic"), ("daasr", "sr")):
            got = [r.scores[method][f"lpips_{net}"] for r in rows]
            want = distance(cut(image), cut("hr"), nets[net])
            np.testing.assert_allclose(got, want, rtol=1e-5)
            assert min(got) > 0.01

    def test_other_scores_stay(self, measured):
        *_, rows, plain = measured
        for r, p in zip(rows, plain, strict=True):
            for method, scores in p.scores.items():
                assert set(scores) == set(evaluation.METRICS)
                got = {m: r.scores[method][m] for m in scores}
                assert got == pytest.approx(scores, rel=1e-6)

    def test_report(self, measured):
        table, pairing, _, rows, plain = measured
        report = json.loads(json.dumps(report_of(table, pairing, rows)))
        names = [*evaluation.METRICS, "lpips_alex", "lpips_vgg"]
        for scores in report["methods"].values():
            assert list(scores) == names
        for part in (
            report["daasr_minus_bicubic"],
            report["per_subject"]["p0"]["daasr"],
        ):
            assert list(part) == names
        assert set(report["per_slice"][0]["bicubic"]) == set(names)
        means = {
            m: report["methods"][m]["lpips_vgg"]["mean"] for m in report["methods"]
        }
        assert report["daasr_minus_bicubic"]["lpips_vgg"]["mean"] == pytest.approx(
            means["daasr"] - means["bicubic"]
        )
        assert "2x - 1, not clipped" in report["protocol"]["lpips"]
        without = report_of(table, pairing, plain)
        assert "lpips" not in json.dumps(without)

    def test_table(self, measured):
        table, pairing, _, rows, plain = measured
        text = printed(report_of(table, pairing, rows), 120)
        assert "…" not in text
        assert text.count("lower is better") == 2
        for row in report_of(table, pairing, rows)["methods"].values():
            for net in ("alex", "vgg"):
                assert f"{row[f'lpips_{net}']['mean']:.4f} ± " in text
        text = printed(report_of(table, pairing, plain), 80)
        header = text.splitlines()[3]
        assert [c.strip() for c in header.strip("┃").split("┃")] == [
            "method", "PSNR (dB)", "SSIM", "SSIM 7x7", "(dB)", "n",
        ]  # fmt: skip

    @pytest.mark.parametrize(("size", "border", "side"), [(40, 5, 30), (32, -1, 24)])
    def test_slices_too_small_are_refused_first(self, tmp_path, size, border, side):
        config = importlib.import_module("configs.brain_x4_small").get_config()
        config.update_from_flattened_dict(
            {"data.size": size, "evaluate.border": border, "data.root": str(tmp_path)}
        )
        inputs = {"prepared_sha256": "x", "perceptual": {}, "start": None}
        record_config(config.to_dict(), tmp_path, inputs)
        with pytest.raises(ConfigError, match=f"{side} pixels a side") as caught:
            evaluate.evaluate_run(str(tmp_path), opening.EvaluationRequest(lpips=True))
        assert caught.value.code == "E231"
        assert "\n" not in str(caught.value)


class TestPanel:
    def test_with_reference(self, full, tmp_path):
        rows = full[4]
        chosen = typical([evaluation.without_images(r) for r in rows], "daasr")
        assert chosen.position in range(6)
        shown = rows[chosen.position]
        assert shown.images["index"].shape == (16, 16)
        assert shown.images["confidence"].shape == (16, 16)
        path = tmp_path / "a b é.png"
        draw_panel(shown, method="daasr", scale=2, titles=("t", "r"), path=path)
        assert path.read_bytes()[:4] == b"\x89PNG"
        assert path.stat().st_size > 20_000

    def test_without_reference(self, tmp_path):
        table, pairing, predict, variables = prepared(2, align=None, detail=None)
        shown = next(evaluation.run_split(predict, variables, table, pairing, scale=2))
        assert "index" not in shown.images
        path = tmp_path / "panel.png"
        draw_panel(shown, method="daasr", scale=2, titles=("t", "r"), path=path)
        assert path.read_bytes()[:4] == b"\x89PNG"

    def test_typical_is_the_median_of_the_bright_half(self):
        rows = [
            evaluation.Prediction(i, 0, signal, {}, {"daasr": {"psnr": psnr}})
            for i, (signal, psnr) in enumerate(
                [
                    (0.0, 90.0),
                    (0.1, 80.0),
                    (0.2, 70.0),
                    (0.5, 30.0),
                    (0.6, 20.0),
                    (0.7, 25.0),
                ]
            )
        ]
        assert typical(rows, "daasr").position == 5


def test_scale_three_uses_255_of_256_pixels():
    table = slices(size=256)
    pairing = draw_pairing(table, seed=0)
    seen = []

    def predict(variables, hr, ref):
        seen.append((hr.shape, ref.shape))
        return {"hr": hr}, {"bicubic": {"psnr": np.zeros(1)}}

    predict = evaluation.Predict(predict, 1)
    row = next(evaluation.run_split(predict, {}, table, pairing, scale=3))
    assert seen == [((1, 255, 255, 1), (1, 255, 255, 1))]
    np.testing.assert_array_equal(row.images["hr"], table.image(0)[:255, :255, 0])
    assert downsample(table.image(0)[None, :255, :255], 3).shape == (1, 85, 85, 1)


class TestSeveralReferences:
    """The model is given all references of a slice, the panel shows all."""

    def predicted(self, count, mesh=None):
        table = slices(n_subjects=3)
        pairing = draw_pairing(table, seed=0, count=count)
        predict = evaluation.make_predict(
            Brightest(), scale=2, border=2, method="brightest", mesh=mesh
        )
        rows = list(evaluation.run_split(predict, {}, table, pairing, scale=2))
        return table, pairing, rows

    def test_all_reach_the_model(self):
        table, pairing, rows = self.predicted(3)
        for row in rows:
            refs = [table.image(k)[..., 0] for k in pairing.all_of(row.position)]
            assert len(refs) == 3
            np.testing.assert_array_equal(row.images["sr"], np.max(refs, axis=0))
            np.testing.assert_array_equal(row.images["ref"], np.concatenate(refs))
            assert row.reference == pairing.all_of(row.position)[0]

    def test_report_and_panel(self, tmp_path):
        table, pairing, rows = self.predicted(3)
        report = report_of(table, pairing, rows, method="brightest")
        assert report["protocol"]["count"] == 3
        first = report["per_slice"][0]
        names = [first["reference"], *first["further_references"]]
        assert names == [table.keys[k] for k in pairing.all_of(0)]
        assert "3 random references" in printed(report, 80)
        path = tmp_path / "panel.png"
        draw_panel(rows[0], method="brightest", scale=2, titles=("t", "r"), path=path)
        assert path.read_bytes()[:4] == b"\x89PNG"

    def test_on_several_devices(self):
        _, _, one = self.predicted(2)
        _, _, two = self.predicted(2, devices.make_mesh(2, 2))
        for a, b in zip(one, two, strict=True):
            np.testing.assert_array_equal(a.images["ref"], b.images["ref"])
            assert a.scores["brightest"]["psnr"] == pytest.approx(
                b.scores["brightest"]["psnr"]
            )


class Brightest:
    def apply(self, variables, lr, ref, *, train):
        del variables, lr, train
        return Outputs(sr=ref.max(axis=1), aux={})


@pytest.mark.parametrize(
    ("rule", "spacing", "words"),
    [
        ({}, 4.0, "random reference"),
        ({"track": "aligned"}, 4.0, "aligned reference (neighbour, 4.0 mm)"),
        ({"track": "aligned"}, math.nan, "aligned reference (neighbour)"),
    ],
)
def test_the_title_says_how_far_neighbours_are(full, rule, spacing, words):
    table, rows = slices(), full[4]
    table.spacing = np.full(len(table), spacing)
    report = report_of(table, draw_pairing(table, **rule), rows)
    assert reference_words(report["protocol"]) == words
    known = bool(rule) and math.isfinite(spacing)
    assert report["protocol"]["distance_mm"] == (4.0 if known else None)


TRAINED = {
    "perceptual": {"network": "none"},
    "adversarial": {"objective": "none"},
}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, "perceptual term off; adversarial term off"),
        (
            {"perceptual": {"network": "vgg16", "source": "a", "stands_in_for": "b"}},
            "perceptual term by a, which STANDS IN for b; adversarial term off",
        ),
        (
            {
                "perceptual": {"network": "vgg19", "source": "a"},
                "adversarial": {"objective": "bce"},
            },
            "perceptual term by a; adversarial term bce",
        ),
        (
            {"batch": {"images": 9, "rates_times": 1.0}},
            "perceptual term off; adversarial term off",
        ),
        (
            {"batch": {"images": 72, "rates_times": 8.0}},
            "perceptual term off; adversarial term off; batch 72, rates times 8",
        ),
    ],
)
def test_what_a_run_was_trained_with_is_said(changes, said):
    assert describe_training({"training": TRAINED | changes}) == said


def test_unknown_training_is_said():
    assert describe_training({"training": {}}).startswith("unknown")


def test_converted_weights_are_said_until_they_are_trained_on():
    start = {"converted": "net.pth", "sha256": "0123456789abcdef"}
    report = {"training": TRAINED | {"start": start}, "checkpoint_step": 0}
    assert describe_training(report) == "elsewhere: net.pth, sha256 0123456789ab"
    report["checkpoint_step"] = 10
    assert describe_training(report).startswith("perceptual term off")
