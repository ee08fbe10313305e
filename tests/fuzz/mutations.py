"""What may have happened to a file: to bits, bytes, blocks and values of JSON.

A mutation is drawn without the file and applied to it. Places are parts of its length.
"""

from __future__ import annotations

import dataclasses
import json
import struct
from typing import Any

from hypothesis import strategies as st

# Numbers at the ends of what fields of files hold.
_NUMBERS = (
    *(0, 1, 2, 3, 7, 8, 16, 127, 128, 255, 256, 348, 540, 1024, 32767, 65535),
    *(2**24, 2**29, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**63 - 1, 2**64 - 1),
)
_FORMS = ("<B", "<H", ">H", "<I", ">I", "<Q", ">Q", "<f", "<d")
_NUMBERS_OF_FLOATS = (0.0, -1.0, 1e-40, 1e38, float("nan"), float("inf"))
_KINDS = (
    *("flip",) * 4,
    *("number",) * 3,
    *("byte", "cut", "remove", "repeat", "zero", "swap", "insert"),
)
_WHOLE = 2**32


@dataclasses.dataclass(frozen=True)
class Edit:
    """One change of a file's bytes.

    Attributes:
        kind: One of `_KINDS`.
        near: Its place lies in the first 1024 bytes, where most headers are.
        at: Place, as a part of `_WHOLE`.
        to: Another place, likewise.
        number: Decides the bit, the value or the length.
        form: Of a number, as in `struct`.
    """

    kind: str
    near: bool
    at: int
    to: int
    number: int
    form: str

    def __call__(self, data: bytes) -> bytes:
        """The changed bytes."""
        size = len(data)
        if not size:
            return data
        reach = min(size, 1024) if self.near else size
        at = self.at * reach // _WHOLE
        length = 1 + self.number % 64
        if self.kind == "flip":
            return self._with(data, at, bytes([data[at] ^ (1 << self.number % 8)]))
        if self.kind == "byte":
            return self._with(data, at, bytes([self.number % 256]))
        if self.kind == "number":
            return self._with(data, at, self._packed())
        if self.kind == "cut":
            return data[:at]
        if self.kind == "remove":
            return data[:at] + data[at + length :]
        if self.kind == "repeat":
            return data[:at] + data[at : at + length] * 2 + data[at + length :]
        if self.kind == "zero":
            return self._with(data, at, bytes(length * 8))
        if self.kind == "insert":
            return data[:at] + bytes([self.number % 256]) * length + data[at:]
        other = self.to * size // _WHOLE
        block = data[other : other + length]
        return self._with(self._with(data, other, data[at : at + length]), at, block)

    def _packed(self) -> bytes:
        if self.form in ("<f", "<d"):
            floats = _NUMBERS_OF_FLOATS
            return struct.pack(self.form, floats[self.number % len(floats)])
        size = struct.calcsize(self.form)
        number = _NUMBERS[self.number % len(_NUMBERS)] % 2 ** (8 * size)
        return struct.pack(self.form, number)

    @staticmethod
    def _with(data: bytes, at: int, new: bytes) -> bytes:
        return data[:at] + new[: len(data) - at] + data[at + len(new) :]


@dataclasses.dataclass(frozen=True)
class Replace:
    """One value of a JSON file is another one, absent, or named otherwise.

    Attributes:
        at: Which of the values, as a part of `_WHOLE`.
        value: The new one; the text `absent` takes it out.
    """

    at: int
    value: Any

    def __call__(self, data: bytes) -> bytes:
        """The changed file; what is no JSON stays as it is."""
        try:
            content = json.loads(data)
        except (ValueError, RecursionError):
            return data
        places = list(_places(content))
        parent, key = places[self.at * len(places) // _WHOLE]
        if parent is None:
            content = self.value
        elif self.value == "absent":
            del parent[key]
        elif self.value == "renamed" and isinstance(parent, dict):
            parent[f"{key}x"] = parent.pop(key)
        else:
            parent[key] = self.value
        return json.dumps(content).encode()


def _places(content: Any, parent: Any = None, key: Any = None):
    yield parent, key
    if isinstance(content, dict):
        for name, value in content.items():
            yield from _places(value, content, name)
    elif isinstance(content, list):
        for number, value in enumerate(content):
            yield from _places(value, content, number)


@dataclasses.dataclass(frozen=True)
class Deep:
    """The whole file is one bracket in another, many times."""

    depth: int

    def __call__(self, data: bytes) -> bytes:
        """The changed file."""
        return b"[" * self.depth + b"]" * self.depth


# Bytes are drawn evenly; of integers small ones are drawn more often.
_PLACES = st.binary(min_size=4, max_size=4).map(int.from_bytes)
EDITS = st.builds(
    Edit,
    kind=st.sampled_from(_KINDS),
    near=st.booleans(),
    at=_PLACES,
    to=_PLACES,
    number=st.binary(min_size=2, max_size=2).map(int.from_bytes),
    form=st.sampled_from(_FORMS),
)
_VALUES = st.sampled_from(
    (
        *(None, True, False, 0, -1, 1, 3, 2**31, 2**70, -0.5, 1e308, float("nan")),
        *(float("inf"), "", "x", "é\udc80", "\n", "../../x", "0", [], {}, [[]], [None]),
        *({"x": 1}, ["x", "x"], "absent", "absent", "renamed"),
    )
)
_REPLACED = st.one_of(
    st.builds(Replace, at=_PLACES, value=_VALUES),
    st.builds(Replace, at=_PLACES, value=_VALUES),
    st.builds(Replace, at=_PLACES, value=_VALUES),
    EDITS,
    st.builds(Deep, st.sampled_from((10, 900, 100_000))),
)


def mutations(*, json_files: bool) -> st.SearchStrategy[tuple[int, int, list[Any]]]:
    """Which of the cases, which of its files, and one to four changes of it."""
    changes = _REPLACED if json_files else EDITS
    few = st.lists(changes, min_size=1, max_size=1)
    many = st.lists(changes, min_size=2, max_size=4)
    return st.tuples(_PLACES, _PLACES, st.one_of(few, few, many))


def chosen(number: int, items: list[Any]) -> Any:
    """The item that a place stands for."""
    return items[number * len(items) // _WHOLE]
