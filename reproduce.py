"""Makes the paper's tables: `python reproduce.py --all --data CONFIG --workdir W`."""

import sys

from daasr_jax.reproduce import main

if __name__ == "__main__":
    sys.exit(main())
