"""Enhances a scan: `python enhance.py --input T2.nii.gz --ref T1.nii.gz --out X.nii`."""

import sys

from daasr_jax.enhance import main

if __name__ == "__main__":
    sys.exit(main())
