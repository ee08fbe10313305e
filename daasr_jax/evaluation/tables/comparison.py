"""Rows of a table from the scores of their runs: means, intervals, differences."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from daasr_jax.evaluation.statistics import compared, finite_mean, summary
from daasr_jax.evaluation.tables.paired import holm, sign_flip_test


@dataclasses.dataclass(frozen=True)
class Measured:
    """One evaluation of one run.

    Attributes:
        slices: What names the set and its N slices: equal for equal slices, whatever
            the run.
        subjects: Number of the subject of each slice in the whole set, from 1, `"1"`.
        scores: `bicubic`, `pair` and, where they were measured, `black` and `self` ->
            metric -> N values, infinite where a slice is restored exactly.
    """

    slices: tuple[str, ...]
    subjects: tuple[str, ...]
    scores: Mapping[str, Mapping[str, np.ndarray]]


# Of a row: seed -> pairing -> scores; a seed that was not run has none.
Runs = Sequence[Sequence[Measured]]


def measured_of(report: Mapping[str, Any], method: str) -> Measured:
    """The scores of a result file.

    Each run names its subjects and slices by hashes of its own. What they are in every
    run are their numbers in the whole split, `places` and `people` of the report. A
    report of before has none, and is of the whole split.

    A report has no value where one is infinite or NaN. Where it counts values that are
    not finite, all that lack are taken for NaN.

    Args:
        report: From `make_report` or `make_controls_report`.
        method: Its name for the network with its own references.
    """
    rows, means = report["per_slice"], report["methods"]

    def column(name: str, metric: str) -> np.ndarray:
        bad = means[name][metric]["n_nonfinite"]
        lacking = math.nan if bad else math.inf
        found = (row[name][metric] for row in rows)
        return np.array([lacking if x is None else x for x in found], np.float64)

    names = {"bicubic": "bicubic", "pair": method, "black": "black", "self": "self"}
    found = list(dict.fromkeys(row["subject"] for row in rows))
    people = [found.index(row["subject"]) + 1 for row in rows]
    whole = f"{report['prepared_sha256']}/{report['split']}"
    return Measured(
        tuple(f"{whole}/{i}" for i in report.get("places", range(len(rows)))),
        tuple(map(str, report.get("people", people))),
        {
            name: {metric: column(own, metric) for metric in means[own]}
            for name, own in names.items()
            if own in means
        },
    )


def on_slices(runs: Runs, slices: Sequence[str]) -> Runs | None:
    """The scores of a row on these slices alone; None where it lacks one of them.

    Args:
        runs: Of the row.
        slices: As in `Measured`.
    """
    out = []
    for pairings in runs:
        out.append([])
        for one in pairings:
            places = {name: i for i, name in enumerate(one.slices)}
            if not places.keys() >= set(slices):
                return None
            chosen = np.array([places[name] for name in slices], np.int64)
            scores = {
                name: {metric: x[chosen] for metric, x in own.items()}
                for name, own in one.scores.items()
            }
            subjects = tuple(one.subjects[i] for i in chosen)
            out[-1].append(Measured(tuple(slices), subjects, scores))
    return out


def on_equal_slices(
    rows: Mapping[str, Runs], guided: Sequence[str]
) -> tuple[dict[str, Runs], list[str]]:
    """The rows of a table, all on the slices that its guided networks have.

    A network without reference has scores of slices that have no reference on a track.
    They are left out, so that all rows are of the same people.

    Args:
        rows: Name -> its runs, without bicubic.
        guided: Names of the rows that take a reference, the base first. Where none of
            them has runs, the slices are those of the first row that has.

    Returns:
        The rows, and the names of those whose slices are others: they have no runs.
    """
    order = [*(n for n in guided if n in rows), *rows]
    every = (one for n in order for pairings in rows[n] for one in pairings)
    first = next(every, None)
    if first is None:
        return dict(rows), []
    out: dict[str, Runs] = {}
    others = []
    for name, runs in rows.items():
        own = {one.slices for pairings in runs for one in pairings}
        found = on_slices(runs, first.slices)
        # What a guided network has is what its track has.
        if found is None or (name in guided and own - {first.slices}):
            others.append(name)
            found = [[] for _ in runs]
        out[name] = found
    return out, others


def means(
    runs: Runs, name: str, metric: str, *, minus: Runs = (), resamples: int = 10_000
) -> dict[str, Any] | None:
    """Statistics of a row: `statistics.summary` with seeds, and the mean by subject.

    The interval resamples subjects and training seeds, independently of one another.
    A reference pairing is one of several values of a slice.

    Args:
        runs: Of the row.
        name: Of the scores.
        metric: Such as `psnr`.
        minus: Runs of another row, whose score is taken off slice by slice. Equal
            seeds alone are compared. A pairing that lacks there is that of the same
            number, counted round: a network without reference has one.
        resamples: Of the bootstrap.

    Returns:
        None where no run has the score, or the slices differ, which
        `on_equal_slices` rules out; else
        `statistics.summary` and `per_subject`, whose means are None where they are not
        finite.
    """
    values, subjects, seeds = [], [], []
    for i, pairings in enumerate(runs):
        others = minus[i] if i < len(minus) else ()
        if minus and not others:
            continue
        for k, one in enumerate(pairings):
            if metric not in one.scores.get(name, {}):
                continue
            x = one.scores[name][metric]
            beside = {"own": x, "bicubic": one.scores["bicubic"][metric]}
            if minus:
                other = others[k % len(others)]
                if other.slices != one.slices or metric not in other.scores[name]:
                    return None
                beside["other"] = other.scores[name][metric]
            use = compared(beside)
            if minus:
                x = np.subtract(x, beside["other"], where=use, out=np.zeros_like(x))
            values += x[use].tolist()
            subjects += np.array(one.subjects)[use].tolist()
            seeds += [i] * int(use.sum())
    if not values:
        return None
    found = summary(values, subjects, seeds=seeds, resamples=resamples)
    column = np.array(subjects)
    by_subject = {
        subject: finite_mean(np.array(values)[column == subject])
        for subject in sorted(set(subjects), key=lambda s: (len(s), s))
    }
    return found | {"per_subject": by_subject}


def compare(
    rows: Mapping[str, Runs], base: str, *, resamples: int = 10_000
) -> dict[str, dict[str, Any]]:
    """Statistics of the rows of one table, at one scale and on one track.

    Args:
        rows: Name -> its runs; those that have none yet are left out.
        base: The row that all others are compared with.
        resamples: Of the bootstrap.

    Returns:
        Name -> `pair`, `black` and `self`, metric -> `means`; `n_subjects`,
        `n_slices`, `seeds`, `pairings`; and where `base` has runs, for all but itself
        `base_minus`, metric -> `means`, `p` of the differences in PSNR, over subjects,
        and `p_holm`, corrected for the rows of this call; None where a difference is
        not finite.
    """
    out: dict[str, dict[str, Any]] = {}
    for name, runs in rows.items():
        if not any(runs):
            continue
        first = next(one for pairings in runs for one in pairings)
        found: dict[str, Any] = {
            "n_subjects": len(set(first.subjects)),
            "n_slices": len(first.slices),
            "seeds": sum(map(bool, runs)),
            "pairings": max(map(len, runs)),
        }
        for kind in ("pair", "black", "self"):
            found[kind] = {
                metric: means(runs, kind, metric, resamples=resamples)
                for metric in first.scores.get(kind, {})
            }
        if name != base and any(rows.get(base, ())):
            found["base_minus"] = {
                metric: means(
                    rows[base], "pair", metric, minus=runs, resamples=resamples
                )
                for metric in first.scores["pair"]
            }
            gap = found["base_minus"]["psnr"]
            if gap:
                found["p"] = sign_flip_test(
                    [math.nan if x is None else x for x in gap["per_subject"].values()]
                )
        out[name] = found
    tested = [name for name, found in out.items() if "p" in found]
    corrected = holm([out[name]["p"] for name in tested])
    for name, p in zip(tested, corrected.tolist(), strict=True):
        own = out[name]["p"]
        out[name] |= {"p": _known(own), "p_holm": _known(p)}
    return out


def _known(p: float) -> float | None:
    return p if math.isfinite(p) else None


def of_bicubic(runs: Runs) -> Runs:
    """Bicubic as a row, from the runs of any other, for each seed of theirs."""
    return [[_bicubic(one) for one in pairings[:1]] for pairings in runs]


def _bicubic(one: Measured) -> Measured:
    scores = one.scores["bicubic"]
    both = {"bicubic": scores, "pair": scores}
    return Measured(one.slices, one.subjects, both)
