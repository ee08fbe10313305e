"""The plan of the paper's tables: which networks are trained, and which row is which.

A cell is one run: a row at a scale, on a track, with a seed. Rows that are the same
network in several tables share their cells.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterable, Sequence

from daasr_jax.evaluation.tables.budgets import Budget
from daasr_jax.resampling import SCALES

TRACKS = {
    "random": "a slice of another subject",
    "neighbour": "the neighbouring slice",
    "contrast": "the same place in another contrast",
}
NO_TRACK = "any"  # of networks without reference: they are trained once for all tracks
BICUBIC = "bicubic"


@dataclasses.dataclass(frozen=True)
class Row:
    """A network of the tables.

    Attributes:
        label: For readers.
        small, published: Configuration at each size, `file:preset`.
        guided: Whether it takes a reference.
        crop: LR crop of Table 5 for slices of 256 pixels and more, on smaller ones
            smaller in the same part; 0 for that of the configuration.
        ablation: Whether it is DAASR with one thing changed. Its learning rate is then
            that of DAASR.
    """

    label: str
    small: str
    published: str
    guided: bool = True
    crop: int = 0
    ablation: bool = False

    def tuned_with(self, name: str, size: str) -> str:
        """The row whose trials choose its learning rate; `name` is its own."""
        return full(size) if self.ablation else name

    def configuration(self, size: str) -> str:
        """Of a size, `small` or `published`."""
        return self.small if size == "small" else self.published


def _system(label: str, file: str, *, guided: bool) -> Row:
    return Row(label, f"{file}:small", f"{file}:common", guided)


def _ablation(label: str, row: str, *, guided: bool = True, crop: int = 0) -> Row:
    return Row(
        label,
        f"ablation_x4_small:{row}",
        f"ablation_x4:{row}",
        guided,
        crop,
        ablation=True,
    )


ROWS = {
    "srcnn": _system("SRCNN", "srcnn_x4", guided=False),
    "edsr": _system("EDSR", "edsr_x4", guided=False),
    "swinir": _system("SwinIR", "swinir_x4", guided=False),
    "mcsr": _system("MCSR", "mcsr_x4", guided=True),
    "minet": _system("MINet", "minet_x4", guided=True),
    "mcmrsr": _system("McMRSR", "mcmrsr_x4", guided=True),
    "ttsr": _system("TTSR", "ttsr_x4", guided=True),
    "hat": _system("HAT", "hat_x4", guided=False),
    "daasr_paper": Row("DAASR, paper", "brain_x4_small:paper", "fastmri_x4:paper"),
    "daasr_fast": Row("DAASR, fast", "brain_x4_small:fast", "fastmri_x4:fast"),
    "without_both": _ablation("w/o CWT & SAT", "without_both", guided=False),
    "without_cwt": _ablation("w/o CWT", "without_cwt"),
    # Table 1 has it too, so its rate is chosen as that of a system.
    "without_sat": Row(
        "w/o SAT (no reference)",
        "ablation_x4_small:without_sat",
        "ablation_x4:without_sat",
        guided=False,
    ),
    "cwt_to_conv": _ablation("CWT to Conv", "cwt_to_conv"),
    "cwt_to_se": _ablation("CWT to CA (SE block)", "cwt_to_se"),
    "cwt_to_window": _ablation("CWT to S(W)MSA", "cwt_to_window"),
    "without_matching": _ablation("w/o K-V matching", "without_matching"),
    "without_f_cwt": _ablation("w/o F_CWT", "without_f_cwt"),
    "cross_attention": _ablation("RC to CrossAlign", "cross_attention"),
    "without_p": _ablation("w/o index map (P)", "without_p"),
    "without_c": _ablation("w/o score map (C)", "without_c"),
    "crop_10": _ablation("10 x 10", "crop_10", crop=10),
    "crop_20": _ablation("20 x 20", "crop_20", crop=20),
    "crop_40": _ablation("40 x 40", "crop_40", crop=40),
    "lambda_0.1_0.02": _ablation("0.1, 0.02", "lambda_0.1_0.02"),
    "lambda_0.5_0.01": _ablation("0.5, 0.01", "lambda_0.5_0.01"),
    "lambda_0.01_0.1": _ablation("0.01, 0.1", "lambda_0.01_0.1"),
    "lambda_0.3_0.09": _ablation("0.3, 0.09", "lambda_0.3_0.09"),
}
SYSTEMS = ("srcnn", "edsr", "swinir", "mcsr", "minet", "mcmrsr", "ttsr", "hat")
_ALIKE = {  # other names of one network
    "without_p_c": "without_matching",
    "lambda_0.1_0.01": "full",
}


def full(size: str) -> str:
    """The row that is DAASR itself: what ablations change, and all are compared to."""
    return "daasr_fast" if size == "small" else "daasr_paper"


@dataclasses.dataclass(frozen=True)
class Part:
    """A table or a figure of the paper.

    Attributes:
        title: What it shows.
        rows: Keys of `ROWS`, or `full`, in the paper's order.
        scales: That the paper has.
        tracks: That it is evaluated on; the first alone for ablations.
        labels: Names of rows where they differ from that of `ROWS`.
        lpips: Whether LPIPS is a column.
    """

    title: str
    rows: tuple[str, ...]
    scales: tuple[int, ...] = SCALES
    tracks: tuple[str, ...] = ("random",)
    labels: tuple[tuple[str, str], ...] = ()
    lpips: bool = False


_GRID = ("without_sat", "daasr_paper", "daasr_fast")
PARTS = {
    "table_1": Part(
        "Systems", (*SYSTEMS, *_GRID), tracks=("random", "neighbour", "contrast")
    ),
    "table_2": Part(
        "Parts of a group", ("without_both", "without_cwt", "without_sat", "full")
    ),
    "table_3": Part(
        "In the place of the CWT, at matched parameters",
        ("cwt_to_conv", "cwt_to_se", "cwt_to_window", "full"),
    ),
    "table_4": Part(
        "In the place of the SAT",
        ("without_matching", "without_f_cwt", "cross_attention", "full"),
    ),
    "table_5": Part(
        "Patch size, read as the LR training crop",
        ("crop_10", "crop_20", "crop_40"),
        scales=(4,),
    ),
    "table_6": Part(
        "Weights of the CWT and SAT terms",
        ("lambda_0.1_0.02", "lambda_0.5_0.01", "lambda_0.01_0.1", "lambda_0.3_0.09",
         "lambda_0.1_0.01"),
        labels=(("lambda_0.1_0.01", "0.1, 0.01 (DAASR)"),),
        lpips=True,
    ),
    "figure_4": Part("Slices by all systems", (*SYSTEMS, *_GRID), scales=(4,)),
    "figure_5": Part("Their errors", (*SYSTEMS, *_GRID), scales=(4,)),
    "figure_6": Part(
        "Index map and score map",
        ("without_p", "without_c", "without_p_c", "full"),
        scales=(4,),
        labels=(("without_p_c", "w/o P & C"),),
    ),
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Trial:
    """A short run that measures one learning rate of a row, or its speed.

    Attributes:
        row: Key of `ROWS`.
        scale: s.
        rate: Learning rate.
        track: Of training and validation; `NO_TRACK` without reference.
        speed: Whether its speed alone counts, from which lengths in minutes follow.
    """

    row: str
    scale: int
    rate: float
    track: str
    speed: bool = False

    @property
    def name(self) -> str:
        """Of its folder."""
        track = "" if self.track in ("random", NO_TRACK) else f"{self.track}-"
        what = "speed" if self.speed else f"rate{self.rate:g}"
        return f"trials/{self.row}-x{self.scale}-{track}{what}"


@dataclasses.dataclass(frozen=True)
class Cell:
    """One run of a row.

    Attributes:
        row: Key of `ROWS`.
        scale: s.
        track: Of training and evaluation; `NO_TRACK` without reference.
        seed: Of the training.
        match: What it has equal to other rows' cells: `steps` or `time`.
    """

    row: str
    scale: int
    track: str
    seed: int
    match: str = "steps"

    def at_equal_time(self) -> Cell:
        """The same row, scale, track and seed, trained for a time."""
        return dataclasses.replace(self, match="time")

    @property
    def name(self) -> str:
        """Of its folder."""
        at = f"{self.row}-x{self.scale}-{self.track}-seed{self.seed}"
        return f"cells/{at}-equal_{self.match}"


@dataclasses.dataclass(frozen=True)
class TablePlan:
    """What is to be made.

    Attributes:
        parts: Names of the tables and figures.
        rows: Part -> its rows as `(name in the paper, key of ROWS)`.
        scales, tracks: Part -> its own of those that were asked for.
        seeds: Of training, from 0.
        trials, cells: What is run, each once.
    """

    parts: tuple[str, ...]
    rows: dict[str, list[tuple[str, str]]]
    scales: dict[str, tuple[int, ...]]
    tracks: dict[str, tuple[str, ...]]
    seeds: int
    trials: list[Trial]
    cells: list[Cell]

    def needed(self, job: Trial | Cell, size: str) -> list[Trial]:
        """The trials that choose the learning rate of a cell, and tell its length.

        A trial needs the one that measures its speed, where its length is in minutes.
        """
        rows = {job.row, ROWS[job.row].tuned_with(job.row, size)}
        found = [t for t in self.trials if t.row in rows and t.scale == job.scale]
        if isinstance(job, Trial):
            found = [t for t in found if t.speed and t.row == job.row and t != job]
        return found

    def of(
        self, row: str, scale: int, track: str, match: str, seeds: int | None = None
    ) -> list[Cell]:
        """The cells of a row, one for each seed."""
        number = self.seeds if seeds is None else seeds
        seen = _seen(row, track)
        return [Cell(row, scale, seen, seed, match) for seed in range(number)]


def _seen(row: str, track: str) -> str:
    """What a row sees of a track."""
    return track if ROWS[row].guided else NO_TRACK


def asked_tracks(tracks: Collection[str]) -> tuple[str, ...]:
    """The tracks that are asked for in their order; empty is all.

    Ablations and figures are of the first.
    """
    return tuple(t for t in TRACKS if not tracks or t in tracks)


def plan_tables(
    parts: Sequence[str],
    wanted: Budget,
    *,
    only: Collection[str] = (),
    scales: Iterable[int] = (),
    tracks: Iterable[str] = (),
    seeds: int = 1,
    tried_on: str = "",
) -> TablePlan:
    """The runs that tables and figures need.

    Args:
        parts: Keys of `PARTS`.
        wanted: Budget.
        only: Rows to keep: keys of `ROWS`, `daasr` for DAASR itself; empty for all.
        scales, tracks: To keep; empty for those of the paper.
        seeds: Number of training seeds.
        tried_on: Track on which all learning rates are chosen; empty for the first.
    """
    scales, chosen = tuple(scales), asked_tracks(tuple(tracks))
    kept = {full(wanted.size) if x in ("daasr", "full") else x for x in only}
    rows: dict[str, list[tuple[str, str]]] = {}
    own_scales, own_tracks = {}, {}
    trials: dict[Trial, None] = {}  # each after that of its speed
    cells: dict[Cell, None] = {}
    for part in parts:
        about = PARTS[part]
        labels = dict(about.labels)
        own_scales[part] = tuple(s for s in about.scales if not scales or s in scales)
        # An ablation is made on one track: the first that is asked for.
        several = len(about.tracks) > 1
        own_tracks[part] = chosen if several else chosen[:1]
        rows[part] = []
        for name in about.rows:
            key = _ALIKE.get(name, name)
            key = full(wanted.size) if key == "full" else key
            if kept and not kept & {key, name}:
                continue
            label = labels.get(name, "DAASR" if name == "full" else ROWS[key].label)
            rows[part].append((label, key))
    plan = TablePlan(tuple(parts), rows, own_scales, own_tracks, seeds, [], [])
    for seed in range(seeds):  # all rows have one seed before any has two
        for part in parts:
            # A figure shows one network of a row.
            if part.startswith("figure") and seed:
                continue
            for scale in reversed(own_scales[part]):
                for track in own_tracks[part]:
                    for match in wanted.matches():
                        for _, key in rows[part]:
                            found = plan.of(key, scale, track, match)
                            cells[found[seed]] = None
    tried_on = tried_on or chosen[0]
    for cell in cells:
        tuned = ROWS[cell.row].tuned_with(cell.row, wanted.size)
        for row in (tuned, cell.row) if wanted.minutes else ():
            at = row, cell.scale, wanted.rates[1], _seen(row, tried_on)
            trials[Trial(*at, speed=True)] = None
        for rate in wanted.rates:
            trials[Trial(tuned, cell.scale, rate, _seen(tuned, tried_on))] = None
    plan.trials.extend(trials)
    plan.cells.extend(cells)
    return plan
