"""Runtime errors become one line that says what to do; others pass."""

from __future__ import annotations

import jax
import pytest

from daasr_jax.errors import ResourceError
from daasr_jax.runtime import failures

OOM = "RESOURCE_EXHAUSTED: Out of memory while trying to allocate 9663676416 bytes."
GLOO = "Gloo all-reduce failed: Connection closed by peer [127.0.0.1]:4321"


def raised(text, kind=jax.errors.JaxRuntimeError):
    with failures.explained():
        raise kind(text)


def test_memory():
    with pytest.raises(ResourceError, match=r"E605.*9663676416.*accumulate") as error:
        raised(f"{OOM}\nmore lines\n")
    assert error.value.exit_code == 6
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("kind", [jax.errors.JaxRuntimeError, ValueError, RuntimeError])
def test_lost_process(kind, monkeypatch):
    with pytest.raises(kind):
        raised(GLOO, kind)  # alone there is no other process to lose
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(ResourceError, match=r"E608.*lost another.*resume"):
        raised(GLOO, kind)


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        (jax.errors.JaxRuntimeError, "INTERNAL: a bug"),
        (ValueError, "no connection of the shapes"),
        (RuntimeError, "aborted"),
    ],
)
def test_anything_else_passes(kind, text, monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(kind, match=text):
        raised(text, kind)


class Source:
    closed = False

    def __init__(self, values):
        self._values = iter(values)

    def __iter__(self):
        return self

    def __next__(self):
        value = next(self._values)
        if isinstance(value, Exception):
            raise value
        return value

    def close(self):
        self.closed = True


def test_readers_are_closed_at_the_end():
    source = Source([1, 2])
    assert list(failures.reading(source)) == [1, 2]
    assert source.closed
