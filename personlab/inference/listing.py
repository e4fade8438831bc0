"""List and read the images to predict: files, folders, patterns, rows of Parquet files, or lists of these.

They are local or on an object store. The name of an image is its file's, relative to the listed folder; the
name of a row of a Parquet file is the file's and the row: "faces.parquet#17".
"""

import codecs
import logging
import os
import posixpath
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby, islice
from operator import itemgetter
from typing import Any, Final
from urllib.parse import unquote

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow.fs import FileType

from personlab import tables
from personlab.data import images
from personlab.errors import UserError
from personlab.utils import storage
from personlab.utils.storage import Folder, UnreachableError, retry

log = logging.getLogger("personlab")

_PARQUET: Final = ".parquet"
_WHOLE_FILE: Final = -1  # in column `row`
_MAX_BYTES: Final = 2**29  # of a file; no photo is larger
_MAX_KINDS: Final = 6  # named in a message
_FIRST_LINES: Final = 10  # of a list without suffixes, of which one has to be a file
_LONGEST_QUOTE: Final = 60  # characters of a line in a message
_BATCH: Final = 64  # rows of a Parquet file that are held in memory

Fetch = Callable[[], bytes]


@dataclass(frozen=True)
class Listing:
    """root: the folder that file names are relative to; None if they are paths or URIs."""

    root: str | None
    entries: pa.Table  # tables.INPUTS

    def paths(self) -> list[str]:
        """Path or URI of each image."""
        root = "" if self.root in (None, ".") else _path(self.root)
        return [posixpath.join(root, _name(file, row)) for file, row in self._rows()]

    def read(self) -> Iterator[tuple[str, Fetch]]:
        """Name of each image and a function that returns its bytes, or raises UserError with the reason."""
        rows = self._rows()
        while batch := list(islice(rows, _BATCH)):
            for file, group in groupby(batch, key=itemgetter(0)):
                numbers = [row for _, row in group]
                if numbers == [_WHOLE_FILE]:
                    yield file, partial(_read, self.root, file)
                    continue
                cells = _cells(self.root, file, numbers)
                for row, cell in zip(numbers, cells, strict=True):
                    yield _name(file, row), partial(_value, cell)

    def _rows(self) -> Iterator[tuple[str, int]]:
        return zip(self.entries["file"].to_pylist(), self.entries["row"].to_pylist(), strict=True)


def list_images(place: str, *, leave_out: Sequence[str] = ()) -> Listing:
    """List the images that a path or URI stands for, sorted by name.

    - A folder: the images and Parquet files anywhere below it, by suffix. Files of other types are counted in
      a log line.
    - A pattern (`photos/**/*.jpg`, `s3://bucket/2026-*/*`): the files that match it.
    - A Parquet file: an image in each row, in its one column of bytes, or in the field `bytes` of its one
      struct that has such a field. Row groups of a few hundred rows are read fastest.
    - A file with the suffix of an image format, or with binary content: one image.
    - Any other file: a list of images and Parquet files, one path or URI a line, relative to the current
      folder; repeated lines count once. UTF-8, or UTF-16 with a byte order mark.

    Files that cannot be read are listed too; reading them gives the reason. If no line of a list has the
    suffix of an image, one of the first has to name a file.

    Args:
        leave_out: files and folders that are not listed, such as those that results are written to.

    Raises:
        UserError: there is nothing to list, or `place` is a Parquet file or a list that cannot be read, or a
            text that is no list.
    """
    place = storage.as_text(place)
    kind = storage.kind(place)
    if kind == FileType.Directory:
        names = _outside(leave_out, place, Folder(place).files(recursive=True))
        return _listing(place, _of_known_type(place, names), place)
    if kind == FileType.NotFound:
        if not (split := _split_pattern(place)):
            raise UserError(f"{place}: no such file or folder")
        root, pattern = split
        return _listing(root, _outside(leave_out, root, Folder(root).glob(pattern)), place)
    if _suffix(place) == _PARQUET:
        _count_rows(None, place)
    elif _suffix(place) not in images.suffixes() and (lines := _lines(place)) is not None:
        _check_list(lines, place)
        return _listing(None, lines, place)
    folder, name = posixpath.split(_path(place))
    return _listing((folder or ".") + _query(place), [unquote(name) if "://" in place else name], place)


