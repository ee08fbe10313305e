"""The paper's tables: plan, statistics, text, page."""

from __future__ import annotations

import copy
import csv
import dataclasses
import io
import json
import re
import shutil
import subprocess

import numpy as np
import pytest
from scipy import stats

from configs.ablation_x4 import ROWS as ABLATIONS
from daasr_jax.evaluation.statistics import summary
from daasr_jax.evaluation.tables import budgets, cells, comparison, page, paper, text
from daasr_jax.evaluation.tables.paired import holm, sign_flip_test
from daasr_jax.evaluation.tables.pictures import box_of, curves, zoomed
from daasr_jax.experiment.configuration import load
from daasr_jax.experiment.reproduce_tables import _beside_equal_time

SMOKE = budgets.budget("smoke", gpu=False)


class TestPlan:
    def test_table_1(self):
        plan = cells.plan_tables(["table_1"], SMOKE)
        # Four networks without reference and the one without SAT are trained once.
        guided = [k for _, k in plan.rows["table_1"] if cells.ROWS[k].guided]
        assert len(guided) == 6
        assert len(plan.cells) == 3 * (5 + 3 * 6)
        assert len(set(plan.cells)) == len(plan.cells)
        assert len(plan.trials) == 3 * 11 * 3

    def test_every_network_has_as_many_trials(self):
        plan = cells.plan_tables(list(cells.PARTS), SMOKE)
        found = {}
        for trial in plan.trials:
            found.setdefault((trial.row, trial.scale), set()).add(trial.rate)
        assert {frozenset(rates) for rates in found.values()} == {
            frozenset(SMOKE.rates)
        }
        for cell in plan.cells:
            assert len(plan.needed(cell, "small")) == 3

    def test_every_ablation_of_the_paper_is_a_row(self):
        plan = cells.plan_tables([p for p in cells.PARTS if p != "table_1"], SMOKE)
        names = {x for p in cells.PARTS.values() for x in p.rows}
        assert set(ABLATIONS) <= names | {"full"} | {"crop_40"}
        for cell in plan.cells:
            assert load(cells.ROWS[cell.row].small).preset

    def test_tables_share_cells(self):
        one = cells.plan_tables(["table_2", "table_3", "figure_6"], SMOKE, scales=[4])
        rows = [c.row for c in one.cells]
        assert rows.count("daasr_fast") == 1
        assert rows.count("without_matching") == 1

    def test_selection(self):
        plan = cells.plan_tables(
            ["table_1"], SMOKE, only=["daasr", "hat"], scales=[4], tracks=["neighbour"],
            seeds=2,
        )  # fmt: skip
        assert [c.name for c in plan.cells] == [
            "cells/hat-x4-any-seed0-equal_steps",
            "cells/daasr_fast-x4-neighbour-seed0-equal_steps",
            "cells/hat-x4-any-seed1-equal_steps",
            "cells/daasr_fast-x4-neighbour-seed1-equal_steps",
        ]

    def test_rates_are_chosen_on_the_first_track(self):
        plan = cells.plan_tables(
            ["table_1", "table_2"], SMOKE, only=["daasr", "hat", "without_cwt"],
            scales=[4], tracks=["contrast", "neighbour"],
        )  # fmt: skip
        assert plan.tracks["table_2"] == ("neighbour",)
        assert {(t.row, t.track) for t in plan.trials} == {
            ("hat", cells.NO_TRACK), ("daasr_fast", "neighbour")
        }  # fmt: skip
        names = [t.name for t in plan.trials]
        assert "trials/hat-x4-rate0.001" in names
        assert "trials/daasr_fast-x4-neighbour-rate0.001" in names

    def test_short_has_equal_time_and_equal_steps(self):
        short = budgets.budget("short", gpu=True, minutes=3)
        assert short.size == "published"
        plan = cells.plan_tables(["table_2"], short, scales=[4])
        assert {c.match for c in plan.cells} == {"time", "steps"}
        # An ablation has a trial of its own for its speed alone.
        own = [t for t in plan.trials if t.row == "without_cwt"]
        assert [(t.rate, t.speed) for t in own] == [(short.rates[1], True)]

    def test_paper_is_the_recipe(self):
        made = budgets.budget("paper", gpu=False)
        assert (made.size, made.epochs, made.steps) == ("published", 200, 0)
        assert 2e-4 in made.rates


