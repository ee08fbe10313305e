"""The examples in the docstrings run."""

from __future__ import annotations

import doctest
import importlib
import pkgutil

import pytest

import daasr_jax

MODULES = sorted(
    m.name for m in pkgutil.walk_packages(daasr_jax.__path__, "daasr_jax.")
)


@pytest.mark.parametrize("name", MODULES)
def test_examples(name):
    result = doctest.testmod(importlib.import_module(name))
    assert not result.failed, f"{result.failed} of {result.attempted} failed"


def test_there_are_examples():
    found = doctest.DocTestFinder().find(
        importlib.import_module("daasr_jax.matching.searching")
    )
    assert any(test.examples for test in found)
