"""Enhances a scan: `python enhance.py --input T2.nii --ref T1.nii --out X.nii`."""

import sys

from daasr_jax.enhance import main

if __name__ == "__main__":
    sys.exit(main())
