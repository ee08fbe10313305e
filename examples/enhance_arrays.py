"""Enhances a T2 by a T1 as arrays, and shows what the reference was worth.

Both files have the same slices along their third axis, and the T1 two to four times the
pixels in each. Scans on other grids go through `enhance.py`, which places them.
"""

import argparse

import nibabel as nib
import numpy as np

import daasr_jax

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("t2", help="NIfTI")
parser.add_argument("t1", help="NIfTI")
parser.add_argument("--weights", default="x4", help="a released name, or a file")
given = parser.parse_args()
t2, t1 = (np.moveaxis(nib.load(f).get_fdata(), 2, 0) for f in (given.t2, given.t1))

made = daasr_jax.enhance(t2, ref=t1, weights=given.weights)
alone = daasr_jax.enhance(t2, ref=None, weights=given.weights)

print(f"{t2.shape} -> {made.sr.shape}, values up to {made.sr.max():.4g}")
print(f"confidence: {np.percentile(made.confidence, [5, 50, 95]).round(3)}")
change = np.abs(made.sr - alone.sr).mean() / t2.max()
print(f"the reference changed the result by {change:.2%} on average")
