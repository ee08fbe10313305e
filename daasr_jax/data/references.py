"""Which slices may be the reference of a slice: pure functions of seed and names.

Two tracks, which `mixture` mixes. `random`: any slice of the split that does not share
the subject (or, looser, the volume) with its target, each equally likely. `aligned`: a
slice of the same subject, either the neighbour in the same volume or the same place in
another contrast.
A slice with the pixels of its target is never drawn.
"""

import hashlib

import numpy as np

from daasr_jax.data.settings import ALIGNED, EXCLUDES, PURE_TRACKS
from daasr_jax.data.sources.base import log
from daasr_jax.data.table import SliceTable
from daasr_jax.errors import ConfigError, DataError

_EVALUATION = "evaluation"


class ReferenceRule:
    """The candidates of every slice of a table, and a draw among them.

    A slice with the pixels of the target, up to a factor, is no candidate on the track
    `random` where both are of one subject. Elsewhere it is an error.

    Args:
        table: The split.
        track: `random` or `aligned`.
        exclude: What target and reference may not share, for `random`.
        aligned: `neighbour` or `contrast`, for `aligned`.
        distance_mm: Of a neighbour from its target; 0 takes the next slice.

    Raises:
        ConfigError: For an unknown track, exclude or aligned value (E211), or a
            distance where that of the slices is not known (E216).
        DataError: If a slice has no candidate (E312), or one with its own pixels
            (E333).
    """

    def __init__(
        self,
        table: SliceTable,
        *,
        track: str = "random",
        exclude: str = "subject",
        aligned: str = "neighbour",
        distance_mm: float = 0.0,
    ) -> None:
        for name, value, known in (
            ("track", track, PURE_TRACKS),
            ("exclude", exclude, EXCLUDES),
            ("aligned", aligned, ALIGNED),
        ):
            if value not in known:
                raise ConfigError(
                    "E211",
                    f"reference.{name} is {value!r}; it must be one of "
                    f"{', '.join(known)}",
                )
        if not len(table):
            raise DataError(
                "E312",
                f"split {table.name!r} is empty, so nothing can be paired: "
                f"name subjects for it in data.subjects.{table.name}",
            )
        self._keys = table.keys
        self._several: list[np.ndarray] | None = None
        self._twins: dict[int, set[int]] = {}
        if track == "random":
            self._group(table, exclude)
            self._keep_twins_apart(table)
            return
        self._several = _candidates(table, aligned, distance_mm)
        if not all(map(len, self._several)):
            raise _lacking(table, self._several, aligned)
        for i, others in enumerate(self._several):
            for k in others[table.hashes[others] == table.hashes[i]]:
                if table.hashes[i]:
                    raise _same_pixels(table, i, int(k))

    def candidates(self, i: int) -> np.ndarray:
        """Indices that may be the reference of slice i, ordered by name.

        For `aligned="contrast"` these are one slice of every other contrast's volume.
        """
        if self._several is not None:
            return self._several[i]
        start, stop = self._start[i], self._stop[i]
        others = np.concatenate([self._order[:start], self._order[stop:]])
        twins = self._twins.get(i)
        return others[~np.isin(others, list(twins))] if twins else others

    def allows(self, i: int, reference: int) -> bool:
        """Whether this slice may be the reference of slice i."""
        if self._several is not None:
            return reference in self._several[i]
        twins = self._twins.get(i, ())
        return bool(self._groups[i] != self._groups[reference]) and (
            reference not in twins
        )

    def draw(self, i: int, *, seed: int, epoch: int | str = _EVALUATION) -> int:
        """The reference of slice i: a function of seed, epoch and names only."""
        number = number_of(f"{seed}/{epoch}/{self._keys[i]}")
        if self._several is not None or i in self._twins:
            among = self.candidates(i)
            return int(among[number % len(among)])
        start, stop = int(self._start[i]), int(self._stop[i])
        place = number % (len(self._order) - (stop - start))
        return int(self._order[place if place < start else place + stop - start])

    def draw_several(
        self, i: int, *, count: int, seed: int, epoch: int | str = _EVALUATION
    ) -> list[int]:
        """`count` references of slice i, the first that of `draw`.

        They are different slices where there are enough candidates; else they repeat.
        """
        first = self.draw(i, seed=seed, epoch=epoch)
        if count == 1:
            return [first]
        text = f"{seed}/{epoch}/{self._keys[i]}/more"
        return several(first, self.candidates(i), count=count, text=text)

    def _group(self, table: SliceTable, exclude: str) -> None:
        groups = {
            "subject": table.subjects,
            "volume": table.volumes,
            "slice": np.array(table.keys),
        }[exclude]
        self._groups = groups
        # sorted by group, then name: what a slice excludes is one run of this order
        self._order = np.lexsort((np.array(table.keys), groups))
        ordered = groups[self._order]
        self._start = np.searchsorted(ordered, groups, side="left")
        self._stop = np.searchsorted(ordered, groups, side="right")
        if len(table) == int(self._stop[0] - self._start[0]):
            looser = {"subject": "volume", "volume": "slice"}.get(exclude)
            remedy = (
                f"set --config.reference.exclude={looser} or add subjects"
                if looser
                else "add subjects"
            )
            raise DataError(
                "E312",
                f"split {table.name!r} holds one {exclude} ({groups[0]}): no reference "
                f"from another {exclude} is possible; {remedy}",
            )

    def _keep_twins_apart(self, table: SliceTable) -> None:
        """Notes the candidates of each slice that have its pixels."""
        order = np.argsort(table.hashes, kind="stable")
        _, starts = np.unique(table.hashes[order], return_index=True)
        for members in np.split(order, starts[1:]):
            if len(members) < 2 or not table.hashes[members[0]]:
                continue
            for i in members.tolist():
                twins = {k for k in members.tolist() if self.allows(i, k)}
                for k in sorted(twins):
                    if table.subjects[k] != table.subjects[i]:
                        raise _same_pixels(table, i, k)
                if twins:
                    self._twins[i] = twins
                if not len(self.candidates(i)):
                    raise DataError(
                        "E312",
                        f"every slice that could be the reference of {table.keys[i]} "
                        f"in split {table.name!r} has its pixels: add subjects",
                    )


