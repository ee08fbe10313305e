"""What the data layer can be asked for, checked when it is written down."""

import dataclasses
import math
import os
import re
from pathlib import Path

from daasr_jax.errors import ConfigError, ResourceError

LAYOUTS = ("auto", "fastmri", "nifti", "template")
RESIZES = ("stretch", "pad")
SLICE_AXES = ("auto", "axial", "coronal", "sagittal")
EXCLUDES = ("subject", "volume", "slice")
PURE_TRACKS = ("random", "aligned")
TRACKS = (*PURE_TRACKS, "mixed")
ALIGNED = ("neighbour", "contrast")
SPLITS = ("train", "val", "test")
FASTMRI_TARGETS = ("auto", "reconstruction_esc", "reconstruction_rss", "kspace")
SUBJECTS_FROM = ("auto", "file", "attribute")


@dataclasses.dataclass(frozen=True)
class Shares:
    """How often each kind of reference is drawn on the track `mixed`.

    The numbers are relative: only their ratios count.

    Attributes:
        stranger: A slice of another subject, as on the track `random`.
        neighbour: The slice beside the target in its volume.
        contrast: The same place in another contrast; a neighbour where there is none.
        corrupted: A damaged copy of one of the three, in their ratio.
        none: Zeros, which stand for no reference.

    Raises:
        ConfigError: For a number that is no share, or nothing to damage (E215).
    """

    stranger: float = 0.35
    neighbour: float = 0.35
    contrast: float = 0.0
    corrupted: float = 0.2
    none: float = 0.1

    def __post_init__(self) -> None:
        for name, value in dataclasses.asdict(self).items():
            if not (math.isfinite(value) and value >= 0):
                raise ConfigError(
                    "E215",
                    f"reference.shares.{name} is {value}; it must be 0 or more",
                )
        if not sum(dataclasses.astuple(self)):
            raise ConfigError(
                "E215",
                "reference.shares are all 0: give one kind of reference a share",
            )
        if self.corrupted and not self.stranger + self.neighbour + self.contrast:
            raise ConfigError(
                "E215",
                "reference.shares.corrupted has nothing to damage: give stranger, "
                "neighbour or contrast a share too, such as 0.001",
            )

    @property
    def of_all(self) -> dict[str, float]:
        """Kind -> its part of all draws."""
        return _ratios(dataclasses.asdict(self))

    @property
    def of_images(self) -> dict[str, float]:
        """Kind -> its part of the draws of what is damaged."""
        names = ("stranger", "neighbour", "contrast")
        return _ratios({name: getattr(self, name) for name in names})


def _ratios(shares: dict[str, float]) -> dict[str, float]:
    total = sum(shares.values())
    return {name: value / total for name, value in shares.items()}


