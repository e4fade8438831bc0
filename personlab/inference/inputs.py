"""What batch inference reads: pictures in files, or in rows of Parquet files, local or on an object store.

A listing is the sorted table of all of them (tables.INPUTS). A picture goes by the name of its file, relative
to the folder that was listed; a row of a Parquet file by the file's name and the row, "faces.parquet#17".
"""

import posixpath
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import partial
from itertools import groupby
from typing import Any, Final
from urllib.parse import unquote

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow.fs import FileType

from personlab import tables
from personlab.data import images as picture
from personlab.errors import UserError
from personlab.utils import storage
from personlab.utils.storage import Folder

_TABLE: Final = ".parquet"
_WHOLE_FILE: Final = -1  # in column `row`
_LARGEST: Final = 2**29  # bytes; nothing larger is a photo

Fetch = Callable[[], bytes]


@dataclass(frozen=True)
class Listing:
    """root: the folder that files are relative to; None if they are paths or URIs themselves."""

    root: str | None
    entries: pa.Table  # tables.INPUTS


def find(wanted: str) -> Listing:
    """The pictures of a folder, a pattern, a Parquet file, a picture, or a file that lists some of these.

    - A folder stands for the pictures and Parquet files anywhere below it, by their suffixes.
    - A pattern (`photos/**/*.jpg`, `s3://bucket/2026-*/*`) stands for the files that match it.
    - A Parquet file holds a picture in each row: as its one column of bytes, or the field `bytes` of its one
      struct that has such a field. Row groups of a few hundred rows are read fastest.
    - Any other file lists paths or URIs, one a line; paths are relative to the current folder. Lines that
      repeat another count once.

    Raises:
        UserError: there is nothing, or a Parquet file or list that cannot be read.
    """
    if (split := _split_pattern(wanted)) and storage.kind(wanted) == FileType.NotFound:
        root, pattern = split
        names = [name for name in Folder(root).files(recursive=True) if _matches(name.split("/"), pattern)]
        return _listing(root, names, wanted)
    found = storage.kind(wanted)
    if found == FileType.NotFound:
        raise UserError(f"{wanted}: no such file or folder")
    if found == FileType.Directory:
        known = (*picture.suffixes(), _TABLE)
        names = Folder(wanted).files(recursive=True)
        return _listing(wanted, [name for name in names if name.lower().endswith(known)], wanted)
    if _suffix(wanted) in {*picture.suffixes(), _TABLE}:
        folder, name = posixpath.split(_path(wanted))
        is_uri = "://" in wanted
        return _listing((folder or ".") + _query(wanted), [unquote(name) if is_uri else name], wanted)
    return _listing(None, _lines(wanted), wanted)


def contents(root: str | None, entries: pa.Table) -> Iterator[tuple[str, Fetch]]:
    """Name of each entry, and how to get its bytes, which raises UserError with the reason if it cannot."""
    rows = zip(entries["file"].to_pylist(), entries["row"].to_pylist(), strict=True)
    for file, group in groupby(rows, key=lambda entry: entry[0]):
        numbers = [row for _, row in group]
        if numbers == [_WHOLE_FILE]:
            yield file, partial(_read, root, file)
            continue
        cells = _cells(root, file, numbers)
        for row, cell in zip(numbers, cells, strict=True):
            yield f"{file}#{row}", partial(_given, cell)


# --- listing ------------------------------------------------------------------------------------------------


def _path(place: str) -> str:
    """Without a URI's query."""
    return place.partition("?")[0] if "://" in place else place


def _query(place: str) -> str:
    return place[len(_path(place)) :]


def _split_pattern(wanted: str) -> tuple[str, list[str]] | None:
    """Folder and pattern, in segments; None without a pattern. In URIs `?` starts the query."""
    path = _path(wanted)
    segments = path.split("/")
    wild = [index for index, segment in enumerate(segments) if re.search(r"[*?\[]", segment)]
    if not wild:
        return None
    root = "/".join(segments[: wild[0]]) or ("/" if path.startswith("/") else ".")
    return root + _query(wanted), segments[wild[0] :]


def _matches(segments: Sequence[str], pattern: Sequence[str]) -> bool:
    """Whether a path matches a pattern; `**` stands for any number of folders."""
    if not pattern:
        return not segments
    if pattern[0] == "**":
        return any(_matches(segments[skip:], pattern[1:]) for skip in range(len(segments) + 1))
    return bool(segments) and fnmatchcase(segments[0], pattern[0]) and _matches(segments[1:], pattern[1:])


