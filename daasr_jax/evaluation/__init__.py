"""Running a model over a split, statistics, tables and pictures."""
