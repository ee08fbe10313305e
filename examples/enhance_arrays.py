"""Enhances a T2 by a T1 on arrays, and shows what came of it.

    python examples/enhance_arrays.py T2.nii.gz T1.nii.gz [WEIGHTS]

Both lie on one grid here, the T1 with twice to four times the pixels, as registered
research data often do; other scans go through `enhance.py`, which places them.
"""

import sys

import nibabel as nib
import numpy as np

import daasr_jax

t2, t1 = (np.moveaxis(nib.load(p).get_fdata(), 2, 0) for p in sys.argv[1:3])
weights = sys.argv[3] if len(sys.argv) > 3 else "x4"

made = daasr_jax.enhance(t2, ref=t1, weights=weights)
alone = daasr_jax.enhance(t2, ref=None, weights=weights)

print(f"{t2.shape} -> {made.sr.shape}, values up to {made.sr.max():.4g}")
print(f"confidence: {np.percentile(made.confidence, [5, 50, 95]).round(3)}")
change = np.abs(made.sr - alone.sr)
print(f"the reference changed the result by {change.mean() / t2.max():.2%} on average")