def number_of(text: str) -> int:
    """The first 64 bits of a text's SHA-256."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little")


def several(first: int, candidates: np.ndarray, *, count: int, text: str) -> list[int]:
    """`count` of the candidates, `first` and others drawn by a text; they may repeat.

    They repeat only where there are fewer candidates.
    """
    rng = np.random.default_rng(number_of(text))
    order = [first, *rng.permutation(candidates[candidates != first]).tolist()]
    return [order[k % len(order)] for k in range(count)]


def _by_volume(table: SliceTable) -> dict[str, np.ndarray]:
    """Indices of each volume's slices, in the order of the slices."""
    order = np.lexsort((table.index, table.volumes))
    names, starts = np.unique(table.volumes[order], return_index=True)
    return dict(zip(names.tolist(), np.split(order, starts[1:]), strict=True))


def _neighbours(table: SliceTable, distance_mm: float = 0.0) -> list[np.ndarray]:
    """The next kept slices on both sides, or those nearest to a distance."""
    out: list[np.ndarray] = [np.empty(0, np.int64)] * len(table)
    for volume, members in _by_volume(table).items():
        spacing = float(table.spacing[members[0]])
        if distance_mm and not np.isfinite(spacing):
            raise ConfigError(
                "E216",
                f"reference.distance_mm is {distance_mm:g}, but {volume} does not tell "
                "how far its slices lie apart: give 0, which takes the next slice",
            )
        for k, i in enumerate(members):
            if distance_mm:
                apart = np.abs(table.index[members] - table.index[i]) * spacing
                off = np.where(apart > 0, np.abs(apart - distance_mm), np.inf)
                # as far on both sides, but for the rounding of the header
                near = np.flatnonzero(off <= off.min() + 1e-3 * spacing)
                out[i] = members[near] if len(members) > 1 else out[i]
            else:
                out[i] = members[[j for j in (k - 1, k + 1) if 0 <= j < len(members)]]
    return out


