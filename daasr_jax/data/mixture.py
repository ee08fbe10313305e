"""The track `mixed`: good, poor, damaged and absent references, by given shares.

A network that met one kind of reference only cannot learn how far to trust one.
"""

import dataclasses

import numpy as np

from daasr_jax.data.corruption import corrupted
from daasr_jax.data.pairs import Pairing, draw_pairing, sealed
from daasr_jax.data.references import (
    ReferenceRule,
    aligned_candidates,
    number_of,
    several,
)
from daasr_jax.data.settings import ALIGNED, Shares
from daasr_jax.data.sources.base import log
from daasr_jax.data.table import SliceTable

# What is taken where a slice has none of a kind.
_INSTEAD = {"contrast": "neighbour", "neighbour": "stranger"}
_ATTEMPTS = 8


@dataclasses.dataclass(frozen=True)
class Drawn:
    """The reference of one sample.

    Attributes:
        kind: A field of `Shares`, or the track it is of.
        reference: Index in the table of the slice it is made from; None for `none`.
        damage: Seed of the damage; None but for `corrupted`.
        beside: Index of the target, where the reference is another contrast at its
            place; else None.
    """

    kind: str
    reference: int | None
    damage: int | None = None
    beside: int | None = None


class Mixture:
    """The references of the track `mixed`: a draw of kind, slice and damage.

    A slice without another contrast has a neighbour instead, and one without a
    neighbour a stranger. A slice with the pixels of its target is never drawn.

    Args:
        table: The split.
        shares: How often each kind is drawn.
        exclude: What a stranger may not share with its target.
        distance_mm: Of a neighbour from its target; 0 takes the next slice.

    Raises:
        ConfigError: For an unknown `exclude` (E211), or a distance where that of the
            slices is not known (E216).
        DataError: If a slice has no stranger (E312), or one with its own pixels
            (E333).
    """

    def __init__(
        self,
        table: SliceTable,
        *,
        shares: Shares,
        exclude: str = "subject",
        distance_mm: float = 0.0,
    ) -> None:
        self._table, self._shares = table, shares
        self._strangers = ReferenceRule(table, exclude=exclude)
        self._beside = {
            kind: aligned_candidates(table, kind, distance_mm=distance_mm)
            for kind in ALIGNED
        }

    def draw(self, i: int, *, seed: int, epoch: int | str) -> Drawn:
        """The reference of slice i: a function of seed, epoch and names only."""
        text = f"{seed}/{epoch}/{self._table.keys[i]}/mixed"
        rng = np.random.default_rng(number_of(text))
        kind = _chosen(self._shares.of_all, rng)
        if kind == "none":
            return Drawn(kind, None)
        of = _chosen(self._shares.of_images, rng) if kind == "corrupted" else kind
        of = self.available(i, of)
        if of == "stranger":
            reference = self._strangers.draw(i, seed=seed, epoch=epoch)
        else:
            reference = int(rng.choice(self._beside[of][i]))
        beside = i if of == "contrast" else None
        if kind == "corrupted":
            return Drawn(kind, reference, int(rng.integers(2**63)), beside)
        return Drawn(of, reference, None, beside)

    def draw_several(
        self, i: int, *, count: int, seed: int, epoch: int | str
    ) -> list[Drawn]:
        """`count` references of slice i, each of its own kind, first that of `draw`.

        A slice that was drawn already is drawn again only where few others are found.
        """
        out = [self.draw(i, seed=seed, epoch=epoch)]
        for k in range(1, count):
            used = {drawn.reference for drawn in out} - {None}
            tries = (
                self.draw(i, seed=seed, epoch=f"{epoch}/{k}.{n}")
                for n in range(_ATTEMPTS)
            )
            last = self.draw(i, seed=seed, epoch=f"{epoch}/{k}")
            out.append(next((d for d in tries if d.reference not in used), last))
        return out

    def available(self, i: int, kind: str) -> str:
        """The kind that slice i has in place of one that it lacks."""
        while kind != "stranger" and not len(self._beside[kind][i]):
            kind = _INSTEAD[kind]
        return kind

    def describe(self) -> str:
        """What the shares come to on this split, in words."""
        count = len(self._table)
        total: dict[str, float] = {}
        for kind, share in self._shares.of_all.items():
            for i in range(count):
                if kind in ("none", "corrupted"):
                    found = kind
                else:
                    found = self.available(i, kind)
                total[found] = total.get(found, 0.0) + share / count
        return ", ".join(f"{100 * v:.0f} % {k}" for k, v in total.items() if v)


def tracks(table: SliceTable) -> list[dict[str, str]]:
    """The settings `track` and `aligned` of every pure track that a split has.

    Args:
        table: The split.
    """
    found = [{"track": "random", "aligned": "neighbour"}]
    for kind in ALIGNED:
        if any(map(len, aligned_candidates(table, kind))):
            found.append({"track": "aligned", "aligned": kind})
    return found


def reference_image(table: SliceTable, drawn: Drawn) -> np.ndarray:
    """The reference as the network sees it, (size, size, 1) float32 in [0, 1]."""
    if drawn.reference is None:
        return np.zeros((table.size, table.size, 1), np.float32)
    if drawn.beside is None:
        image = table.image(drawn.reference)
    else:
        image = table.other_contrast(drawn.beside, drawn.reference)
    if drawn.damage is None:
        return image
    return corrupted(image, np.random.default_rng(drawn.damage))


def alternating(
    table: SliceTable,
    *,
    exclude: str = "subject",
    distance_mm: float = 0.0,
    count: int = 1,
    seed: int = 0,
) -> Pairing:
    """The pairing that validates a run on the track `mixed`: fixed, half and half.

    In the order of their names every other slice, from the first, has strangers, and
    the others have neighbours where there are some.

    Args:
        table: The split.
        exclude: What a stranger may not share with its target.
        distance_mm: Of a neighbour from its target; 0 takes the next slice.
        count: Number of references of each slice.
        seed: Draws the references.

    Raises:
        ConfigError: For an unknown `exclude` (E211), or a distance where that of the
            slices is not known (E216).
        DataError: If a slice has no stranger (E312), or one with its own pixels
            (E333).
    """
    pairing = draw_pairing(table, exclude=exclude, count=count, seed=seed)
    beside = aligned_candidates(table, "neighbour", distance_mm=distance_mm)
    drawn = np.column_stack([pairing.references, pairing.further])
    near = [
        i
        for i in sorted(range(len(table)), key=table.keys.__getitem__)[1::2]
        if len(beside[i])
    ]
    for i in near:
        text = f"{seed}/{table.keys[i]}/alternating"
        first = int(beside[i][number_of(text) % len(beside[i])])
        drawn[i] = several(first, beside[i], count=count, text=text)
    log.info(
        "%s: %d slices have a stranger for a reference, %d a neighbour",
        table.name,
        len(table) - len(near),
        len(near),
    )
    return sealed(
        dataclasses.replace(
            pairing,
            track="mixed",
            aligned="neighbour",
            distance_mm=distance_mm,
            references=drawn[:, 0],
            further=drawn[:, 1:],
        )
    )


def _chosen(shares: dict[str, float], rng: np.random.Generator) -> str:
    """One of the names, each as often as its share; the shares sum to 1."""
    place, rising = rng.random(), 0.0
    for name, share in shares.items():
        rising += share
        if place < rising:
            return name
    return max(shares, key=shares.__getitem__)  # the sum was rounded below 1