def list_all(places: Iterable[str], *, leave_out: Sequence[str] = ()) -> tuple[list[Listing], list[str]]:
    """List several places, each file once; also returns why others cannot be listed, "place: reason"."""
    listings, failures, seen = list[Listing](), list[str](), set[str]()
    for place in places:
        try:
            listing = list_images(place, leave_out=leave_out)
        except UserError as error:
            failures.append(str(error))
            continue
        new = list[bool]()
        for path in listing.paths():
            file = path if "://" in path else os.path.realpath(storage.local_path(path))
            new.append(file not in seen)
            seen.add(file)
        listings.append(Listing(listing.root, listing.entries.filter(pa.array(new))))
    return listings, failures


# --- listing ------------------------------------------------------------------------------------------------


def _path(place: str) -> str:
    """A path, or a URI without its query."""
    return place.partition("?")[0] if "://" in place else place


def _query(place: str) -> str:
    return place[len(_path(place)) :]


def _split_pattern(place: str) -> tuple[str, str] | None:
    """Folder and pattern; None without a pattern. In URIs `?` starts the query."""
    path = _path(place)
    segments = path.split("/")
    wild = [index for index, segment in enumerate(segments) if re.search(r"[*?\[]", segment)]
    if not wild:
        return None
    root = "/".join(segments[: wild[0]]) or ("/" if path.startswith("/") else ".")
    return root + _query(place), "/".join(segments[wild[0] :])


def _suffix(name: str) -> str:
    return posixpath.splitext(_path(name))[1].lower()


def _name(file: str, row: int) -> str:
    return file if row == _WHOLE_FILE else f"{file}#{row}"


def _outside(left_out: Sequence[str], root: str, names: Sequence[str]) -> Sequence[str]:
    """The names of files below `root` that are neither left out nor below a folder that is."""
    system, path = storage.locate(root)
    for other, place in map(storage.locate, map(storage.as_text, left_out)):
        below = posixpath.relpath(place, path)
        if other == system:
            names = [name for name in names if name != below and not name.startswith(f"{below}/")]
    return names


def _of_known_type(place: str, names: Sequence[str]) -> list[str]:
    """The names of images and Parquet files; the others are counted in a log line."""
    suffixes = {*images.suffixes(), _PARQUET}
    others = Counter(posixpath.splitext(name)[1] or "none" for name in names if _suffix(name) not in suffixes)
    if others:
        kinds = ", ".join(f"{suffix} {count}" for suffix, count in others.most_common(_MAX_KINDS))
        rest = ", ..." if len(others) > _MAX_KINDS else ""
        log.info("%s: %d files of other types: %s%s", place, others.total(), kinds, rest)
    return [name for name in names if _suffix(name) in suffixes]


def _lines(place: str) -> list[str] | None:
    """The lines of a text file; None if it is binary."""
    try:
        content = _read(None, place)
    except UserError as error:
        raise UserError(f"{place}: {error}") from None
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        text = content.decode("utf-16", errors="replace")
    elif b"\0" in content:
        return None
    else:
        text = content.decode("utf-8-sig", errors="backslashreplace")  # names as by storage.as_text
    return list(dict.fromkeys(filter(None, map(str.strip, text.split("\n")))))


def _check_list(lines: Sequence[str], place: str) -> None:
    """Refuse a text that is no list: no line has the suffix of an image, and the first ones name no files."""
    known = {*images.suffixes(), _PARQUET}
    if not lines or any(_suffix(line) in known for line in lines):
        return
    if not any(map(_exists, lines[:_FIRST_LINES])):
        line = repr(lines[0][:_LONGEST_QUOTE])
        raise UserError(f"{place}: is neither an image nor a list of images: there is no file {line}")