def _suffix(name: str) -> str:
    return posixpath.splitext(_path(name))[1].lower()


def _lines(wanted: str) -> list[str]:
    try:
        with storage.open_file(wanted) as file:
            lines = [line.strip() for line in file.read().decode().splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"{wanted}: cannot be read as a list of paths or URIs, one a line ({error})"
        ) from None
    return list(dict.fromkeys(filter(None, lines)))


def _listing(root: str | None, names: Iterable[str], wanted: str) -> Listing:
    names = sorted(names)
    counts = [_rows(root, name) if _suffix(name) == _TABLE else 1 for name in names]
    if not sum(counts):
        raise UserError(f"{wanted}: no pictures there, of a format that can be read, and no Parquet files")
    which = np.repeat(np.arange(len(names)), counts)
    row = np.arange(len(which)) - np.repeat(np.cumsum(counts) - counts, counts)
    whole = np.array([_suffix(name) != _TABLE for name in names])
    columns = [pa.array(names, pa.string()).take(pa.array(which)), np.where(whole[which], _WHOLE_FILE, row)]
    return Listing(root, pa.table(columns, schema=tables.INPUTS))


def _rows(root: str | None, name: str) -> int:
    try:
        with _open(root, name) as file, pq.ParquetFile(file) as table:
            _column(table.schema_arrow)
            count: int = table.metadata.num_rows
            return count
    except (pa.ArrowException, OSError, UserError) as error:
        raise UserError(f"{name}: cannot be read as a Parquet file of pictures: {error}") from None


# --- reading ------------------------------------------------------------------------------------------------


def _open(root: str | None, name: str) -> Any:
    return storage.open_file(name) if root is None else Folder(root).open(name)


def _read(root: str | None, name: str) -> bytes:
    try:
        with _open(root, name) as file:
            if file.size() > _LARGEST:
                raise UserError(f"has {file.size()} bytes, {_LARGEST} is the most that is read")
            content: bytes = file.read()
    except FileNotFoundError:
        raise UserError("no such file") from None
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"cannot be read: {error}") from None
    return content


def _given(cell: bytes | UserError) -> bytes:
    if isinstance(cell, UserError):
        raise cell
    return cell


def _column(schema: pa.Schema) -> str:
    """The column of bytes, or the path of the field of bytes.

    Raises:
        UserError: there is none, or several.
    """

    def is_bytes(kind: pa.DataType) -> bool:
        return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))

    plain = [field.name for field in schema if is_bytes(field.type)]
    nested = [
        f"{field.name}.bytes"
        for field in schema
        if pa.types.is_struct(field.type)
        and field.type.get_field_index("bytes") >= 0
        and is_bytes(field.type.field("bytes").type)
    ]
    found: list[str] = plain + nested
    if len(found) != 1:
        raise UserError(f"one column of bytes is needed, there are {', '.join(found) or 'none'}")
    return found[0]


def _cells(root: str | None, file: str, rows: Sequence[int]) -> list[bytes | UserError]:
    """The bytes in some consecutive rows, or why there are none."""
    try:
        cells = list(_stored(root, file, rows[0], rows[-1] + 1))
    except (pa.ArrowException, OSError, UserError) as error:
        return [UserError(f"{file} cannot be read: {error}")] * len(rows)
    if len(cells) != len(rows):
        return [UserError(f"{file} has other rows than when it was listed")] * len(rows)
    return [UserError("the row holds no picture") if cell is None else cell for cell in cells]


def _stored(root: str | None, file: str, start: int, stop: int) -> Iterator[bytes | None]:
    with _open(root, file) as stream, pq.ParquetFile(stream, buffer_size=2**20) as table:
        column = _column(table.schema_arrow)
        sizes = [table.metadata.row_group(group).num_rows for group in range(table.num_row_groups)]
        ends = np.cumsum(sizes)
        groups = np.flatnonzero((ends > start) & (ends - sizes < stop))
        at = int((ends - sizes)[groups[0]]) if len(groups) else 0
        for batch in table.iter_batches(64, row_groups=groups.tolist(), columns=[column]):
            cells = batch.column(0)
            if pa.types.is_struct(cells.type):
                cells = cells.field("bytes")
            yield from cells.to_pylist()[max(start - at, 0) : max(stop - at, 0)]
            at += len(batch)
            if at >= stop:
                break  # or the rest of its row group would be decoded, once for every part
