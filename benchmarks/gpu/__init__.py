"""A short visit to a GPU, used to the second: see `benchmarks.gpu.__main__`."""
