"""Which volume trains, validates and tests: always by subject, drawn by a seed."""

import difflib
import os
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from daasr_jax.data.pseudonyms import salted
from daasr_jax.data.settings import SPLITS, DataSettings
from daasr_jax.data.sources.base import Volume, log
from daasr_jax.errors import ConfigError, DataError
from daasr_jax.files import read_json

_DRAW_VOLUMES, _DRAW_SUBJECTS = 1, 2
# A split needs two subjects for each to have a reference from the other.
_LEAST = 2

Splits = dict[str, list[Volume]]


def printable(name: str) -> str:
    r"""A name from the file system as text that can be written anywhere.

    Bytes that are no UTF-8 become `\xNN`, and UTF-8 is read as such whatever the
    locale, so that a scan has one name on every machine.

    Example:
        >>> printable(os.fsdecode(b"patient\xe9"))
        'patient\\xe9'
    """
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def assign_splits(volumes: Sequence[Volume], settings: DataSettings) -> Splits:
    """Distributes volumes over `train`, `val` and `test`.

    In this order of precedence: `settings.whole`; the split file; the split the source
    gives (the template); the subject lists of the settings; the official folders, where
    the val folder tests and the subjects that validate are taken out of the train
    folder; fractions of subjects.

    Args:
        volumes: What a scan found.
        settings: Lists, fractions, contrasts, `n_volumes` and the seed.

    Returns:
        Volumes by split, sorted by key; `val` may be empty.

    Raises:
        ConfigError: For an unknown contrast (E204) or subject (E203), a subject in
            two lists (E206).
        DataError: For a split file that cannot be used (E330), a subject in both
            official folders (E305), too few subjects (E306), or a split in which no
            reference is possible (E307).
    """
    volumes = sorted(_of_contrasts(volumes, settings.contrasts), key=lambda v: v.key)
    if settings.whole:
        splits = _whole(volumes, settings)
    elif settings.split_file:
        splits = _by_file(volumes, Path(settings.split_file))
    elif all(volume.split for volume in volumes):
        splits = {s: [v for v in volumes if v.split == s] for s in SPLITS}
    elif any(settings.named_subjects.values()):
        splits = _by_lists(volumes, settings)
    elif {"train", "val"} <= {volume.role for volume in volumes}:
        splits = _by_folders(volumes, settings)
    else:
        splits = _by_fractions(_choose(volumes, settings), settings)
    if settings.track != "aligned":
        for name, members in splits.items():
            check_references(name, members, settings.exclude)
    return splits


def split_of(splits: Splits, volumes: Iterable[Volume]) -> dict[str, list[str]]:
    """The splits as a split file has them: `data.split_file` gives them again.

    Args:
        splits: What `assign_splits` made.
        volumes: What the scan found, of the contrasts in use. A subject stands for its
            volumes where all of them are in the split, else their keys are listed.
    """
    of_subject: dict[str, set[str]] = {}
    for volume in volumes:
        of_subject.setdefault(volume.subject, set()).add(volume.key)
    lists: dict[str, list[str]] = {}
    for split, members in splits.items():
        keys = {volume.key for volume in members}
        lists[split] = sorted(
            {v.subject if of_subject[v.subject] <= keys else v.key for v in members}
        )
    return lists


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
    splits = _listed(volumes, settings.named_subjects, _setting)
    return {
        split: _draw(members, settings.n_volumes, settings.seed, f"split {split!r}")
        for split, members in splits.items()
    }


def _whole(volumes: list[Volume], settings: DataSettings) -> Splits:
    names = settings.named_subjects[settings.whole]
    if names:
        return _listed(volumes, {settings.whole: names}, _setting)
    return {s: volumes if s == settings.whole else [] for s in SPLITS}


def _setting(split: str) -> str:
    return f"data.subjects.{split}"


