"""The prepared set: the splits of a data set as lists of prepared slices.

The slices lie in the cache by volume, see `store`. The key of a set is a SHA-256 of the
name and the pixels of every slice of every split: equal keys are equal data.
"""

import dataclasses
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from daasr_jax.data.companions import companions_of, prepare_companions
from daasr_jax.data.content import check_copies, check_leaks, write_json
from daasr_jax.data.pseudonyms import salted
from daasr_jax.data.references import with_reference
from daasr_jax.data.settings import DataSettings
from daasr_jax.data.sources import choose_source
from daasr_jax.data.sources.base import OnBad, Volume, log
from daasr_jax.data.splits import (
    Splits,
    assign_splits,
    check_references,
    printable,
    split_of,
)
from daasr_jax.data.store import Stored, StoredImages, prepare_volumes, read_index
from daasr_jax.data.table import SliceRecord, SliceTable
from daasr_jax.errors import DataError, ResourceError


@dataclasses.dataclass(frozen=True)
class PreparedSet:
    """The splits of one data set, ready to be read.

    Attributes:
        splits: `train`, `val` and `test`; a table may be empty. On the track `aligned`
            slices without a reference are left out.
        key: SHA-256 of the names and pixels of all slices, hexadecimal.
        companions: The same of other contrasts on the grids of volumes; None where
            there are none.
        directory: Folder of the cache.
        dataset: Name for people, such as `nifti:openms` or `template:mni152`.
        split: The splits as a split file has them, ready for JSON.
        subjects: Names of the subjects of each split, sorted.
        volume_hashes: Content hashes of the volumes of each split, sorted.
        slice_hashes: Hashes of the slices of each split, sorted, without those of
            nearly empty slices; see `slices.slice_hash`.
        left_out: Number of files that cannot be used and were left out.
        files: Key of each volume -> its file, and the hash of its voxels.
    """

    splits: dict[str, SliceTable]
    key: str
    companions: str | None
    directory: str
    dataset: str
    split: dict[str, list[str]]
    subjects: dict[str, list[str]]
    volume_hashes: dict[str, list[str]]
    slice_hashes: dict[str, list[str]]
    left_out: int = 0
    files: dict[str, tuple[str, str]] = dataclasses.field(default_factory=dict)

    def subject_hashes(self, salt: str) -> dict[str, list[str]]:
        """SHA-256 of salt and name of each split's subjects, sorted, hexadecimal."""
        return _salted(self.subjects, salt)

    def write_split(self, path: Path, salt: str | None = None) -> None:
        """Writes a file that `data.split_file` takes, whole or not at all.

        Args:
            path: The file.
            salt: Write salted hashes of the names, and the salt; None writes the names.
        """
        if salt is None:
            write_json(path, self.split)
        else:
            write_json(path, {**_salted(self.split, salt), "salt": salt})


