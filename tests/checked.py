"""What checks the annotations of the package at run time, see `pyproject.toml`."""

import beartype

# An int is a float, as type checkers have it.
check = beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))
