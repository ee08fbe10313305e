"""Names of people and of their files as salted hashes, for what leaves the machine."""

import dataclasses
import hashlib

from daasr_jax.data.sources.forms import is_contrast
from daasr_jax.data.table import SliceTable

_SHORT, _SHORTER = 10, 8  # hexadecimal digits: of a subject, of one of its volumes


def salted(name: str, salt: str) -> str:
    """SHA-256 of salt and name, hexadecimal."""
    return hashlib.sha256(f"{salt}\0{name}".encode()).hexdigest()


@dataclasses.dataclass(frozen=True)
class Names:
    """How results name subjects, volumes and slices.

    One salt gives one name one hash, so results that share it can be compared. Words
    for a contrast that are in general use, such as `T2w` and `AXFLAIR`, stay.

    Attributes:
        salt: None shows all names as they are.

    Example:
        >>> Names("salt").subject("Jane Doe")
        'p22b7d4e868'
        >>> Names("salt").contrast("T2w"), Names("salt").contrast("Jane")
        ('T2w', '')
    """

    salt: str | None = None

    def subject(self, name: str) -> str:
        """`p` and ten digits."""
        return name if self.salt is None else f"p{salted(name, self.salt)[:_SHORT]}"

    def contrast(self, name: str) -> str:
        """The contrast where its word is in general use; else empty."""
        return name if self.salt is None or is_contrast(name) else ""

    def dataset(self, name: str) -> str:
        """Such as `nifti:openms`; of the user's own folder the layout alone."""
        layout = name.partition(":")[0]
        return name if self.salt is None or layout == "template" else layout

    def slice(self, table: SliceTable, i: int) -> str:
        """Slice i of a table, such as `p0123456789/T2w-01234567#012`."""
        if self.salt is None:
            return table.keys[i]
        volume = salted(str(table.volumes[i]), self.salt)[:_SHORTER]
        contrast = self.contrast(str(table.contrasts[i])) or "volume"
        subject = self.subject(str(table.subjects[i]))
        return f"{subject}/{contrast}-{volume}#{int(table.index[i]):03d}"

    def slices(self, table: SliceTable) -> list[str]:
        """All slices of a table, in its order."""
        return [self.slice(table, i) for i in range(len(table))]
