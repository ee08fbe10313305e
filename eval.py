"""Evaluates a run: `python eval.py --workdir RUN [--split test]`."""

from daasr_jax.eval import main

if __name__ == "__main__":
    main()
