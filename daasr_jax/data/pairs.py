"""The fixed references of an evaluation: drawn once, written down, read again."""

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from daasr_jax.data.content import write_json
from daasr_jax.data.pseudonyms import Names
from daasr_jax.data.references import ReferenceRule
from daasr_jax.data.table import SliceTable
from daasr_jax.errors import DataError
from daasr_jax.files import read_json


@dataclasses.dataclass(frozen=True)
class Pairing:
    """The reference of every slice of a split, or several.

    Attributes:
        track: `random`, `aligned` or, to validate, `mixed`.
        exclude: What target and reference may not share (track `random`).
        seed: The seed it was drawn with.
        references: (N,) int64, index of the reference in the same table.
        sha256: Of the canonical JSON of the file with all names shown, hexadecimal:
            equal hashes are equal pairs.
        aligned: `neighbour` or `contrast` (track `aligned`).
        keys: The N names of the table's slices, in its order.
        distance_mm: That neighbours were asked for; 0 for the next slice.
        further: (N, r - 1) int64, the references of each slice after the first.
    """

    track: str
    exclude: str
    seed: int
    references: np.ndarray
    sha256: str
    aligned: str
    keys: tuple[str, ...]
    distance_mm: float = 0.0
    further: np.ndarray = dataclasses.field(
        default_factory=lambda: np.empty((0, 0), np.int64)
    )

    @property
    def count(self) -> int:
        """Number r of references of a slice."""
        return 1 + self.further.shape[1]

    @property
    def of_contrasts(self) -> bool:
        """Whether the references are other contrasts at the place of their targets."""
        return (self.track, self.aligned) == ("aligned", "contrast")

    def all_of(self, i: int) -> list[int]:
        """The r references of slice i, by their index."""
        further = self.further[i].tolist() if self.further.size else []
        return [int(self.references[i]), *further]

    def save(self, path: str | Path, labels: Sequence[str] | None = None) -> None:
        """Writes the pairing as JSON: the settings and [target, reference] names.

        Args:
            path: The file.
            labels: Written for the N names, see `Names.slices`; the names where None.
        """
        content = _content(self, labels)
        write_json(Path(path), {**content, "sha256": self.sha256})


def draw_pairing(
    table: SliceTable,
    *,
    track: str = "random",
    exclude: str = "subject",
    aligned: str = "neighbour",
    distance_mm: float = 0.0,
    count: int = 1,
    seed: int = 0,
) -> Pairing:
    """The evaluation pairing: the fixed references of each slice of a split.

    It depends on the seed and the names of the slices, not on their order.

    Args:
        table: The split.
        track: `random` or `aligned`.
        exclude: What target and reference may not share, for `random`.
        aligned: `neighbour` or `contrast`, for `aligned`.
        distance_mm: Of a neighbour from its target; 0 takes the next slice.
        count: Number r of references of each slice; the first is that of r = 1.
        seed: Draws the references.

    Raises:
        ConfigError: For an unknown value (E211), or a distance where that of the
            slices is not known (E216).
        DataError: If a slice has no possible reference (E312), or one with its own
            pixels (E333).
    """
    rule = ReferenceRule(
        table, track=track, exclude=exclude, aligned=aligned, distance_mm=distance_mm
    )
    drawn = np.array(
        [rule.draw_several(i, count=count, seed=seed) for i in range(len(table))],
        np.int64,
    )
    return sealed(
        Pairing(
            track=track,
            exclude=exclude,
            seed=seed,
            references=drawn[:, 0],
            sha256="",
            aligned=aligned,
            keys=tuple(table.keys),
            distance_mm=distance_mm,
            further=drawn[:, 1:],
        )
    )


def sealed(pairing: Pairing) -> Pairing:
    """The pairing with the hash of its content."""
    return dataclasses.replace(pairing, sha256=_sha256(_content(pairing)))


def load_pairing(
    path: str | Path, table: SliceTable, names: Names | None = None
) -> Pairing:
    """Reads a saved pairing and checks it against its hash, the split and its rule.

    Args:
        path: The file.
        table: The split.
        names: By which it was saved; None where it has the names as they are.

    Raises:
        DataError: If the file cannot be read, was changed, belongs to other slices or
            pairs a slice with one that its rule excludes (E313).
    """
    again = f"delete {path} to have the references drawn again"
    try:
        content = read_json(Path(path))
        stated = content.pop("sha256")
        pairs = {target: [*map(str, others)] for target, *others in content["pairs"]}
        settings = {k: content[k] for k in ("track", "exclude", "seed", "aligned")}
        settings["distance_mm"] = content.get("distance_mm", 0.0)
        float(settings["distance_mm"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            "E313", f"{path} is no pairing file ({error}); {again}"
        ) from None
    changed = DataError("E313", f"{path} was changed: its SHA-256 differs; {again}")
    if names is None and _sha256(content) != stated:
        raise changed
    labels = table.keys if names is None else names.slices(table)
    if set(pairs) != set(labels) or len(content["pairs"]) != len(pairs):
        raise DataError(
            "E313",
            f"{path} pairs {len(pairs)} slices that are not the {len(table)} of split "
            f"{table.name!r}; {again}",
        )
    place = {label: i for i, label in enumerate(labels)}
    drawn = [[place.get(name, -1) for name in pairs[label]] for label in labels]
    seed = settings.pop("seed")
    rule = ReferenceRule(table, **settings)
    for i, others in enumerate(drawn):
        for name, k in zip(pairs[labels[i]], others, strict=True):
            if k < 0 or not rule.allows(i, k):
                raise DataError(
                    "E313",
                    f"{path} pairs {labels[i]} with {name}, which its rule "
                    f"excludes; {again}",
                )
    if len({len(others) for others in drawn}) != 1 or not drawn[0]:
        raise DataError(
            "E313", f"{path} gives its slices unlike numbers of references; {again}"
        )
    references = np.array(drawn, np.int64)
    pairing = Pairing(
        **settings,
        seed=seed,
        references=references[:, 0],
        further=references[:, 1:],
        sha256=stated,
        keys=tuple(table.keys),
    )
    if names is not None and _sha256(_content(pairing)) != stated:
        raise changed
    return pairing


def _content(pairing: Pairing, labels: Sequence[str] | None = None) -> dict[str, Any]:
    """What is written and hashed; what was not asked for is no part of it."""
    labels = pairing.keys if labels is None else labels
    pairs = [
        [label, *(labels[k] for k in pairing.all_of(i))]
        for i, label in enumerate(labels)
    ]
    distance = {"distance_mm": pairing.distance_mm} if pairing.distance_mm else {}
    return distance | {
        "track": pairing.track,
        "exclude": pairing.exclude,
        "aligned": pairing.aligned,
        "seed": pairing.seed,
        "pairs": sorted(pairs),
    }


def _sha256(content: dict[str, Any]) -> str:
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()
