"""Which volume trains, validates and tests: always by subject, drawn by a seed."""

import difflib
from collections.abc import Iterable, Sequence

import numpy as np

from daasr_jax.data.settings import DataSettings
from daasr_jax.data.sources.base import Volume, log
from daasr_jax.errors import ConfigError, DataError

SPLITS = ("train", "val", "test")
_DRAW_VOLUMES, _DRAW_SUBJECTS = 1, 2
# A split needs two subjects for each to have a reference from the other.
_LEAST = 2

Splits = dict[str, list[Volume]]


def assign_splits(volumes: Sequence[Volume], settings: DataSettings) -> Splits:
    """Distributes volumes over `train`, `val` and `test`.

    In this order of precedence: the split the source gives (the template); the subject
    lists of the settings; the official folders, where the val folder tests and the
    subjects that validate are taken out of the train folder; fractions of subjects.

    Args:
        volumes: What a scan found.
        settings: Subject lists, fractions, contrasts, `n_volumes` and the seed.

    Returns:
        Volumes by split, sorted by key; `val` may be empty.

    Raises:
        ConfigError: For an unknown contrast (E204) or subject (E203), or a subject in
            two lists (E206).
        DataError: For a subject in both official folders (E305), too few subjects
            (E306), or a split in which no reference is possible (E307).
    """
    volumes = sorted(_of_contrasts(volumes, settings.contrasts), key=lambda v: v.key)
    if all(volume.split for volume in volumes):
        splits = {s: [v for v in volumes if v.split == s] for s in SPLITS}
    elif any(settings.named_subjects.values()):
        splits = _by_lists(volumes, settings)
    elif {"train", "val"} <= {volume.role for volume in volumes}:
        splits = _by_folders(volumes, settings)
    else:
        splits = _by_fractions(_choose(volumes, settings), settings)
    if settings.track == "random":
        for name, members in splits.items():
            check_references(name, members, settings.exclude)
    return splits


def check_references(
    name: str, volumes: Sequence[Volume], exclude: str, n_slices: int | None = None
) -> None:
    """Raises DataError (E307) where the split's slices can have no reference.

    Args:
        name: The split, for the message.
        volumes: Its volumes; an empty split passes.
        exclude: What a reference may not share with its target.
        n_slices: Slices of the split; by default those of the volumes.
    """
    subjects = sorted({volume.subject for volume in volumes})
    if n_slices is None:
        n_slices = sum(volume.shape[0] for volume in volumes)
    if not volumes:
        return
    if exclude == "subject" and len(subjects) < _LEAST:
        if len(volumes) > 1:
            looser = "volume to allow another volume of the same subject"
        else:
            looser = "slice to allow another slice of its only volume"
        raise DataError(
            "E307",
            f"split {name!r} holds one subject ({subjects[0]}): no reference from "
            "another subject is possible; set "
            f"--config.reference.exclude={looser}, "
            f"or name more subjects in data.subjects.{name}",
        )
    if exclude == "volume" and len(volumes) < _LEAST:
        raise DataError(
            "E307",
            f"split {name!r} holds one volume ({volumes[0].key}): no reference from "
            "another volume is possible; set --config.reference.exclude=slice to "
            "allow another slice of the same volume, or name more subjects in "
            f"data.subjects.{name}",
        )
    if n_slices < _LEAST:
        raise DataError(
            "E307",
            f"split {name!r} holds one slice ({volumes[0].key}): no reference is "
            f"possible; name more subjects in data.subjects.{name}",
        )


def _of_contrasts(
    volumes: Sequence[Volume], contrasts: tuple[str, ...]
) -> Sequence[Volume]:
    if not contrasts:
        return volumes
    present = sorted({volume.contrast for volume in volumes})
    for contrast in contrasts:
        if contrast not in present:
            raise ConfigError(
                "E204",
                f"data.contrasts names {contrast!r}, which no volume has; "
                f"there are: {', '.join(present)}",
            )
    return [volume for volume in volumes if volume.contrast in contrasts]


def _choose(volumes: list[Volume], settings: DataSettings) -> list[Volume]:
    """At most `n_volumes` of each folder, drawn by the seed."""
    limit = settings.n_volumes
    chosen: list[Volume] = []
    for folder in sorted({volume.folder for volume in volumes}):
        members = [volume for volume in volumes if volume.folder == folder]
        chosen += _draw(members, limit, settings.seed, folder or "the data root")
    return chosen