def _other_contrasts(table: SliceTable) -> list[np.ndarray]:
    """The slice nearest by the headers, or by its relative number, of each contrast."""
    members = _by_volume(table)
    first = {volume: int(indices[0]) for volume, indices in members.items()}
    out: list[np.ndarray] = [np.empty(0, np.int64)] * len(table)
    place = (table.index + 0.5) / table.n_slices
    for volume, indices in members.items():
        own = first[volume]
        others = {
            name: members[name]
            for name, i in first.items()
            if table.subjects[i] == table.subjects[own]
            and table.contrasts[i] != table.contrasts[own]
            and (not table.studies[own] or table.studies[i] == table.studies[own])
        }
        for i in indices:
            nearest = []
            for name, there in others.items():
                companion = table.companions.get((volume, name))
                if companion is None:
                    apart = np.abs(place[there] - place[i])
                else:
                    at = companion.places[int(table.index[i])]
                    apart = np.abs(table.index[there] - at)
                nearest.append(there[np.argmin(apart)])
            out[i] = np.array(nearest, np.int64)
    return out


def _candidates(
    table: SliceTable, aligned: str, distance_mm: float = 0.0
) -> list[np.ndarray]:
    if aligned == "neighbour":
        return _neighbours(table, distance_mm)
    return _other_contrasts(table)


def aligned_candidates(
    table: SliceTable, aligned: str, *, distance_mm: float = 0.0
) -> list[np.ndarray]:
    """Indices that may be the aligned reference of each slice; for some there are none.

    A slice with the pixels of the target is left out.

    Args:
        table: The split.
        aligned: `neighbour` or `contrast`.
        distance_mm: Of a neighbour from its target; 0 takes the next slice.

    Raises:
        ConfigError: For a distance where that of the slices is not known (E216).
    """
    known, hashes = table.hashes != "", table.hashes
    return [
        others[~(known[i] & (hashes[others] == hashes[i]))]
        for i, others in enumerate(_candidates(table, aligned, distance_mm))
    ]


def distance_mm(table: SliceTable, targets: np.ndarray, others: np.ndarray) -> float:
    """Median distance of slices from others of their volumes, in mm; NaN if unknown.

    Args:
        table: The split.
        targets: (N,) indices in the table.
        others: (N,) indices of a slice of the same volume each.
    """
    apart = np.abs(table.index[targets] - table.index[others])
    found = (apart * table.spacing[targets])[np.isfinite(table.spacing[targets])]
    return float(np.median(found)) if found.size else float("nan")


def with_reference(table: SliceTable, *, aligned: str) -> SliceTable:
    """The slices of a split that have a reference on the track `aligned`.

    The others are left out as targets and as references, and counted in the log.

    Args:
        table: The split, not empty.
        aligned: `neighbour` or `contrast`.

    Raises:
        DataError: If no slice has a reference (E312).
    """
    left = table
    while True:
        candidates = _candidates(left, aligned)
        kept = [i for i, others in enumerate(candidates) if len(others)]
        if not kept:
            raise _lacking(left, candidates, aligned)
        if len(kept) == len(left):
            break
        left = left.only(kept)
    lost = sorted(set(table.volumes.tolist()) - set(left.volumes.tolist()))
    if lost:
        log.warning(
            "split %r: %d of %d volumes (%d of %d slices) have %s and are left out, "
            "the first %s",
            table.name,
            len(lost),
            len(set(table.volumes.tolist())),
            len(table) - len(left),
            len(table),
            _WITHOUT[aligned],
            lost[0],
        )
    return left


_WITHOUT = {"neighbour": "one slice only", "contrast": "no other contrast beside them"}


def _lacking(
    table: SliceTable, candidates: list[np.ndarray], aligned: str
) -> DataError:
    lacking = [i for i, others in enumerate(candidates) if not len(others)]
    volume, subject = table.volumes[lacking[0]], table.subjects[lacking[0]]
    count = len(set(table.volumes[lacking].tolist()))
    if aligned == "neighbour":
        return DataError(
            "E312",
            f"volume {volume} of split {table.name!r} has one slice, so none has a "
            f"neighbour ({count} such volumes): widen data.slice_first and "
            "data.slice_last or leave the subject out",
        )
    return DataError(
        "E312",
        f"subject {subject} has no other contrast beside {volume} in split "
        f"{table.name!r} ({count} such volumes): leave them out by data.subjects or "
        "data.contrasts, or set reference.aligned=neighbour",
    )


def _same_pixels(table: SliceTable, i: int, reference: int) -> DataError:
    return DataError(
        "E333",
        f"{table.keys[i]} (subject {table.subjects[i]}) and {table.keys[reference]} "
        f"(subject {table.subjects[reference]}) of split {table.name!r} hold the same "
        "pixels, and one would be the reference of the other: remove one of the "
        "files, or leave it out by data.contrasts or data.subjects",
    )
