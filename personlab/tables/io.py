"""Read and write tables as Parquet.

Tables are checked before they are written, and written atomically; the same table gives the same bytes. The
file's schema metadata holds the format version and the hash of the parameters that made the table.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel

from personlab.errors import UserError
from personlab.tables.schema import validate
from personlab.utils.files import atomic_file

FORMAT_VERSION: Final = 1

_OPTIONS: Final = {"compression": "zstd", "use_dictionary": False}  # images and masks do not repeat

# Keys of the schema metadata.
_PARAMS_KEY: Final = "personlab.params_hash"
_VERSION_KEY: Final = "personlab.format_version"


def params_hash(*sections: BaseModel) -> str:
    """SHA-256 (hexadecimal) of parameter sections."""
    values = [[type(section).__name__, section.model_dump(mode="json")] for section in sections]
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def write_table(table: pa.Table, path: Path, *, params_hash: str, row_group_size: int = 65_536) -> None:
    """Check a table and write it atomically.

    Args:
        params_hash: hash of the parameters that made the table.

    Raises:
        UserError, ValueError: as `tables.validate`.
    """
    try:
        validate(table)
    except UserError as error:
        raise UserError(f"{path}: not written: {error}") from None
    with atomic_file(path) as partial:
        _write(table, partial, params_hash, row_group_size)


def table_bytes(table: pa.Table, *, params_hash: str, row_group_size: int = 65_536) -> bytes:
    """The bytes that `write_table` writes, for file systems that are not local.

    Raises:
        UserError, ValueError: as `write_table`.
    """
    validate(table)
    sink = pa.BufferOutputStream()
    _write(table, sink, params_hash, row_group_size)
    return bytes(sink.getvalue())


@contextmanager
def table_writer(
    path: Path, schema: pa.Schema, params_hash: str, *, row_group_size: int
) -> Iterator[Callable[[Mapping[str, Any]], None]]:
    """Yield a function that adds a row to a table, which is written atomically, in bounded memory.

    Every row group is checked before it is written.

    Raises:
        UserError, ValueError: as `write_table`.
    """
    rows = list[Mapping[str, Any]]()
    schema = schema.with_metadata(_metadata(params_hash))

    def add(row: Mapping[str, Any]) -> None:
        rows.append(row)
        if len(rows) == row_group_size:
            flush()

    def flush() -> None:
        table = pa.Table.from_pylist(rows, schema=schema)
        validate(table)
        writer.write_table(table)
        rows.clear()

    with atomic_file(path) as partial, pq.ParquetWriter(partial, schema, **_OPTIONS) as writer:
        yield add
        if rows:
            flush()


def _write(table: pa.Table, sink: Any, params_hash: str, row_group_size: int) -> None:
    table = table.replace_schema_metadata(_metadata(params_hash))
    pq.write_table(table, sink, row_group_size=row_group_size, **_OPTIONS)


def _metadata(params_hash: str) -> dict[str, str]:
    return {_VERSION_KEY: str(FORMAT_VERSION), _PARAMS_KEY: params_hash}


def read_table(
    path: Path, schema: pa.Schema, columns: Sequence[str] | None = None, *, row_group: int | None = None
) -> pa.Table:
    """Read a table written by `write_table`, or some of its columns, or one of its row groups.

    Raises:
        UserError: the file is missing, is not Parquet, has another format version or other columns than
            `schema`, or does not have the row group.
    """
    wanted = schema if columns is None else pa.schema([schema.field(name) for name in columns])
    try:
        with pq.ParquetFile(path) as file:
            _check_header(path, file.schema_arrow, wanted)
            names = wanted.names
            table = file.read(names) if row_group is None else file.read_row_group(row_group, names)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; run the stage that makes it ('dvc repro')") from None
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{path}: cannot be read as Parquet ({error}); delete it and run its stage") from None
    return table.replace_schema_metadata(None)


def params_hash_of(schema: pa.Schema) -> str:
    """The `params_hash` in a file's schema metadata; empty if there is none."""
    value: bytes = (schema.metadata or {}).get(_PARAMS_KEY.encode(), b"")
    return value.decode()


def _check_header(path: Path, found: pa.Schema, wanted: pa.Schema) -> None:
    version = (found.metadata or {}).get(_VERSION_KEY.encode(), b"none").decode()
    if version != str(FORMAT_VERSION):
        raise UserError(
            f"{path}: format version is {version}, this program reads {FORMAT_VERSION}; run its stage again"
        )
    missing = [name for name in wanted.names if name not in found.names]
    if missing:
        raise UserError(f"{path}: columns missing: {', '.join(missing)}; run its stage again")
    for name, kind in zip(wanted.names, wanted.types, strict=True):
        if (stored := found.field(name).type) != kind:
            raise UserError(f"{path}: column {name} is {stored}, not {kind}; run its stage again")