def _by_file(volumes: list[Volume], path: Path) -> Splits:
    wanted = "it must be JSON with the lists train, val and test of subjects"
    try:
        lists = read_json(path)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise DataError(
            "E330", f"data.split_file {path} cannot be read ({reason}): {wanted}"
        ) from None
    salt = lists.pop("salt", None) if isinstance(lists, dict) else None
    if not isinstance(lists, dict) or not lists or not lists.keys() <= set(SPLITS):
        found = f"keys {', '.join(lists) or 'none'}" if isinstance(lists, dict) else ""
        found = found or f"a {type(lists).__name__}"
        raise DataError("E330", f"data.split_file {path} holds {found}: {wanted}")
    for split, names in lists.items():
        if not isinstance(names, list) or not all(isinstance(n, str) for n in names):
            raise DataError(
                "E330",
                f"data.split_file {path}: {split} is no list of texts; {wanted}",
            )
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ConfigError(
                "E206",
                f"subject {twice[0]} is named twice in {split} of data.split_file "
                f"{path}: keep it once",
            )
    if salt is not None:
        lists = _unsalted(volumes, lists, str(salt), path)
    return _listed(volumes, lists, lambda split: f"{split} of data.split_file {path}")


def _unsalted(
    volumes: Sequence[Volume], lists: Mapping[str, list[str]], salt: str, path: Path
) -> dict[str, list[str]]:
    """The names of lists that hold their salted hashes."""
    names = {name for volume in volumes for name in (volume.subject, volume.key)}
    known = {salted(name, salt): name for name in names}
    for split, hashes in lists.items():
        lost = [one for one in hashes if one not in known]
        if lost:
            raise ConfigError(
                "E203",
                f"{split} of data.split_file {path} has {len(hashes)} names as salted "
                f"hashes, {len(lost)} of which no volume has: give the data root that "
                "it was written for",
            )
    return {split: [known[one] for one in hashes] for split, hashes in lists.items()}


def _listed(
    volumes: list[Volume],
    lists: Mapping[str, Collection[str]],
    place: Callable[[str], str],
) -> Splits:
    """The volumes that each list names, by subject or by key.

    Args:
        volumes: All.
        lists: Names by split; a split may be absent.
        place: Where the list of a split is written, for the messages.
    """
    owner: dict[str, str] = {}
    splits: Splits = {}
    for split in SPLITS:
        members = _named(volumes, lists.get(split, ()), place(split))
        for volume in members:
            # a source that decides the splits itself has one subject in all
            name = volume.key if volume.split else volume.subject
            first = owner.setdefault(name, split)
            if first != split:
                raise ConfigError(
                    "E206",
                    f"subject {volume.subject} is named in {place(first)} and in "
                    f"{place(split)}: keep it in one of them",
                )
        splits[split] = members
    used = {volume.subject for members in splits.values() for volume in members}
    left_out = len({volume.subject for volume in volumes} - used)
    if left_out:
        log.info("%d subjects are in no list and left out", left_out)
    return splits


def _named(volumes: list[Volume], names: Collection[str], where: str) -> list[Volume]:
    subjects = sorted({volume.subject for volume in volumes})
    keys = [volume.key for volume in volumes]
    found = {_resolve(printable(name), subjects, keys, where) for name in names}
    return [v for v in volumes if v.subject in found or v.key in found]


def _resolve(name: str, known: list[str], keys: list[str], where: str) -> str:
    """The subject meant by its full name or an ending that only it has, or a key."""
    if name in known or name in keys:
        return name
    endings = [subject for subject in known if subject.endswith(name)]
    if len(endings) == 1:
        return endings[0]
    if endings:
        raise ConfigError(
            "E203",
            f"{where} names {name!r}, which fits {', '.join(endings[:5])}"
            ": give the full name",
        )
    names = [*known, *keys] if "/" in name else known
    near = difflib.get_close_matches(name, names, 3, 0.3) or names[:3]
    raise ConfigError(
        "E203",
        f"{where} names {name!r}, which no volume has; "
        f"the nearest are: {', '.join(near)}",
    )


def _shuffled(subjects: Iterable[str], seed: int) -> list[str]:
    ordered = sorted(subjects)
    rng = np.random.default_rng((seed, _DRAW_SUBJECTS))
    return [ordered[i] for i in rng.permutation(len(ordered))]


def _members(volumes: list[Volume], subjects: Iterable[str]) -> list[Volume]:
    wanted = set(subjects)
    return [volume for volume in volumes if volume.subject in wanted]
