"""From files to training batches: sources, splits, prepared slices, pairs, batches."""

from daasr_jax.data.batches import (
    TrainingTriples,
    crop_to_multiple,
    steps_per_epoch,
    training_batches,
)
from daasr_jax.data.mixture import alternating, tracks
from daasr_jax.data.pairs import Pairing, draw_pairing, load_pairing
from daasr_jax.data.prepared import PreparedSet, prepare
from daasr_jax.data.pseudonyms import Names
from daasr_jax.data.references import ReferenceRule, distance_mm
from daasr_jax.data.settings import DataSettings, Shares
from daasr_jax.data.table import SliceTable

__all__ = [
    "DataSettings",
    "Names",
    "Pairing",
    "PreparedSet",
    "ReferenceRule",
    "Shares",
    "SliceTable",
    "TrainingTriples",
    "alternating",
    "crop_to_multiple",
    "distance_mm",
    "draw_pairing",
    "load_pairing",
    "prepare",
    "steps_per_epoch",
    "tracks",
    "training_batches",
]