def _exists(place: str) -> bool:
    try:
        return bool(storage.kind(place) != FileType.NotFound)
    except UnreachableError:
        raise
    except UserError:  # not a path or URI
        return False


def _listing(root: str | None, names: Iterable[str], place: str) -> Listing:
    names = sorted(names)
    counts = [_count(root, name) for name in names]
    if not sum(counts):
        raise UserError(f"{place}: no images there, of a format that can be read, and no Parquet files")
    which = np.repeat(np.arange(len(names)), counts)
    row = np.arange(len(which)) - np.repeat(np.cumsum(counts) - counts, counts)
    whole = np.array([_suffix(name) != _PARQUET for name in names])
    columns = [pa.array(names, pa.string()).take(pa.array(which)), np.where(whole[which], _WHOLE_FILE, row)]
    return Listing(root, pa.table(columns, schema=tables.INPUTS))


def _count(root: str | None, name: str) -> int:
    """The number of images in a file; 1 if it cannot be read, so that reading it gives the reason."""
    try:
        return _count_rows(root, name) if _suffix(name) == _PARQUET else 1
    except UnreachableError:
        raise
    except UserError:
        return 1


def _count_rows(root: str | None, name: str) -> int:
    def count() -> int:
        with _open(root, name) as file, pq.ParquetFile(file) as table:
            _column(table.schema_arrow)
            return int(table.metadata.num_rows)

    try:
        return retry(root or name, count)
    except UnreachableError:
        raise
    except (pa.ArrowException, OSError, UserError) as error:
        raise UserError(f"{name}: cannot be read as a Parquet file of images: {error}") from None


# --- reading ------------------------------------------------------------------------------------------------


def _open(root: str | None, name: str) -> Any:
    return storage.open_file(name) if root is None else Folder(root).open(name)


def _read(root: str | None, name: str) -> bytes:
    def read() -> bytes:
        with _open(root, name) as file:
            if file.size() > _MAX_BYTES:
                raise UserError(f"has {file.size()} bytes; at most {_MAX_BYTES} are read")
            content: bytes = file.read()
        return content

    try:
        return retry(root or name, read)
    except FileNotFoundError:
        raise UserError("no such file") from None
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"cannot be read: {error}") from None


def _value(cell: bytes | UserError) -> bytes:
    if isinstance(cell, UserError):
        raise cell
    return cell


def _column(schema: pa.Schema) -> str:
    """The column of bytes, or the path of the field of bytes.

    Raises:
        UserError: there is none, or there are several.
    """

    kinds = (pa.binary(), pa.large_binary())
    columns: list[str] = [field.name for field in schema if field.type in kinds]
    for field in filter(lambda field: pa.types.is_struct(field.type), schema):
        if any(part.name == "bytes" and part.type in kinds for part in field.type):
            columns.append(f"{field.name}.bytes")
    if len(columns) != 1:
        raise UserError(f"one column of bytes is needed, there are {', '.join(columns) or 'none'}")
    return columns[0]


def _cells(root: str | None, file: str, rows: Sequence[int]) -> list[bytes | UserError]:
    """The bytes in consecutive rows of a Parquet file, or the reason why there are none."""
    try:
        cells = retry(root or file, lambda: list(_stored(root, file, rows[0], rows[-1] + 1)))
    except UnreachableError:
        raise
    except FileNotFoundError:
        return [UserError("no such file")] * len(rows)
    except (pa.ArrowException, OSError, UserError) as error:
        return [UserError(f"{file} cannot be read: {error}")] * len(rows)
    if len(cells) != len(rows):
        return [UserError(f"{file} has other rows than when it was listed")] * len(rows)
    return [UserError("the row holds no image") if cell is None else cell for cell in cells]


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
                break  # the rest of its row group belongs to other parts
