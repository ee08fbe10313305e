"""Files of safetensors: a JSON header and the bytes of the arrays, nothing that runs.

The form: 8 bytes, little-endian, the length of the header; the header, `{name: {dtype,
shape, data_offsets}, "__metadata__": {key: text}}`; the arrays one after the other,
row-major and little-endian. See https://github.com/huggingface/safetensors.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

import numpy as np

_DTYPES = {"F16": np.dtype("<f2"), "F32": np.dtype("<f4"), "I32": np.dtype("<i4")}
_LONGEST = 2**24  # bytes of a header that is read


def pack(arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> bytes:
    """The bytes of a file.

    Args:
        arrays: Name -> array, float16, float32 or int32.
        metadata: Texts beside them.

    Raises:
        ValueError: If an array has another type.
    """
    names = {dtype: name for name, dtype in _DTYPES.items()}
    header: dict[str, object] = {"__metadata__": dict(metadata)}
    parts: list[bytes] = []
    at = 0
    for name, array in sorted(arrays.items()):
        if array.dtype not in names:
            raise ValueError(f"{name} is {array.dtype}; known are {[*_DTYPES]}.")
        data = np.ascontiguousarray(array).tobytes()
        header[name] = {
            "dtype": names[array.dtype],
            "shape": list(array.shape),
            "data_offsets": [at, at + len(data)],
        }
        parts.append(data)
        at += len(data)
    text = json.dumps(header, sort_keys=True).encode()
    text += b" " * (-len(text) % 8)
    return b"".join([len(text).to_bytes(8, "little"), text, *parts])


def unpack(data: bytes) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Arrays and texts of a file's bytes.

    Raises:
        ValueError: If they are no such file, or not all of one.
    """
    length = int.from_bytes(data[:8], "little")
    if len(data) < 8 or not 2 <= length <= min(_LONGEST, len(data) - 8):
        raise ValueError("it has no header of safetensors")
    try:
        header = json.loads(data[8 : 8 + length])
        metadata = header.pop("__metadata__", {})
        body = memoryview(data)[8 + length :]
        arrays = {name: _array(entry, body) for name, entry in header.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"its header does not fit its content ({error})") from None
    return arrays, metadata


def _array(entry: Mapping[str, object], body: memoryview) -> np.ndarray:
    begin, end = entry["data_offsets"]  # pyright: ignore
    if not 0 <= begin <= end <= len(body):
        raise ValueError("an array ends behind the file")
    kind = _DTYPES[entry["dtype"]]  # pyright: ignore
    return np.frombuffer(body[begin:end], kind).reshape(entry["shape"])  # pyright: ignore
