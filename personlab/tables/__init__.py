"""Schemas of every table that crosses a stage border, and how they are checked, written and read."""

from personlab.tables.io import (
    params_hash,
    params_hash_of,
    read_table,
    table_bytes,
    write_table,
)
from personlab.tables.schema import (
    FAILURES,
    IMAGES,
    INPUTS,
    NAMED_PREDICTIONS,
    PEOPLE,
    PREDICTIONS,
    REJECTS,
    SPLITS,
    TARGETS,
    Split,
    people_rows,
    validate,
)

__all__ = [
    "FAILURES",
    "IMAGES",
    "INPUTS",
    "NAMED_PREDICTIONS",
    "PEOPLE",
    "PREDICTIONS",
    "REJECTS",
    "SPLITS",
    "TARGETS",
    "Split",
    "params_hash",
    "params_hash_of",
    "people_rows",
    "read_table",
    "table_bytes",
    "validate",
    "write_table",
]