def _draw(members: list[Volume], limit: int, seed: int, place: str) -> list[Volume]:
    if limit == 0 or len(members) <= limit:
        return members
    log.info("%d of %d volumes of %s drawn by the seed", limit, len(members), place)
    rng = np.random.default_rng((seed, _DRAW_VOLUMES))
    picked = sorted(rng.choice(len(members), size=limit, replace=False).tolist())
    return [members[i] for i in picked]


def _by_folders(volumes: list[Volume], settings: DataSettings) -> Splits:
    train_side = {v.subject for v in volumes if v.role == "train"}
    both = sorted(train_side & {v.subject for v in volumes if v.role == "val"})
    if both:
        raise DataError(
            "E305",
            f"{len(both)} subjects lie in the train and in the val folder, the first "
            f"is {both[0]}: remove the copies or name the subjects of each split in "
            "data.subjects.train, .val and .test",
        )
    chosen = _choose(volumes, settings)
    train = [volume for volume in chosen if volume.role == "train"]
    order = _shuffled({volume.subject for volume in train}, settings.seed)
    n_val = _val_count(len(order), len(order), settings.val_fraction)
    return {
        "train": _members(train, order[n_val:]),
        "val": _members(train, order[:n_val]),
        "test": [volume for volume in chosen if volume.role == "val"],
    }


def _by_fractions(volumes: list[Volume], settings: DataSettings) -> Splits:
    order = _shuffled({volume.subject for volume in volumes}, settings.seed)
    n = len(order)
    if n < _LEAST:
        raise DataError(
            "E306",
            f"{n} subject under {settings.root}: a train and a test split need two; "
            "add subjects, or check that data.pattern finds them",
        )
    n_test = max(_LEAST, round(settings.test_fraction * n))
    if n - n_test < _LEAST:
        n_test = max(1, n - _LEAST)
    n_val = _val_count(n - n_test, n, settings.val_fraction)
    return {
        "train": _members(volumes, order[n_test + n_val :]),
        "val": _members(volumes, order[n_test : n_test + n_val]),
        "test": _members(volumes, order[:n_test]),
    }


def _val_count(available: int, total: int, fraction: float) -> int:
    """Subjects that validate: none where fewer than two would be left to train."""
    if fraction == 0:
        return 0
    count = max(_LEAST, round(fraction * total))
    if available - count >= _LEAST:
        return count
    log.warning(
        "no validation split: %d subjects are too few to take %d out of training; "
        "training runs without validation and its best state is the latest",
        available,
        count,
    )
    return 0


def _by_lists(volumes: list[Volume], settings: DataSettings) -> Splits:
    known = sorted({volume.subject for volume in volumes})
    owner: dict[str, str] = {}
    splits: Splits = {}
    for split, names in settings.named_subjects.items():
        wanted = {_resolve(name, known, split) for name in names}
        for subject in sorted(wanted):
            if subject in owner:
                raise ConfigError(
                    "E206",
                    f"subject {subject} is named in data.subjects.{owner[subject]} and "
                    f"in data.subjects.{split}: keep it in one of them",
                )
            owner[subject] = split
        members = _members(volumes, wanted)
        splits[split] = _draw(
            members, settings.n_volumes, settings.seed, f"split {split!r}"
        )
    left_out = len(set(known) - set(owner))
    if left_out:
        log.info("%d subjects are in no list and left out", left_out)
    return splits


def _resolve(name: str, known: list[str], split: str) -> str:
    """The subject meant by its full name or by an ending that only it has."""
    if name in known:
        return name
    endings = [subject for subject in known if subject.endswith(name)]
    if len(endings) == 1:
        return endings[0]
    if endings:
        raise ConfigError(
            "E203",
            f"data.subjects.{split} names {name!r}, which fits {', '.join(endings[:5])}"
            ": give the full name",
        )
    near = difflib.get_close_matches(name, known, 3, 0.3) or known[:3]
    raise ConfigError(
        "E203",
        f"data.subjects.{split} names {name!r}, which no volume has; "
        f"the nearest are: {', '.join(near)}",
    )


def _shuffled(subjects: Iterable[str], seed: int) -> list[str]:
    ordered = sorted(subjects)
    rng = np.random.default_rng((seed, _DRAW_SUBJECTS))
    return [ordered[i] for i in rng.permutation(len(ordered))]


def _members(volumes: list[Volume], subjects: Iterable[str]) -> list[Volume]:
    wanted = set(subjects)
    return [volume for volume in volumes if volume.subject in wanted]
