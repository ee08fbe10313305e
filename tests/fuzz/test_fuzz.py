"""Damaged files: each is refused in one line, or what is read is what is there.

A short form of `make fuzz`, with the same inputs every time.
"""

from __future__ import annotations

import pytest

from tests.fuzz.campaign import Campaign
from tests.fuzz.readers import READERS
from tests.fuzz.worker import Worker

SEED = 20
# Inputs of the short form, by what one takes.
SHORT = {
    "hdf5": 150,
    "nifti": 150,
    "dicom": 100,
    "npz": 150,
    "safetensors": 25,
    "vgg": 100,
    "split": 150,
    "pairing": 150,
    "config": 25,
    "checkpoints": 20,
    "prepared": 60,
}


@pytest.fixture(scope="module")
def worker():
    process = Worker()
    yield process
    process.close()


def check(name, folder, worker, inputs, seed):
    campaign = Campaign(name, folder, worker)
    campaign.check_undamaged()
    campaign.run(inputs, seed)
    assert sum(campaign.counts.values()) >= inputs
    assert campaign.counts["refused"], "nothing was damaged"


@pytest.mark.parametrize("name", READERS)
def test_short(name, tmp_path, worker):
    check(name, tmp_path, worker, SHORT[name], SEED)


@pytest.mark.full
@pytest.mark.parametrize("name", READERS)
def test_500(name, tmp_path, worker):
    check(name, tmp_path, worker, 500, SEED + 1)
