"""What several files of tests begin with."""

from __future__ import annotations

import pytest

from tests.data_fixtures import fastmri_root


@pytest.fixture
def cache(tmp_path):
    """A cache folder that is not there yet."""
    return tmp_path / "cache"


@pytest.fixture
def root(tmp_path):
    """A small data set in the layout of fastMRI."""
    return fastmri_root(tmp_path / "data")