def prepare(
    settings: DataSettings, *, check: bool = True, on_bad: OnBad | None = None
) -> PreparedSet:
    """Finds the volumes, assigns the splits and prepares what is not yet prepared.

    Several processes may call it at the same time: one prepares, the others wait. A
    cache that holds everything is only read.

    Args:
        settings: Where the data lie and how they are prepared.
        check: Compare the prepared files with their SHA-256. One of several processes
            that share a cache is enough.
        on_bad: Called with each file that cannot be used and the reason; the file is
            left out. By default it is a warning with `settings.skip_bad`, else an
            error.

    Raises:
        ConfigError: If the settings do not fit the data (E201 to E214).
        DataError: If the data cannot be used (E301 to E333), or the prepared set
            is damaged (E311).
        ResourceError: If the disk is too small (E601) or the cache cannot be written
            (E602).
    """
    source = choose_source(settings)
    left_out: list[Path] = []

    def leave_out(path: Path, reason: str) -> None:
        left_out.append(path)
        (on_bad or _warn_of_bad)(path, reason)

    skip = leave_out if on_bad or settings.skip_bad else None
    try:
        volumes = [_printable(volume) for volume in source.scan(settings, skip)]
    except OSError as error:
        raise DataError(
            "E301",
            f"{error.filename or settings.root} cannot be read ({error.strerror}): "
            "correct its permissions or give another --config.data.root=DIR",
        ) from None
    splits = assign_splits(volumes, settings)
    used = [volume for members in splits.values() for volume in members]
    cache = settings.cache_path
    try:
        os.fspath(cache).encode()
        stored = prepare_volumes(source, used, settings, skip)
        splits = {
            split: [volume for volume in members if volume.key in stored]
            for split, members in splits.items()
        }
        beside = {}
        if settings.companions:
            beside = prepare_companions(source, splits, stored, settings, check=check)
    except (OSError, UnicodeEncodeError) as error:
        reason = getattr(error, "strerror", None)
        if isinstance(error, UnicodeEncodeError):
            reason = "its name is not UTF-8"
        raise ResourceError(
            "E602",
            f"the cache {cache} cannot be used ({reason or error}): "
            "give --config.data.cache_dir=DIR, a folder that can be written",
        ) from None
    hashes = {key: volume.content for key, volume in stored.items()}
    check_copies(splits, hashes)
    records = _records(splits, stored, check=check)
    check_leaks(records)
    tables = {
        split: SliceTable(
            split,
            members,
            settings.size,
            StoredImages(members, stored, settings.size),
            companions=companions_of(members, splits, beside, settings.size),
        )
        for split, members in records.items()
    }
    for split, table in tables.items():
        if settings.track != "aligned":
            check_references(split, splits[split], settings.exclude, len(table))
        elif len(table):
            tables[split] = with_reference(table, aligned=settings.aligned)
    name = Path(settings.root).absolute().name if settings.root else "mni152"
    contrasts = settings.contrasts
    prepared = PreparedSet(
        splits=tables,
        key=_key(records, stored),
        companions=_companions_key(beside),
        directory=str(cache),
        dataset=f"{source.name}:{printable(name)}",
        split=split_of(
            splits, [v for v in volumes if not contrasts or v.contrast in contrasts]
        ),
        subjects={s: sorted({v.subject for v in vs}) for s, vs in splits.items()},
        volume_hashes={
            s: sorted(hashes[v.key] for v in vs) for s, vs in splits.items()
        },
        slice_hashes={
            s: sorted(r.sha256 for r in rs if r.sha256) for s, rs in records.items()
        },
        left_out=len(left_out),
        files={
            v.key: (v.path, hashes[v.key])
            for members in splits.values()
            for v in members
        },
    )
    if left_out:
        log.warning("%d files that cannot be used are left out", len(left_out))
    _warn_of_small(used, settings.size)
    log.info(
        "%s, prepared set %s: %s",
        prepared.dataset,
        prepared.key[:12],
        ", ".join(
            f"{split} {len(table)} slices of {len(set(table.volumes.tolist()))} volumes"
            f" of {len(set(table.subjects.tolist()))} subjects"
            for split, table in tables.items()
        ),
    )
    return prepared


def _salted(lists: Mapping[str, Sequence[str]], salt: str) -> dict[str, list[str]]:
    return {s: sorted(salted(n, salt) for n in names) for s, names in lists.items()}


def _warn_of_bad(path: Path, reason: str) -> None:
    log.warning("left out %s: %s", path, reason)


def _warn_of_small(volumes: Sequence[Volume], size: int) -> None:
    """Counts slices that the prepared grid blows up to more than twice their sides."""
    small = [volume for volume in volumes if 2 * max(volume.shape[1:]) < size]
    if small:
        height, width = min(volume.shape[1:] for volume in small)
        log.warning(
            "%d of %d volumes have slices of less than half of data.size=%d, such as "
            "%dx%d. They hold no detail of that size: give a smaller "
            "--config.data.size",
            len(small),
            len(volumes),
            size,
            height,
            width,
        )


def _printable(volume: Volume) -> Volume:
    names = ("key", "subject", "contrast", "study", "folder")
    return dataclasses.replace(
        volume, **{name: printable(getattr(volume, name)) for name in names}
    )


def _records(
    splits: Splits, stored: Mapping[str, Stored], *, check: bool
) -> dict[str, list[SliceRecord]]:
    """The slices of every split, in the order of their volumes' keys."""
    return {
        split: [
            SliceRecord(
                v.key, v.subject, v.contrast, v.study, i, v.shape[0], digest, v.spacing
            )
            for v in members
            for i, digest in read_index(stored[v.key], check=check)
        ]
        for split, members in splits.items()
    }


def _key(
    records: Mapping[str, Sequence[SliceRecord]], stored: Mapping[str, Stored]
) -> str:
    content = {
        split: [
            # the distance of slices is no part of it: equal pixels are equal data
            [*dataclasses.astuple(record)[:-1], stored[record.volume].folder.name]
            for record in members
        ]
        for split, members in records.items()
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _companions_key(beside: Mapping[tuple[str, str], Stored]) -> str | None:
    rows = sorted([*names, one.folder.name] for names, one in beside.items())
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest() if rows else None
