"""The slices of one split: what they are, and their images on demand."""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np

# A split that fits here stays decoded in memory after its first reading.
MEMORY_BUDGET_BYTES = 2 * 2**30


@dataclasses.dataclass(frozen=True)
class SliceRecord:
    """What is known of one slice without its image.

    Attributes:
        volume: Key of the volume.
        subject: The person.
        contrast: Such as `T1W`; empty where unknown.
        study: The visit; empty where unknown.
        index: Place of the slice in its volume, from 0.
        n_slices: Slices of the volume as stored, kept or not.
        sha256: Of the prepared pixels up to a factor, see `slices.slice_hash`; empty
            where the slice is nearly empty or not known.
        spacing: Distance of adjacent slices of the volume, in mm; NaN where unknown.
    """

    volume: str
    subject: str
    contrast: str
    study: str
    index: int
    n_slices: int
    sha256: str = ""
    spacing: float = math.nan

    @property
    def key(self) -> str:
        """Unique name of the slice, such as `patient01/study1_FLAIR#012`."""
        return f"{self.volume}#{self.index:03d}"


@dataclasses.dataclass(frozen=True)
class Companion:
    """Another contrast on the grid of a volume.

    Attributes:
        images: Number of a kept slice of the volume -> the other contrast at its
            place, (size, size, 1) float32.
        numbers: That number by the place of the slice in the volume.
        places: Where the middle of the slice lies among the other volume's slices.
    """

    images: Callable[[int], np.ndarray]
    numbers: Mapping[int, int]
    places: Mapping[int, float]


class SliceTable:
    """One split of a prepared set, in the order of its records.

    Attributes:
        name: `train`, `val` or `test`.
        size: Side of every image, in pixels.
        subjects: (N,) str, the person of each slice.
        volumes: (N,) str, the volume's key.
        contrasts: (N,) str.
        studies: (N,) str; empty where unknown.
        index: (N,) int64, place of the slice in its volume.
        n_slices: (N,) int64, slices of that volume, kept or not.
        keys: N unique names, `volume#012`.
        hashes: (N,) str, of the pixels up to a factor; empty where not known.
        spacing: (N,) float64, distance of adjacent slices of the volume in mm; NaN
            where unknown.
        companions: Other contrasts on the grids of volumes, by the keys of both.
        places: (N,) int64, place of each slice in the whole split, of which this table
            may have some slices only.
        people: (N,) int64, number of the subject in the whole split, from 1.
    """

    def __init__(
        self,
        name: str,
        records: Sequence[SliceRecord],
        size: int,
        read: Callable[[int], np.ndarray],
        *,
        companions: Mapping[tuple[str, str], Companion] | None = None,
        memory_budget: int = MEMORY_BUDGET_BYTES,
    ) -> None:
        """`read(i)` gives the image of record i, (size, size, 1) float32."""
        self.name, self.size = name, size
        self.volumes = np.array([r.volume for r in records], dtype=str)
        self.subjects = np.array([r.subject for r in records], dtype=str)
        self.contrasts = np.array([r.contrast for r in records], dtype=str)
        self.studies = np.array([r.study for r in records], dtype=str)
        self.index = np.array([r.index for r in records], dtype=np.int64)
        self.n_slices = np.array([r.n_slices for r in records], dtype=np.int64)
        self.keys = [r.key for r in records]
        self.hashes = np.array([r.sha256 for r in records], dtype=str)
        self.spacing = np.array([r.spacing for r in records], dtype=np.float64)
        self.companions = dict(companions or {})
        self.places = np.arange(len(records), dtype=np.int64)
        numbers = {s: n for n, s in enumerate(dict.fromkeys(self.subjects.tolist()), 1)}
        self.people = np.array([numbers[r.subject] for r in records], dtype=np.int64)
        self._records, self._read = records, read
        fits = len(records) * size * size * 4 <= memory_budget
        empty: list[np.ndarray | None] = [None] * len(records)
        self._memory = empty if fits else None

    def __len__(self) -> int:
        return len(self.keys)

    def __repr__(self) -> str:
        subjects = len(set(self.subjects.tolist()))
        return f"SliceTable({self.name!r}, {len(self)} slices, {subjects} subjects)"

    def only(self, kept: Sequence[int]) -> "SliceTable":
        """The table of some of the slices, in the order given."""

        def read(i: int) -> np.ndarray:
            return self._read(kept[i])

        records = [self._records[i] for i in kept]
        table = SliceTable(
            self.name, records, self.size, read, companions=self.companions
        )
        chosen = np.asarray(kept, np.int64)
        table.places, table.people = self.places[chosen], self.people[chosen]
        return table

    def image(self, i: int) -> np.ndarray:
        """The image of slice i, (size, size, 1) float32 in [0, 1], read-only.

        Raises:
            IndexError: If i is not in [0, N).
            DataError: If the record cannot be read (E311).
        """
        if not 0 <= i < len(self):
            raise IndexError(f"slice {i} of a split of {len(self)}.")
        if self._memory is None:
            return self._read(i)
        image = self._memory[i]
        if image is None:
            image = self._memory[i] = self._read(i)
        return image

    def other_contrast(self, i: int, reference: int) -> np.ndarray:
        """The volume of slice `reference` at the place of slice i, as `image`.

        It is resampled by the headers where there is a companion; else it is slice
        `reference` itself.

        Raises:
            DataError: If the record cannot be read (E311).
        """
        names = str(self.volumes[i]), str(self.volumes[reference])
        companion = self.companions.get(names)
        if companion is None:
            return self.image(reference)
        return companion.images(companion.numbers[int(self.index[i])])
