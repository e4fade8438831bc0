"""Tables that stages exchange: schemas, checks, Parquet files and shards."""

from personlab.tables.io import (
    params_hash,
    params_hash_of,
    read_table,
    table_bytes,
    table_writer,
    write_table,
)
from personlab.tables.schema import (
    FAILURES,
    FRAMES,
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
    "FRAMES",
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
    "table_writer",
    "validate",
    "write_table",
]