@dataclasses.dataclass(frozen=True)
class DataSettings:
    """Where the images lie, which of them are used, and how slices are prepared.

    Attributes:
        root: Folder of the data; empty only for `layout="template"`.
        layout: `auto` looks for .h5 (fastMRI) or .nii/.nii.gz (NIfTI) files under
            `root`; `template` is the MNI152 head that comes with nilearn.
        links_out: Follow links that lead out of `root`; those within it are followed
            in any case.
        cache_dir: Where prepared slices are kept; empty means `$XDG_CACHE_HOME` or
            `~/.cache`, in the folder `daasr_jax`.
        size: Side of a prepared slice in pixels.
        resize: `stretch` resizes both sides to `size`; `pad` first pads with zeros to
            a square, which keeps the aspect ratio.
        n_volumes: At most this many volumes of a folder (of a split where subjects are
            named); 0 keeps all. Not applied with `split_file` or `whole`.
        seed: Draws the volumes and the subjects of the splits.
        split_file: JSON file with the lists `train`, `val` and `test` of names of
            subjects or keys of volumes; the splits are exactly these.
        val_fraction: Share of the subjects that validate, in [0, 1).
        test_fraction: Share of the subjects that test, in (0, 1); not used where
            the data has an official validation folder.
        train_subjects: Subjects to train on. Where any of the three lists is given,
            the splits are exactly these lists.
        val_subjects: Subjects to validate on.
        test_subjects: Subjects to test on.
        contrasts: Contrasts to keep; empty keeps all.
        pattern: NIfTI only: `auto` knows the trees of BIDS and IXI, and in others the
            folder of a subject; else a regular expression, searched in the path below
            `root` (with `/`), with the group `subject` and perhaps `study` and
            `contrast`.
        slice_axis: NIfTI only: `auto` cuts across the thickest voxel side when it is
            over 1.5 times both others, else axially.
        slice_range: Part of a volume's slices to keep, as fractions in [0, 1].
        slice_step: Keep every n-th slice of that part.
        whole: Split that takes every volume, or every one of the subjects that are
            named for it; the others are empty. Without it the splits are drawn.
        exclude: What a reference may not share with its target: `subject`, `volume`
            or `slice`. Read only to refuse splits without references.
        track: `random`, `aligned` or `mixed`: `exclude` applies to the splits but on
            the track `aligned`.
        aligned: `neighbour` or `contrast`: which volumes the track `aligned` leaves
            out, because none of their slices has a reference.
        companions: Resample the other contrasts of a visit onto the grid of each
            volume, where headers tell how they lie.
        skip_bad: Leave out files that cannot be used, each with a warning, instead of
            stopping at them.
        folders: fastMRI only: the `*_train` and `*_val` folders to use; empty uses all.
        subject_from: fastMRI only: whether the subject is the `attribute` patient_id of
            a file or the name of the `file`. `auto` takes the name where the attribute
            is missing, and says so.
        target: fastMRI only: which dataset of a file is the image. `auto` prefers
            `reconstruction_esc`, then `reconstruction_rss`, then `kspace`.

    A place that begins with `~` is meant as the shell means it.

    Raises:
        ConfigError: If a value is outside its range (E211), the pattern is not a
            regular expression with the group `subject` (E212), or the splits are
            given in two ways (E210).
    """

    root: str = ""
    layout: str = "auto"
    links_out: bool = False
    cache_dir: str = ""
    size: int = 256
    resize: str = "stretch"
    n_volumes: int = 200
    seed: int = 0
    split_file: str = ""
    val_fraction: float = 0.1
    test_fraction: float = 0.2
    train_subjects: tuple[str, ...] = ()
    val_subjects: tuple[str, ...] = ()
    test_subjects: tuple[str, ...] = ()
    contrasts: tuple[str, ...] = ()
    pattern: str = "auto"
    slice_axis: str = "auto"
    slice_range: tuple[float, float] = (0.0, 1.0)
    slice_step: int = 1
    whole: str = ""
    exclude: str = "subject"
    track: str = "random"
    aligned: str = "neighbour"
    companions: bool = False
    skip_bad: bool = False
    folders: tuple[str, ...] = ()
    subject_from: str = "auto"
    target: str = "auto"

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            if isinstance(field.default, tuple):
                value = getattr(self, field.name)
                if isinstance(value, str):
                    value = (value,)
                object.__setattr__(self, field.name, tuple(value))
        for name in ("root", "cache_dir", "split_file"):
            object.__setattr__(self, name, os.path.expanduser(getattr(self, name)))
        _choice("data.layout", self.layout, LAYOUTS)
        _choice("data.resize", self.resize, RESIZES)
        _choice("data.slice_axis", self.slice_axis, SLICE_AXES)
        _choice("reference.exclude", self.exclude, EXCLUDES)
        _choice("reference.track", self.track, TRACKS)
        _choice("reference.aligned", self.aligned, ALIGNED)
        _choice("data.subject_from", self.subject_from, SUBJECTS_FROM)
        _choice("data.target", self.target, FASTMRI_TARGETS)
        _range("data.size", self.size, 16 <= self.size <= 4096, "16 to 4096")
        _range("data.n_volumes", self.n_volumes, self.n_volumes >= 0, "0 or more")
        _range("data.seed", self.seed, self.seed >= 0, "0 or more")
        _range("data.slice_step", self.slice_step, self.slice_step >= 1, "1 or more")
        val, test = self.val_fraction, self.test_fraction
        _range("data.val_fraction", val, 0 <= val < 1, "in [0, 1)")
        _range("data.test_fraction", test, 0 < test < 1, "in (0, 1)")
        cut = self.slice_range
        good_cut = len(cut) == 2 and 0 <= cut[0] < cut[1] <= 1
        wanted = "two rising fractions in [0, 1]"
        _range("data.slice_first, data.slice_last", cut, good_cut, wanted)
        self._check_one_way()
        if self.pattern == "auto":
            return
        try:
            groups = re.compile(self.pattern).groupindex
        except re.error as error:
            raise ConfigError(
                "E212",
                f"data.pattern is not a regular expression ({error}): {self.pattern}",
            ) from None
        if "subject" not in groups:
            raise ConfigError(
                "E212",
                f"data.pattern lacks the group (?P<subject>...): {self.pattern}; "
                "splits are by subject, so it must say which part of a path that is",
            )

    @property
    def cache_path(self) -> Path:
        """The cache folder, with the default filled in.

        Raises:
            ResourceError: If the default is in a home folder and there is none (E602).
        """
        if self.cache_dir:
            return Path(self.cache_dir).absolute()
        base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
        try:
            return Path(base).expanduser().absolute() / "daasr_jax"
        except RuntimeError:
            raise ResourceError(
                "E602",
                f"there is no home folder for the cache ({base}): give "
                "--config.data.cache_dir=DIR, a folder that can be written",
            ) from None

    @property
    def named_subjects(self) -> dict[str, tuple[str, ...]]:
        """The three lists by split name."""
        return {
            "train": self.train_subjects,
            "val": self.val_subjects,
            "test": self.test_subjects,
        }

    def _check_one_way(self) -> None:
        if self.whole:
            _choice("the split of all volumes", self.whole, SPLITS)
        named = [s for s, names in self.named_subjects.items() if names]
        ways = [f"data.subjects.{s}" for s in named if s != self.whole][:1]
        if self.split_file:
            ways.append("data.split_file")
        if self.whole:
            ways.append(f"all volumes in the split {self.whole!r}")
        if len(ways) > 1:
            raise ConfigError(
                "E210",
                f"the splits are given in {len(ways)} ways ({', '.join(ways)}): "
                "keep one of them",
            )


def _choice(name: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise ConfigError(
            "E211", f"{name} is {value!r}; it must be one of {', '.join(known)}"
        )


def _range(name: str, value: object, good: bool, wanted: str) -> None:
    if not good:
        raise ConfigError("E211", f"{name} is {value!r}; it must be {wanted}")
