"""Write and read tables as Parquet: checked, written whole or not at all; same table, same bytes.

Plain Arrow types, rows sorted by the caller. The file's schema metadata holds the format version and the
hash of the parameters that the table was made with.
"""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel

from personlab.errors import UserError
from personlab.tables.schema import validate
from personlab.utils.files import atomic_file

FORMAT_VERSION: Final = 1


def params_hash(*sections: BaseModel) -> str:
    """SHA-256 (hexadecimal) of the parameter sections that a table was made with."""
    values = [[type(section).__name__, section.model_dump(mode="json")] for section in sections]
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def write_table(table: pa.Table, path: Path, *, params_hash: str, row_group_size: int = 65_536) -> None:
    """Check a table against its schema and write it atomically as Parquet; same table, same bytes.

    Its schema must be one of this module's. Format version and `params_hash` stand in the file's metadata.

    Raises:
        UserError: rows break the schema; the message names the first of them and the reason.
        ValueError: the columns are not those of any schema of this module.
    """
    try:
        validate(table)
    except UserError as error:
        raise UserError(f"{path}: not written: {error}") from None
    with atomic_file(path) as partial:
        _write(table, partial, params_hash, row_group_size)


def table_bytes(table: pa.Table, *, params_hash: str, row_group_size: int = 65_536) -> bytes:
    """What `write_table` writes, for file systems that are not local.

    Raises:
        UserError, ValueError: as `write_table`.
    """
    validate(table)
    sink = pa.BufferOutputStream()
    _write(table, sink, params_hash, row_group_size)
    content: bytes = sink.getvalue().to_pybytes()
    return content


def _write(table: pa.Table, sink: Any, params_hash: str, row_group_size: int) -> None:
    metadata = {_VERSION_KEY: str(FORMAT_VERSION), _PARAMS_KEY: params_hash}
    pq.write_table(
        table.replace_schema_metadata(metadata),
        sink,
        row_group_size=row_group_size,
        compression="zstd",
        use_dictionary=False,  # JPEG bytes and masks never repeat
    )


def read_table(path: Path, schema: pa.Schema, columns: Sequence[str] | None = None) -> pa.Table:
    """Read a table written by `write_table`, or only some of its columns.

    Raises:
        UserError: the file is missing, not Parquet, of another format version, or its columns are not
            those of `schema`.
    """
    wanted = schema if columns is None else pa.schema([schema.field(name) for name in columns])
    try:
        with pq.ParquetFile(path) as file:
            _check_header(path, file.schema_arrow, wanted)
            table = file.read(wanted.names)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; run the stage that makes it ('dvc repro')") from None
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{path}: cannot be read as Parquet ({error}); delete it and run its stage") from None
    return table.replace_schema_metadata(None)


def params_hash_of(schema: pa.Schema) -> str:
    """The `params_hash` in the header of a file; empty if there is none."""
    value: bytes = (schema.metadata or {}).get(_PARAMS_KEY.encode(), b"")
    return value.decode()


_PARAMS_KEY: Final = "personlab.params_hash"
_VERSION_KEY: Final = "personlab.format_version"


def _check_header(path: Path, found: pa.Schema, wanted: pa.Schema) -> None:
    version = (found.metadata or {}).get(_VERSION_KEY.encode(), b"none").decode()
    if version != str(FORMAT_VERSION):
        raise UserError(
            f"{path}: format version is {version}, this program reads {FORMAT_VERSION}; run its stage again"
        )
    missing = [name for name in wanted.names if name not in found.names]
    if missing:
        raise UserError(f"{path}: columns missing: {', '.join(missing)}; run its stage again")
    for field in wanted:
        if found.field(field.name).type != field.type:
            raise UserError(
                f"{path}: column {field.name} is {found.field(field.name).type}, not {field.type}; "
                "run its stage again"
            )