class TestPairedTest:
    @pytest.mark.parametrize("n", [2, 6, 11])
    def test_against_scipy(self, n):
        x = np.random.default_rng(n).normal(0.3, 1, n)
        theirs = stats.permutation_test(
            (x,), np.mean, permutation_type="samples", n_resamples=np.inf
        )
        assert sign_flip_test(x) == pytest.approx(theirs.pvalue, abs=1e-12)

    def test_many_subjects_are_drawn(self):
        x = np.random.default_rng(1).normal(0.35, 1, 30)
        theirs = stats.permutation_test(
            (x,), np.mean, permutation_type="samples", n_resamples=100_000,
            rng=np.random.default_rng(5),
        )  # fmt: skip
        assert sign_flip_test(x) == pytest.approx(theirs.pvalue, abs=0.005)

    def test_smallest(self):
        assert sign_flip_test(np.arange(1.0, 7)) == 2 / 64
        assert sign_flip_test(np.zeros(5)) == 1
        assert np.isnan(sign_flip_test([1.0, np.nan]))

    def test_it_keeps_its_level(self):
        rng = np.random.default_rng(0)
        p = [sign_flip_test(rng.normal(size=8)) for _ in range(400)]
        assert np.mean(np.array(p) <= 0.05) < 0.08

    def test_holm(self):
        np.testing.assert_allclose(
            holm([0.01, 0.02, 0.03, 0.005]), [0.03, 0.04, 0.04, 0.02]
        )
        assert np.isnan(holm([0.2, np.nan])[1])
        assert holm([0.2, np.nan])[0] == 0.2
        assert holm([0.9, 0.8]).max() == 1


def measured(gain, *, subjects=7, slices=4, seed=0, noise=0.2, controls=True):
    """A run that is better than bicubic by `gain` dB, with noise of each slice."""
    rng = np.random.default_rng(9)
    level = np.repeat(rng.normal(30, 2, subjects), slices)
    own = level + gain + np.random.default_rng(seed).normal(0, noise, level.size)

    def scores(x):
        return {"psnr": x, "ssim": x / 50, "consistency": x + 10}

    names = {"bicubic": level, "pair": own}
    names |= {"black": own - 0.5, "self": own + 4} if controls else {}
    people = tuple(np.repeat([f"s{k}" for k in range(subjects)], slices).tolist())
    return comparison.Measured(
        tuple(f"v#{i}" for i in range(level.size)), people,
        {name: scores(x) for name, x in names.items()},
    )  # fmt: skip


