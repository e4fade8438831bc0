"""What stages exchange: tables (schemas, checks, Parquet files and shards) and the dataset's description."""

from personlab.tables.dataset import DATASET, Dataset, read_dataset
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
    "DATASET",
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
    "Dataset",
    "Split",
    "params_hash",
    "params_hash_of",
    "people_rows",
    "read_dataset",
    "read_table",
    "table_bytes",
    "table_writer",
    "validate",
    "write_table",
]