class TestComparison:
    def test_means_and_differences(self):
        rows = {
            "bicubic": comparison.of_bicubic([[measured(2)]]),
            "daasr": [[measured(2, seed=i)] for i in range(3)],
            "hat": [[measured(1, seed=10 + i)] for i in range(3)],
            "none": [],
        }
        found = comparison.compare(rows, "daasr", resamples=2000)
        assert set(found) == {"bicubic", "daasr", "hat"}
        gap = found["hat"]["base_minus"]["psnr"]
        assert gap["mean"] == pytest.approx(1, abs=0.1)
        assert gap["ci95"][0] < 1 < gap["ci95"][1]
        assert found["hat"]["p"] == 2 / 2**7
        assert found["hat"]["p_holm"] == 4 / 2**7
        assert "base_minus" not in found["daasr"]
        assert found["daasr"]["self"]["psnr"]["mean"] == pytest.approx(
            found["daasr"]["pair"]["psnr"]["mean"] + 4
        )

    def test_interval_is_over_subjects_and_seeds(self):
        runs = [[measured(2, seed=i, noise=0), measured(2, seed=i, noise=0)]
                for i in range(2)]  # fmt: skip
        found = comparison.means(runs, "pair", "psnr", resamples=500)
        one = runs[0][0]
        values = np.tile(one.scores["pair"]["psnr"], 4)
        seeds = np.repeat([0, 1], len(values) // 2)
        same = summary(values, one.subjects * 4, seeds=seeds, resamples=500)
        assert found["ci95"] == same["ci95"]

    def test_few_subjects_have_no_interval(self):
        found = comparison.means([[measured(1, subjects=5)]], "pair", "psnr")
        assert found["ci95"] is None
        assert len(found["per_subject"]) == 5

    def test_interval_is_near_that_of_scipy(self):
        one = measured(1, subjects=24, slices=1, noise=0.5)
        found = comparison.means([[one]], "pair", "psnr")
        values, rng = one.scores["pair"]["psnr"], np.random.default_rng(0)
        theirs = stats.bootstrap((values,), np.mean, method="percentile", rng=rng)
        low, high = theirs.confidence_interval
        # Ours allows for the number of subjects: wider by t and sqrt(n / (n - 1)).
        wider = (found["ci95"][1] - found["ci95"][0]) / (high - low)
        assert 1.0 < wider < 1.15

    def test_equal_seeds_alone_are_compared(self):
        daasr = [[measured(2, seed=i)] for i in range(3)]
        hat = [[], [measured(1, seed=11)], []]  # of two seeds all files are gone
        rows = {"bicubic": comparison.of_bicubic(daasr), "daasr": daasr, "hat": hat}
        found = comparison.compare(rows, "daasr", resamples=50)
        gap = daasr[1][0].scores["pair"]["psnr"] - hat[1][0].scores["pair"]["psnr"]
        assert found["hat"]["base_minus"]["psnr"]["mean"] == pytest.approx(gap.mean())
        assert found["hat"]["seeds"] == 1
        assert found["bicubic"]["base_minus"]["psnr"]["n"] == 3 * len(gap)
        rows["daasr"] = [daasr[0], [], daasr[2]]
        found = comparison.compare(rows, "daasr", resamples=50)
        assert found["hat"]["base_minus"]["psnr"] is None
        assert "p" not in found["hat"]

    def test_values_that_are_not_finite_are_none(self):
        bad = measured(1)
        bad.scores["pair"]["psnr"][0] = np.nan
        rows = {"daasr": [[measured(2)]], "hat": [[bad]], "edsr": [[measured(1)]]}
        found = comparison.compare(rows, "daasr", resamples=50)
        json.dumps(found, allow_nan=False)
        assert found["hat"]["p"] is found["hat"]["p_holm"] is None
        assert found["hat"]["pair"]["psnr"]["per_subject"]["s0"] is None
        assert found["edsr"]["p"] == found["edsr"]["p_holm"]
        one = record()
        one["groups"][0]["rows"][1]["statistics"] = found["hat"]
        assert "| not finite |" in text.markdown(one)

    def test_subjects_are_in_the_order_of_their_numbers(self):
        one = measured(1, subjects=12)
        named = tuple(str(1 + int(s[1:])) for s in one.subjects)
        found = comparison.means(
            [[dataclasses.replace(one, subjects=named)]], "pair", "psnr", resamples=9
        )
        assert list(found["per_subject"]) == [str(k) for k in range(1, 13)]

    def test_rows_are_on_the_slices_of_the_guided_network(self):
        """Another contrast is there of the second of two subjects alone."""
        edsr = measured(1, subjects=2, slices=2)
        daasr = comparison.Measured(
            edsr.slices[2:], edsr.subjects[2:],
            {"pair": {"psnr": np.array([33.0, 34.0])},
             "bicubic": {"psnr": edsr.scores["bicubic"]["psnr"][2:]}},
        )  # fmt: skip
        other = dataclasses.replace(daasr, slices=edsr.slices[1:3])
        rows = {"edsr": [[edsr], []], "daasr": [[daasr]], "ttsr": [[other]],
                "srcnn": [[dataclasses.replace(edsr, slices=("x", "y", "v#2", "z"))]],
                "none": [[]]}  # fmt: skip
        found, others = comparison.on_equal_slices(rows, ["daasr", "ttsr"])
        assert others == ["ttsr", "srcnn"]
        (one,), none = found["edsr"]
        assert none == []
        assert (one.slices, one.subjects) == (daasr.slices, ("s1", "s1"))
        made = comparison.compare(found, "daasr", resamples=9)
        assert set(made) == {"edsr", "daasr"}
        own = edsr.scores["pair"]["psnr"][2:]
        assert made["edsr"]["pair"]["psnr"]["mean"] == own.mean()
        assert made["edsr"]["n_slices"] == made["daasr"]["n_slices"] == 2
        gap = made["edsr"]["base_minus"]["psnr"]
        assert gap["mean"] == pytest.approx(33.5 - own.mean())
        # Without a guided network they keep their slices.
        found, others = comparison.on_equal_slices({"edsr": [[edsr]]}, ["daasr"])
        assert found["edsr"][0][0].slices == edsr.slices
        assert others == []

    def test_slices_and_subjects_have_their_numbers_in_the_split(self):
        report = {
            "prepared_sha256": "p", "split": "test", "places": [5, 7],
            "people": [3, 3], "methods": {"bicubic": {}, "sr": {}},
            "per_slice": [{"subject": "a"}, {"subject": "a"}],
        }  # fmt: skip
        found = comparison.measured_of(report, "sr")
        assert found.slices == ("p/test/5", "p/test/7")
        assert found.subjects == ("3", "3")

    def test_other_slices_are_not_compared(self):
        other = measured(1, slices=3)
        assert (
            comparison.means([[measured(2)]], "pair", "psnr", minus=[[other]]) is None
        )


def record(part="table_2", status="done"):
    rows = {
        "bicubic": comparison.of_bicubic([[measured(2)]]),
        "without_sat": [[measured(1)]],
        "daasr_fast": [[measured(2, seed=3)]],
    }
    found = comparison.compare(rows, "daasr_fast", resamples=200)
    lines = [
        {
            "label": key, "row": key, "status": status, "statistics": found.get(key),
            "paper": paper.beside(part, key, 4, full="daasr_fast"),
            "curves": [[[10, 25.0], [20, 26.0 + i]]], "parameters": 12345,
            "images_per_second": 3.2, "steps": 20, "minutes": 1.5,
            "learning_rate": 1e-3, "peak_mib": 900.0, "trials": {"0.001": 30.0},
        }
        for i, key in enumerate([*rows, "without_cwt"])
    ]  # fmt: skip
    group = {"scale": 4, "track": "random", "match": "steps", "equal": "steps",
             "rows": lines, "pairing_sha256": ["ab" * 32],
             "protocol": {"border": 4}}  # fmt: skip
    return {"name": part.replace("_", " ").capitalize(), "title": "Parts <of> a group",
            "command": "python reproduce.py --table 2", "notes": ["A `note`."],
            "base_label": "DAASR",
            "lpips": False, "groups": [group]}  # fmt: skip


class TestText:
    def test_markdown(self):
        made = text.markdown(record())
        assert "FastMRI: 32.60 / 0.8732" in made
        assert "Pairing SHA-256: abababababab." in made
        assert "0.016" in made  # no p below, of seven subjects
        rows = [line for line in made.splitlines() if line.startswith("|")]
        assert len({line.count("|") for line in rows[:6]}) == 1

    def test_subjects_have_columns_of_their_own(self):
        one = record()
        rows = one["groups"][0]["rows"]
        one_subject = {"s3": 31.0}
        rows[0]["statistics"]["pair"]["psnr"]["per_subject"] = one_subject
        lines = text.markdown(one).splitlines()
        at = lines.index("PSNR in dB, mean of each subject:") + 2
        told = [[x.strip() for x in line.split("|")] for line in lines[at : at + 3]]
        assert told[2][1 + told[0].index("subject s3") - 1] == "31.00"
        assert told[2].count("-") == 6

    def test_not_run(self):
        one = record()
        one["groups"][0]["rows"][-1].update(statistics=None, status=text.NOT_RUN)
        line = next(x for x in text.markdown(one).splitlines() if "without_cwt" in x)
        assert "| not run | not run |" in line
        assert "33.09 / 0.8821" in line

    def test_failed(self):
        one = record()
        one["groups"][0]["rows"][-1].update(statistics=None, status="failed: E312: why")
        line = next(x for x in text.markdown(one).splitlines() if "without_cwt" in x)
        assert line.startswith("| without_cwt (failed: E312: why) | failed | failed |")

    def test_csv(self):
        rows = list(csv.DictReader(io.StringIO(text.as_csv(record(), once=False))))
        assert [r["network"] for r in rows][:2] == ["bicubic", "without_sat"]
        assert "images/s" not in rows[0]
        assert float(rows[1]["rate"]) == 1e-3

    def test_small_p(self):
        one = record()
        one["groups"][0]["rows"][1]["statistics"]["p_holm"] = 1e-5
        assert "| < 0.001 |" in text.markdown(one)

    def test_the_base_names_its_column(self):
        titles, *_ = text.grid(record()["groups"][0], lpips=False, base="40 x 40")
        assert "40 x 40 minus this, dB" in titles
        assert not [t for t in titles if "DAASR" in t]

    def test_rates_that_were_tried_are_counted(self):
        rows = list(csv.DictReader(io.StringIO(text.as_csv(record()))))
        assert {r["rates tried"] for r in rows} == {"1"}

    def test_rows_that_equal_steps_lack_are_named(self):
        group = record()["groups"][0]
        group |= {"equal_steps_of": ["EDSR", "TTSR"], "equal_steps_without": ["HAT"]}
        told = " ".join(text.facts(group))
        assert "of the slowest of: EDSR; TTSR. Left out of these: HAT, whose" in told

    def test_equal_time_has_equal_steps_beside_it(self):
        one = record()
        (steps,) = one["groups"]
        time = copy.deepcopy(steps) | {"match": "time", "equal": "time"}
        steps["rows"][1]["statistics"] = None  # not run
        _beside_equal_time([time, steps])
        assert "equal_steps" not in steps["rows"][0]
        rows = list(csv.DictReader(io.StringIO(text.as_csv(
            one | {"groups": [time, steps]}))))  # fmt: skip
        beside = [r["at equal steps, dB"] for r in rows if r["equal"] == "time"]
        assert beside[0] == rows[0]["PSNR, dB"]
        assert beside[1] == "-"
        assert {r["at equal steps, dB"] for r in rows if r["equal"] == "steps"} == {"-"}
        assert all(r["rate"] and None not in r for r in rows)

    def test_every_number_of_the_paper_has_a_row(self):
        for part, table in paper.printed()["tables"].items():
            for data in paper.printed()["data"]:
                for row, scales in table.get(data, {}).items():
                    assert row in {*cells.ROWS, "bicubic", "full"}, (part, row)
                    for numbers in scales.values():
                        assert 20 < numbers[0] < 40
                        assert all(0 < x < 1 for x in numbers[1:])


def pictures(part, side=32, n=6, stripped=False):
    rng = np.random.default_rng(0)
    hr = rng.random((n, side, side)).astype(np.float16)
    one = dict.fromkeys(("hr", "bicubic", "sr", "ref"), hr)
    one |= {"lr": hr[:, ::4, ::4], "keys": np.array([f"<v>#{i}" for i in range(n)])}
    one |= {"references": one["keys"], "psnr": np.ones(n), "psnr_bicubic": np.ones(n)}
    one["confidence"] = hr[:, ::4, ::4]
    if stripped:
        one |= {f"stripped_{k}": hr[:2] for k in ("hr", "bicubic", "sr")}
    return page.Pictures(part, 4, "random", {"EDSR": one, "DAASR": one})


class TestPage:
    def made(self, **kwargs):
        shown = [pictures("table_2"), pictures("figure_4", stripped=True)]
        return page.make_report_page(
            [record(), record("figure_4")], pictures=shown, viewer="<p>viewer</p>",
            environment={"code": "c" * 40}, **kwargs,
        )  # fmt: skip

    def test_it_needs_no_network(self):
        made = self.made()
        assert not re.findall(r'(?:src|href)="(?!data:|#)[^"]*"', made)
        assert "http" not in made.replace("http://www.w3.org/2000/svg", "")
        assert "{{" not in made
        assert "Parts &lt;of&gt; a group" in made
        assert "without skull" in made
        assert "Worst and best" in made
        assert made.count("<polyline") >= 4
        assert len(made.encode()) < page.LIMIT

    def test_too_large_pages_lose_pictures(self):
        made = self.made(limit=25_000)
        assert "The pictures are left out" in made
        assert len(made.encode()) < 25_000

    def test_a_page_that_cannot_be_small_says_so(self):
        made = self.made(limit=2_000)
        assert len(made.encode()) > 2_000
        assert "the tables alone are larger than the 0.002 MB" in made

    def test_it_lists_the_deviations(self):
        made = self.made()
        for word in ("lambda_p 0.1", "3 halvings", "decimated", "0001-reading"):
            assert word in made

    def test_box_and_zoom(self):
        hr, bicubic = np.zeros((16, 16)), np.zeros((16, 16))
        hr[9:12, 5:8] = 1
        row, column, side = box_of(hr, bicubic)
        assert side == 4
        assert row <= 9 <= 12 <= row + side
        assert column <= 5 <= 8 <= column + side
        rgb = np.zeros((16, 16, 3), np.uint8)
        assert zoomed(rgb, (row, column, side)).shape == (32, 16, 3)

    def test_curves_of_nothing(self):
        assert curves({"a": [[1, 30.0]]}) == ""
        far = curves({"a": [[1, 39.0], [2, 40.0]], "b": [[1, 20.0], [2, 31.0]]})
        assert "the lower edge is 35.00 and all below" in far
        assert far.count(",230.0") == 2  # both points of b
        assert "edge" not in curves({"a": [[1, 36.0], [2, 40.0]]})
        assert curves({"a": [[1, "nan"], [2, 30.0], [3, 30.0]]}).endswith("</svg>")

    @pytest.mark.parametrize(
        ("medium", "width"), [("screen", 390), ("screen", 1200), ("print", 718)]
    )
    def test_in_a_browser(self, tmp_path, medium, width):
        """On a phone, on a desk, and on a sheet of A4 with a margin of 1 cm."""
        browser = shutil.which("chromium") or shutil.which("google-chrome")
        if browser is None:
            pytest.skip("no Chromium on this machine")
        probe = "<script>document.title = JSON.stringify([innerWidth, "
        probe += "document.documentElement.scrollWidth, [...document.images].filter("
        probe += "i => i.complete && !i.naturalWidth).length])</script></body>"
        file = tmp_path / "report.html"
        page = self.made().replace("</body>", probe).replace(' loading="lazy"', "")
        assert "@media print" in page
        if medium == "print":
            page = page.replace("@media print", "@media all")
        file.write_text(page)
        done = subprocess.run(
            [browser, "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom",
             f"--user-data-dir={tmp_path}/profile", f"--window-size={width},800",
             file.as_uri()],
            capture_output=True, text=True, timeout=120,
        )  # fmt: skip
        title = re.search(r"<title>(\[.*?\])</title>", done.stdout)
        assert title, done.stderr[-500:]
        inner, scroll, broken = json.loads(title[1])
        assert scroll <= inner
        assert broken == 0
